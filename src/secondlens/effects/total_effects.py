"""Total effects of neurons: all paths together, along some axes of the embedding.

The seven classes of `all_paths` add up to a derivative times an activation. Where their sum alone
is wanted, one ordinary adjoint gives it along one direction for all neurons of all layers,

    <e_bn, q> = sum over tokens t of  p_btn <w_n, lambda_bt(q)>

with lambda the gradient of <r, q> / |r| at the stream after the neuron's block, |r| held. That
costs about as many operations as an encoding, so the axes q are few: the principal axes of the
effects themselves. What lies outside of them is measured on random directions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.reader import Batch, Reader, in_parts
from ..devices import wide
from ..models.view import Clip
from ..progress import tracked
from .capture import NotFinite
from .linearised import LinearBlock, Linearised, LinearNorm, linearise
from .streaming import of_finite
from .value_paths import chunks

IMAGES_PER_PASS = 8
"""On a CPU; elsewhere all of a batch."""
NUMBERS_ON_CPU, NUMBERS_ELSEWHERE = 2**23, 2**29
"""That the gradients of a pass may take: on a CPU they best stay near its cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Totals:
    """Total effects of the neurons of some layers on a batch of images."""

    positions: list[int]
    """Of the images, in the source."""
    embedding: Float[Tensor, "images dim"]
    """Unit rows."""
    effects: dict[int, Float[Tensor, "neurons images axes"]]
    """By layer: coordinates along the axes, in units of the unit embedding."""
    activations: dict[int, Float[Tensor, "tokens neurons"]]
    """By layer, summed over the images."""


class TotalReader:
    """Reads batches of images as `Totals`.

    Parameters
    ----------
    clip
        The model.
    axes
        Rows of the embedding, orthonormal or not.
    layers
        MLP layers, the last one too.
    """

    def __init__(self, clip: Clip, axes: Float[Tensor, "axes dim"], layers: Sequence[int]) -> None:
        self.clip, self.layers = clip, sorted(layers)
        self.axes = axes.to(clip.device, clip.compute_dtype)

    def through(self, reader: Reader) -> Callable[[Batch], Totals | None]:
        """What makes totals of batches, leaving out images on which the network is not finite."""
        return partial(of_finite, reader, self.of)

    def stream(self, reader: Reader, what: str, progress: bool) -> Iterator[Totals]:
        """Totals of all batches of a reader; where memory is short, of parts of them."""
        batches = tracked(reader, what, progress)
        for _, found in in_parts(batches, self.clip, self.through(reader)):
            if found is not None:
                yield found

    def of(self, batch: Batch) -> Totals:
        """Totals of a batch; raises what `read` raises."""
        return self.read(batch.on(self.clip.device), batch.positions)

    @torch.no_grad()
    def read(
        self, pixels: Float[Tensor, "images 3 height width"], positions: Sequence[int] = ()
    ) -> Totals:
        """Totals of preprocessed images.

        Raises
        ------
        NotFinite
            The network is not finite on some of them.
        """
        size = IMAGES_PER_PASS if self.clip.device.type == "cpu" else len(pixels)
        representations, effects, activations = [], [], []
        for some in pixels.split(size):
            tower = linearise(self.clip, some)
            representations.append(tower.representation)
            effects.append(total_effects(tower, self.axes, self.layers))
            activations.append({n: tower.activations[n].sum(0) for n in self.layers})
        together = torch.cat(representations)
        finite = together.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise NotFinite("the output", finite.tolist())
        return Totals(
            positions=list(positions),
            embedding=F.normalize(together, dim=-1),
            effects={n: torch.cat([each[n] for each in effects], dim=1) for n in self.layers},
            activations={n: torch.stack([e[n] for e in activations]).sum(0) for n in self.layers},
        )


@torch.no_grad()
def total_effects(
    tower: Linearised, axes: Float[Tensor, "axes dim"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "neurons images axes"]]:
    """Total effects along some axes, by layer.

    Parameters
    ----------
    tower
        The derivative at a batch of images.
    axes
        Directions of the embedding.
    layers
        MLP layers, the last one too.
    """
    clip, images = tower.clip, len(tower.length)
    found = {layer: axes.new_empty(clip.neurons, images, len(axes)) for layer in layers}
    for some in chunks(len(axes), axes_per_pass(clip, images)):
        for layer, worth in backward(tower, axes[some], layers):
            effects = (tower.activations[layer][:, :, None] * worth).sum(1)
            found[layer][:, :, some] = effects.permute(2, 0, 1)
    return found


