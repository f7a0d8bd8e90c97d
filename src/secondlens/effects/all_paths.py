"""All paths of a neuron to the output, in seven classes that add up to its total effect.

The tower is differentiated at each image. A path is a row of edges of `linearised`. Its class is
its first edge, seen from the neuron, that is neither identity nor value:

=========  ========================================================================================
`direct`   identities only: what the neuron adds to the class token goes straight to the output
`value`    one value edge: the second-order effects of arXiv 2406.04341, as `second_order` has them
`higher`   two or more value edges, and nothing else
`query`    the first other edge is a query: the neuron changes where a token looks
`key`      a key: the neuron changes how much a token is looked at
`mlp`      a later MLP: the neuron changes what other neurons do
`norm`     the scale of a LayerNorm: the neuron makes everything else smaller or larger
=========  ========================================================================================

What follows the first other edge may be anything. So each path is in one class, and the classes add
up to the derivative, whatever it is multiplied with. That the first such edge decides, and not the
last, is a convention; another one would cut the same total otherwise.

`paths` goes backward: for one direction of the embedding it gives all neurons of all layers at
once. `paths_of` goes forward: for one neuron it gives the whole embedding. Both are for the
activations as they are, as `second_order` and `direct`; how a finite change differs from its
derivative is in `finite_paths`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..data.reader import Reader
from ..data.sources import as_source
from ..devices import undisturbed
from ..errors import SecondLensError
from ..models.blocks import Block
from ..models.view import Clip
from ..progress import tracked
from .ablated_runs import check_neurons
from .linearised import LinearBlock, Linearised, linearise
from .streaming import stream
from .value_paths import chunks

CLASSES = ("direct", "value", "higher", "query", "key", "mlp", "norm")
DIRECT, VALUE, HIGHER, QUERY, KEY, MLP, NORM = range(len(CLASSES))

STREAMS = range(5)
"""What is carried backward at every token: the gradient by class, where direct, value and higher
paths are together in the first."""
VALUES, QUERIES, KEYS, MLPS, NORMS = STREAMS
IMAGES_PER_PASS = 8
DIRECTIONS_PER_PASS = 4
NEURONS_PER_PASS = 16
"""Whose changes are carried forward at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths:
    """Effects along some directions by layer, neuron and class of path, in the units of the
    normalised embedding, on the CPU."""

    image_ids: tuple[str, ...]
    skipped: dict[str, str]
    """Why pictures are missing, by id."""
    by_layer: dict[int, Float[Tensor, "images directions neurons classes"]]
    classes: tuple[str, ...] = CLASSES

    def __getitem__(self, layer: int) -> Float[Tensor, "images directions neurons classes"]:
        """Effects of one layer's neurons, by class in the order of `classes`.

        Raises
        ------
        SecondLensError
            The layer is not there.
        """
        if layer not in self.by_layer:
            there = ", ".join(map(str, self.by_layer))
            raise SecondLensError(f"there are no paths of layer {layer}, only of {there}")
        return self.by_layer[layer]

    @property
    def layers(self) -> list[int]:
        """Those that effects are there of."""
        return list(self.by_layer)


@checked
@undisturbed
def paths(
    clip: Clip,
    images: Any,
    texts: Sequence[str] | None = None,
    *,
    directions: Tensor | None = None,
    layers: "Sequence[int] | Literal['all']" = "all",
    classes: Literal["all", "value"] = "all",
    batch_size: int = IMAGES_PER_PASS,
    workers: int = 0,
    progress: bool = False,
) -> Paths:
    """Effects of all neurons along some directions of the embedding, by class of path.

    One forward pass and a backward one for each direction give all layers; value paths alone need
    little more than the forward pass. The result takes 4 bytes for each class, image, direction,
    layer and neuron.

    Parameters
    ----------
    clip
        The model.
    images
        What `fit` takes.
    texts
        Directions as texts: their unit embeddings.
    directions
        Any other rows instead, [directions, dim], such as differences of texts; they are used as
        they are.
    layers
        MLP layers, the last one too, or "all".
    classes
        "value" for value paths alone, which are second-order effects along the directions.
    batch_size, workers
        Images in one pass, and processes that decode them.
    progress
        Show a progress bar.

    Raises
    ------
    SecondLensError
        Neither texts nor directions, or both; directions of another width; a layer that does not
        exist; no such classes; a model whose MLP is of another kind (see `linearise`), unless value
        paths are wanted alone; or no readable image.
    """
    if classes not in ("all", "value"):
        raise SecondLensError(f'classes of paths are "all" or "value", not {classes!r}')
    chosen = clip.chosen_layers(layers, last=True)
    wanted = chosen_directions(clip, texts, directions)
    reader = Reader(source=as_source(images), clip=clip, batch_size=batch_size, workers=workers)
    read = _value_alone if classes == "value" else _every_class
    found: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    positions: list[int] = []
    for some, effects in read(clip, reader, wanted, chosen, progress):
        positions += some
        for layer in chosen:
            found[layer].append(effects[layer].cpu())
    if not positions:
        raise SecondLensError("none of the pictures could be read")
    return Paths(
        image_ids=tuple(reader.source.ids[position] for position in positions),
        skipped=reader.skipped,
        by_layer={layer: torch.cat(parts) for layer, parts in found.items()},
        classes=CLASSES if classes == "all" else (CLASSES[VALUE],),
    )


Found = Iterator[tuple[list[int], dict[int, Float[Tensor, "images directions neurons classes"]]]]
"""By batch: positions of the images, and effects by layer."""


def _every_class(
    clip: Clip, reader: Reader, directions: Tensor, layers: Sequence[int], progress: bool
) -> Found:
    for batch in tracked(reader, "paths", progress):
        linearised = linearise(clip, batch.on(clip.device))
        some = [
            dict(backward(linearised, directions[chunk], layers))
            for chunk in chunks(len(directions), DIRECTIONS_PER_PASS)
        ]
        together = {layer: torch.cat([each[layer] for each in some], dim=1) for layer in layers}
        yield batch.positions, together


def _value_alone(
    clip: Clip, reader: Reader, directions: Tensor, layers: Sequence[int], progress: bool
) -> Found:
    """A value path ends in one head, so what it is worth along a direction no image changes."""
    rows = directions.to(clip.compute_dtype)
    read = [layer for layer in layers if layer <= clip.last_effect_layer]
    worth = {layer: _worth_of_paths(clip, layer, rows) for layer in read}
    # the last layer has none, but its images have to be read all the same
    for batch in stream(clip, reader, read or [0], class_token_only=True, progress=progress):
        effects = {}
        for layer in layers:
            shape = (len(batch.positions), len(rows), clip.neurons, 1)
            effects[layer] = rows.new_zeros(shape)
            if layer in worth:
                coefficients = batch.pooled.coefficients[layer]
                for number, each in enumerate(worth[layer]):
                    effects[layer][:, number, :, 0] = (coefficients * each).sum(1)
                effects[layer] *= batch.pooled.scale[:, None, None, None]
        yield batch.positions, effects


def _worth_of_paths(
    clip: Clip, layer: int, directions: Float[Tensor, "directions dim"]
) -> Float[Tensor, "directions paths neurons"]:
    """What one unit of each coefficient of a layer does along directions."""
    gradient = _at_output(clip, directions @ clip.projection.to(directions).T)
    later = [_rows_of_heads(block, gradient) for block in clip.blocks[layer + 1 :]]
    return torch.cat(later, dim=1) @ clip.blocks[layer].neuron_rows.to(directions).T