@torch.no_grad()
def by_token(
    tower: Linearised,
    axes: Float[Tensor, "axes dim"],
    vectors: Mapping[int, tuple[Int[Tensor, " chosen"], Float[Tensor, "chosen vectors axes"]]],
) -> Float[Tensor, "images tokens vectors"]:
    """Products of total effects with vectors, by the token at which the neurons act, added up over
    neurons.

    Parameters
    ----------
    tower, axes
        As for `total_effects`.
    vectors
        By layer: neurons, and their vectors in coordinates along the axes.
    """
    _, kinds = next(iter(vectors.values()))
    found = axes.new_zeros(len(tower.length), tower.clip.tokens, kinds.shape[1])
    for some in chunks(len(axes), axes_per_pass(tower.clip, len(found))):
        for layer, worth in backward(tower, axes[some], list(vectors)):
            neurons, own = vectors[layer]
            effects = tower.activations[layer][:, :, None, neurons] * worth[..., neurons]
            found += torch.einsum("btan,nva->btv", effects, own[..., some])
    return found


def axes_per_pass(clip: Clip, images: int) -> int:
    """How many axes the gradients of a reverse pass best have."""
    most = NUMBERS_ON_CPU if clip.device.type == "cpu" else NUMBERS_ELSEWHERE
    return max(1, most // (_of_one_axis(clip) * images))


def _of_one_axis(clip: Clip) -> int:
    """Numbers that a gradient of one image along one axis takes on its way back."""
    width = clip.projection.shape[0]
    return clip.tokens * (5 * width + 2 * clip.neurons) + 2 * clip.heads * clip.tokens**2


def pass_numbers(clip: Clip, batch_size: int, axes: int) -> int:
    """Numbers that a batch takes besides its effects along some axes: gradients, and what each
    block did."""
    on_cpu = clip.device.type == "cpu"
    images = min(batch_size, IMAGES_PER_PASS) if on_cpu else batch_size
    width = clip.projection.shape[0]
    of_block = clip.tokens * (3 * clip.neurons + 9 * width) + clip.heads * clip.tokens**2
    weights = width * (2 * clip.neurons + 4 * width)
    gradients = min(axes, axes_per_pass(clip, images)) * images * _of_one_axis(clip)
    return clip.layers * (images * of_block + weights) + gradients


def backward(
    tower: Linearised, axes: Float[Tensor, "axes dim"], layers: Sequence[int]
) -> Iterator[tuple[int, Float[Tensor, "images tokens axes neurons"]]]:
    """What one unit of each activation is worth, from the last layer back to the first one."""
    clip = tower.clip
    at_output = axes @ clip.projection.to(axes).T
    at_end = _norm_back(tower.norm_post, at_output) / tower.length[:, None, None]
    gradient = at_end.new_zeros(len(at_end), clip.tokens, *at_end.shape[1:])
    gradient[:, 0] = at_end
    for layer in reversed(range(min(layers), clip.layers)):
        block = tower.blocks[layer]
        worth = gradient @ block.neuron_rows.T
        if layer in layers:
            yield layer, worth
        if layer > min(layers):
            gradient += _norm_back(block.norm_2, block.neurons_back(worth))
            gradient += _norm_back(block.norm_1, _attention_back(block, gradient))


def _norm_back(norm: LinearNorm, gradient: Tensor) -> Tensor:
    return norm.linear_back(gradient) + norm.through_scale_back(gradient)


def _attention_back(block: LinearBlock, gradient: Tensor) -> Tensor:
    heads = block.heads_back(gradient)
    query, key = block.patterns_back(heads)
    found: Tensor = block.value_back(heads) + query + key
    return found


class TotalProjector:
    """Takes total effects to <effect, vector>, as `Projector` takes coefficients.

    Parameters
    ----------
    axes
        Orthonormal rows, along which effects are known: of a vector, what lies in their span
        counts.
    vectors
        Some for each neuron.
    """

    def __init__(
        self, axes: Float[Tensor, "axes dim"], vectors: Float[Tensor, "neurons vectors dim"]
    ) -> None:
        self.axes = axes
        self.weights: Float[Tensor, "neurons vectors axes"] = vectors.to(axes) @ axes.T

    def __call__(
        self, effects: Float[Tensor, "neurons images axes"]
    ) -> Float[Tensor, "images neurons vectors"]:
        """The products for a batch of images."""
        return torch.bmm(effects, self.weights.to(effects).mT).transpose(0, 1)


def principal_axes(moment: Float[Tensor, "dim dim"], count: int) -> Float[Tensor, "count dim"]:
    """Unit rows: the eigenvectors of a second moment with the largest eigenvalues, largest first.

    The largest number of each is positive.
    """
    axes = torch.linalg.eigh(wide(moment)).eigenvectors.flip(1).T[:count]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    found: Tensor = (axes * largest.sign()).to(moment)
    return found


def outside(axes: Float[Tensor, "axes dim"], count: int) -> Float[Tensor, "count dim"]:
    """Random directions outside of the span of orthonormal axes, the same ones at each call.

    The mean of <e, v>^2 over such v is the squared length of what of e lies outside.
    """
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(count, axes.shape[1], generator=generator, dtype=torch.float64).to(axes)
    found: Tensor = normals - normals @ axes.T @ axes
    return found