@checked
@undisturbed
@torch.no_grad()
def paths_of(
    clip: Clip, images: Any, layer: int, neurons: Sequence[int]
) -> Float[Tensor, "images chosen 7 dim"]:
    """Whole effects of some neurons by class of path, in the order of `CLASSES`.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        Any MLP layer.
    neurons
        Which ones of the layer, in the order of the result.

    Returns
    -------
    Parts of the unit embedding, on the model's device. Their sum is the derivative of the
    representation in the neuron's activation, times that activation, over the representation's
    length.

    Raises
    ------
    SecondLensError
        No such layer or neuron, a model whose MLP is of another kind (see `linearise`), or images
        that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    check_neurons(clip, layer, neurons)
    images = clip.prepare(images)
    rows = clip.blocks[layer].neuron_rows.to(clip.compute_dtype)
    found = []
    for some in images.split(IMAGES_PER_PASS):
        linearised = linearise(clip, some)
        parts = [rows.new_empty(len(some), 0, len(CLASSES), clip.dim)]
        for chunk in chunks(len(neurons), NEURONS_PER_PASS):
            activation = linearised.activations[layer][:, :, neurons[chunk], None]
            parts.append(forward(linearised, layer, activation * rows[neurons[chunk]]))
        found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


class Gradients:
    """Gradients of what directions of the embedding say, at the stream after one block, by class
    of path; they are taken back block by block in place."""

    def __init__(self, tower: Linearised, directions: Float[Tensor, "directions dim"]) -> None:
        self.tower = tower
        projection = tower.clip.projection.to(tower.representation)
        gradient = directions.to(projection) @ projection.T
        norm, per_length = tower.norm_post, 1 / tower.length[:, None, None]
        self.direct: Float[Tensor, "images directions width"]
        self.direct = norm.linear_back(gradient) * per_length
        images, directions_, width = self.direct.shape
        self.streams: Float[Tensor, "streams images tokens directions width"]
        self.streams = gradient.new_zeros(
            len(STREAMS), images, tower.clip.tokens, directions_, width
        )
        self.streams[VALUES, :, 0] = self.direct
        self.streams[NORMS, :, 0] = norm.through_scale_back(gradient) * per_length
        self.once = _ValueEnds(tower, gradient)

    def of_neurons(
        self,
        change: Float[Tensor, "images tokens chosen"],
        rows: Float[Tensor, "chosen width"],
        worth: "Float[Tensor, 'images tokens directions chosen'] | None" = None,
    ) -> Float[Tensor, "images directions chosen 7"]:
        """What changes of the activations of neurons that write `rows` do, by class.

        `worth` is that of one unit of each activation by all classes, where it is known already.
        """
        worth = self.worth(rows) if worth is None else worth

        def summed(of_unit: Tensor) -> Tensor:
            return (change[:, :, None] * of_unit).sum(1)

        value, query, key, norm = (
            summed(self.streams[number] @ rows.T) for number in (VALUES, QUERIES, KEYS, NORMS)
        )
        direct = change[:, None, 0] * (self.direct @ rows.T)
        once = self.once.of_neurons(change, rows)
        # what is left of the worth by all classes, which is needed for MLPs anyway, is theirs
        mlp = summed(worth) - value - query - key - norm
        parts = [direct, once, value - direct - once, query, key, mlp, norm]
        return torch.stack(parts, dim=-1)

    def of_write(
        self, write: Float[Tensor, "images tokens width"]
    ) -> Float[Tensor, "images directions 7"]:
        """What a change of the stream does, another one for each image, by class."""
        value, query, key, mlp, norm = torch.einsum("sbtmw,btw->sbm", self.streams, write)
        direct = torch.einsum("bmw,bw->bm", self.direct, write[:, 0])
        once = self.once.of_write(write)
        parts = [direct, once, value - direct - once, query, key, mlp, norm]
        return torch.stack(parts, dim=-1)

    def worth(
        self, rows: Float[Tensor, "chosen width"]
    ) -> Float[Tensor, "images tokens directions chosen"]:
        """Of one unit of each activation at each token, by all classes together."""
        return self.streams.sum(0) @ rows.T

    def take_back(self, block: LinearBlock, worth: Tensor) -> None:
        """From after a block to before it; `worth` is that of the block's own neurons."""
        through_mlp(block, self.streams, worth)
        through_attention(block, self.streams)
        self.once.see(block)


@torch.no_grad()
def backward(
    tower: Linearised, directions: Float[Tensor, "directions dim"], layers: Sequence[int]
) -> Iterator[tuple[int, Float[Tensor, "images directions neurons 7"]]]:
    """Effects along directions, layer by layer from the last one back to the first of `layers`."""
    gradients = Gradients(tower, directions)
    for layer in reversed(range(min(layers), tower.clip.layers)):
        block = tower.blocks[layer]
        worth = gradients.worth(block.neuron_rows)
        if layer in layers:
            yield layer, gradients.of_neurons(tower.activations[layer], block.neuron_rows, worth)
        if layer > min(layers):
            gradients.take_back(block, worth)


def through_mlp(block: LinearBlock, streams: Tensor, worth: Tensor) -> None:
    """Take gradients from after a block's MLP to before it, in place."""
    read = block.neurons_back(worth)
    streams[MLPS] += block.norm_2.linear_back(read)
    streams[NORMS] += block.norm_2.through_scale_back(read)


def through_attention(block: LinearBlock, streams: Tensor) -> None:
    """Take gradients from after a block's attention to before it, in place."""
    directions = streams.shape[3]
    stacked = streams.permute(1, 2, 0, 3, 4).flatten(2, 3)
    heads = block.heads_back(stacked)
    value = block.value_back(heads)
    query, key = block.patterns_back(_added_up(heads, directions))
    norm = block.norm_1
    everything = _added_up(value, directions) + query + key
    passed = norm.linear_back(value).unflatten(2, (len(STREAMS), directions))
    streams += passed.permute(2, 0, 1, 3, 4)
    streams[QUERIES] += norm.linear_back(query)
    streams[KEYS] += norm.linear_back(key)
    streams[NORMS] += norm.through_scale_back(everything)


def _added_up(stacked: Tensor, directions: int) -> Tensor:
    """The sum over streams of what is stacked by stream and direction."""
    by_stream: Tensor = stacked.unflatten(2, (len(STREAMS), directions))
    return by_stream.sum(2)


def _at_output(
    clip: Clip, gradient: Float[Tensor, "directions width"]
) -> Float[Tensor, "directions width"]:
    """A gradient at the input of `ln_post` from one at its output, but for the image's scale."""
    scaled = clip.post_gain.to(gradient) * gradient
    return scaled - scaled.mean(dim=-1, keepdim=True)


def _rows_of_heads(
    block: Block, gradient: Float[Tensor, "directions width"]
) -> Float[Tensor, "directions heads width"]:
    """What a change of the stream before a block is worth at the output through each head's values,
    for a head that takes all of one token whose scale is 1."""
    heads = torch.einsum("mw,hew->mhe", gradient, block.output.to(gradient))
    rows = torch.einsum("mhe,hew->mhw", heads, block.value.to(gradient))
    rows = rows * block.gain.to(gradient)
    return rows - rows.mean(dim=-1, keepdim=True)


class _ValueEnds:
    """Paths with one value edge: `second_order` along the directions, for the heads seen so far.

    Such a path ends in one head's output at the class token, so the worth of a neuron is a product
    of the head's attention over sigma with a row that no image changes but by a factor.
    """

    def __init__(self, tower: Linearised, gradient: Float[Tensor, "directions width"]) -> None:
        self.scale = 1 / (tower.norm_post.sigma[:, 0, 0] * tower.length)
        self.gradient = _at_output(tower.clip, gradient)
        self.attention: list[Tensor] = []
        self.rows: list[Tensor] = []

    def see(self, block: LinearBlock) -> None:
        """Add the heads of a block."""
        self.rows.append(_rows_of_heads(block.block, self.gradient))
        self.attention.append(block.attention[:, :, 0] / block.norm_1.sigma[:, None, :, 0, 0])

    def of_neurons(self, change: Tensor, rows: Tensor) -> Float[Tensor, "images directions chosen"]:
        """As `Gradients.of_neurons`, of these paths alone."""
        if not self.rows:
            return change.new_zeros(len(change), len(self.gradient), change.shape[2])
        pooled = torch.cat(self.attention, dim=1) @ change
        worth = torch.cat(self.rows, dim=1) @ rows.T
        return torch.einsum("bkn,mkn->bmn", pooled, worth) * self.scale[:, None, None]

    def of_write(self, write: Tensor) -> Float[Tensor, "images directions"]:
        """As `Gradients.of_write`, of these paths alone."""
        if not self.rows:
            return write.new_zeros(len(write), len(self.gradient))
        pooled = torch.cat(self.attention, dim=1) @ write
        worth = torch.cat(self.rows, dim=1)
        return torch.einsum("bkw,mkw->bm", pooled, worth) * self.scale[:, None]


def forward(
    tower: Linearised, layer: int, write: Float[Tensor, "images tokens chosen width"]
) -> Float[Tensor, "images chosen 7 dim"]:
    """What changes of the stream after a block do to the unit embedding, by class of path."""
    clip = tower.clip
    nothing = torch.zeros_like(write)
    parts = [write] + [nothing] * (len(CLASSES) - 1)
    for later in range(layer + 1, clip.layers):
        block = tower.blocks[later]
        parts = _past_mlp(block, _past_attention(block, parts))
    ends = [part[:, 0] for part in parts]
    norm = tower.norm_post
    at_output = [norm.linear(end) for end in ends]
    for number in range(DIRECT, QUERY):
        at_output[NORM] = at_output[NORM] + norm.through_scale(ends[number])
    for number in range(QUERY, len(CLASSES)):
        at_output[number] = at_output[number] + norm.through_scale(ends[number])
    projection = clip.projection.to(write)
    return torch.stack(at_output, dim=2) @ projection / tower.length[:, None, None, None]


def _past_attention(block: LinearBlock, parts: list[Tensor]) -> list[Tensor]:
    """Changes by class after a block's attention, given those before it."""
    norm = block.norm_1
    soft = [norm.linear(part) for part in parts[:QUERY]]
    together = soft[DIRECT] + soft[VALUE] + soft[HIGHER]
    scaled = norm.through_scale(parts[DIRECT] + parts[VALUE] + parts[HIGHER])
    found = [
        parts[DIRECT],
        parts[VALUE] + block.value(soft[DIRECT]),
        parts[HIGHER] + block.value(soft[VALUE] + soft[HIGHER]),
    ]
    for part in parts[QUERY:]:
        found.append(part + block.attend(norm.linear(part) + norm.through_scale(part)))
    found[QUERY] = found[QUERY] + block.query(together)
    found[KEY] = found[KEY] + block.key(together)
    found[NORM] = found[NORM] + block.attend(scaled)
    return found


def _past_mlp(block: LinearBlock, parts: list[Tensor]) -> list[Tensor]:
    """Changes by class after a block's MLP, given those before it."""
    norm = block.norm_2
    together = parts[DIRECT] + parts[VALUE] + parts[HIGHER]
    found = [*parts[:QUERY]]
    for part in parts[QUERY:]:
        found.append(part + block.mlp(norm.linear(part) + norm.through_scale(part)))
    found[MLP] = found[MLP] + block.mlp(norm.linear(together))
    found[NORM] = found[NORM] + block.mlp(norm.through_scale(together))
    return found


def chosen_directions(
    clip: Clip, texts: Sequence[str] | None, directions: Tensor | None
) -> Float[Tensor, "directions dim"]:
    """Return rows of the embedding: those of texts, or the directions themselves.

    Raises
    ------
    SecondLensError
        Neither of the two, or both; or rows of another width.
    """
    if (texts is None) == (directions is None):
        raise SecondLensError(
            "paths are followed along directions: give texts or directions, and not both"
        )
    found = clip.encode_text(texts) if texts is not None else directions
    assert found is not None
    if found.ndim != 2 or found.shape[1] != clip.dim or not len(found):
        raise SecondLensError(
            f"directions are rows of the embedding, [directions, {clip.dim}], and these are "
            f"{list(found.shape)}"
        )
    return found.to(clip.device)
