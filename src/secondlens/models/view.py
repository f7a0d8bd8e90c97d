"""One view over the image and text tower of a CLIP: its blocks, weights and encoders.

The mathematics (`capture`, `effects`) reads a `Clip`, its `Block`s and its `Reader`, never the
model behind them, so another family of models needs no more than a function that builds a `Clip`.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError, SecondLensWarning, UnsupportedModel
from . import picture_reader
from .blocks import Attention, Block, detached
from .halves import Halves, halves
from .open_clip.heads import MlpHead
from .readers import AttentionPool, ClassToken, Reader, normalises

Images = Tensor | Sequence[Image]
"""Preprocessed images, float [images, 3, height, width], or PIL images; `Clip.prepare` checks."""

TEXTS_PER_BATCH = 256

BLACK, WHITE = 0.1, 0.9
"""Below one and above the other lie pixels of nearly any batch that was not normalised."""
UNNORMALISED = (
    "all pixels of a batch lie between 0 and 1, from black to white: they look as if they were not "
    "normalised, and the model sees them paler than they are; normalise them as its preprocessing "
    "does, or give the pictures themselves"
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Clip:
    """A CLIP or another vision tower, and what effects need of it.

    Weights are read from the model when they are needed: a model that was moved, converted or given
    another checkpoint after it was wrapped is explained as it is now.
    """

    name: str
    """As others may see it: of a path, the last part."""
    activation: str
    """`"gelu"`, `"gelu_tanh"`, `"quick_gelu"`, or the class name of another function."""
    blocks: tuple[Block, ...]
    ln_post: Any
    """The last norm; of a tower without one, the module whose output is projected."""
    patches: Any
    """The first layer: it takes images in the dtype of its weight."""
    read_projection: Callable[[], Float[Tensor, "width dim"]]
    image_size: tuple[int, int]
    grid: tuple[int, int]
    """Rows and columns of patches: tokens are the `prefix`, then the patches row by row."""
    batch_first: bool
    """Whether blocks see [images, tokens, width] rather than [tokens, images, width]."""
    maps: bool = False
    """Whether the only block gives maps [images, channels, rows, columns]. Tokens are their places
    row by row, behind the mean of all places where there is a `prefix`."""
    model: nn.Module
    image_tower: Callable[[Tensor], Tensor]
    text_tower: Callable[[list[str]], Tensor] | None
    preprocess: Callable[[Image], Tensor] | None
    view_of: Callable[[nn.Module], "Clip"]
    """The same view of a copy of the model, in another precision or place."""
    text_view: Callable[["Clip"], "Clip"] | None = None
    """What makes `text`."""
    reader: Reader = field(default_factory=ClassToken)
    prefix: int = 1
    """Tokens before the patches: the class token, then registers, where there are any."""
    read_offset: Callable[[], Float[Tensor, " dim"]] | None = None
    """What the projection adds, where it has a bias."""
    head: MlpHead | None = None
    """What turns the projection's output into the embedding, where that is not linear."""
    context_length: int = 77
    """Tokens of a text, with the marks of start and end; the tokenizer cuts what is longer."""
    tokenizer: Any = None
    """What makes tokens of texts, where there is one."""
    unit_layers: tuple[int, ...] = ()
    """MLP layers whose neurons are units, see `units`; where there are some, no others are read."""
    origin: str = ""
    """The name with its folders where that was a path, to tell models apart on this machine;
    never written where others may read it."""

    def __repr__(self) -> str:
        return (
            f"Clip({self.name!r}, {self.layers} layers, {self.heads} heads, {self.neurons} neurons)"
        )

    @cached_property
    def text(self) -> "Clip":
        """The text tower as a model of its own, whose images are texts: see `TextClip`.

        Raises
        ------
        UnsupportedModel
            The model has none, or one that computes something that the effects do not describe.
        """
        if self.text_view is None:
            raise UnsupportedModel(f"{self.name} has no text tower whose neurons can be explained")
        return self.text_view(self)

    @property
    def post_gain(self) -> Float[Tensor, " width"]:
        """Of `ln_post`, as `post_bias` and `post_eps`; one where nothing is normalised."""
        return self._of_post("weight", 1.0)

    @property
    def post_bias(self) -> Float[Tensor, " width"]:
        """Of `ln_post`."""
        return self._of_post("bias", 0.0)

    def _of_post(self, name: str, otherwise: float) -> Tensor:
        if self.normalises:
            return detached(getattr(self.ln_post, name))
        projection = self.projection
        return projection.new_full((len(projection),), otherwise)

    @property
    def normalises(self) -> bool:
        """Whether `ln_post` is a norm."""
        return normalises(self.ln_post)

    @property
    def post_eps(self) -> float:
        """Of `ln_post`."""
        eps: float = self.ln_post.eps
        return eps

    @property
    def projection(self) -> Float[Tensor, "width dim"]:
        """From the output of `ln_post` to the embedding, or to what the `head` reads."""
        return self.read_projection()

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that the image tower takes."""
        dtype: torch.dtype = self.patches.weight.dtype
        return dtype

    @property
    def layers(self) -> int:
        """Blocks; each has one MLP layer."""
        return len(self.blocks)

    @property
    def heads(self) -> int:
        """Of one block's attention; where blocks have none, of the pool that reads them."""
        if heads := self.blocks[0].heads:
            return heads
        return self.reader.pool.heads if isinstance(self.reader, AttentionPool) else 0

    def attentions(self, layer: int) -> Mapping[int, Attention]:
        """Return those whose heads carry values of an MLP layer's neurons to the output, in order.

        Keys are numbers of blocks; an attention pool counts as the block after the last.
        """
        return self.reader.attentions(self.blocks, layer)

    def path_count(self, layer: int) -> int:
        """Return how many heads carry values of an MLP layer's neurons to the output (K)."""
        return sum(attention.heads for attention in self.attentions(layer).values())

    @property
    def neurons(self) -> int:
        """Of one MLP layer; units, where it has some."""
        return self.blocks[self.unit_layers[0] if self.unit_layers else 0].neuron_rows.shape[0]

    @property
    def width(self) -> int:
        """Of the residual stream (D)."""
        return self.blocks[0].neuron_rows.shape[1]

    @property
    def dim(self) -> int:
        """Of the embedding (d)."""
        return self.projection.shape[1] if self.head is None else self.head.dim

    @property
    def tokens(self) -> int:
        """Of one image: the prefix and the patches."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.patches.weight.device
        return device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Float32, or float64 for a float64 model: attention, scales and effects use it."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def last_effect_layer(self) -> int:
        """The last MLP layer that attention reads before the output."""
        return self.layers - 1 if isinstance(self.reader, AttentionPool) else self.layers - 2

    @property
    def weights_hash(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of all weights of both towers, as they are
        now; computed again only after they changed."""
        state = tuple(map(_state, chain(self.model.parameters(), self.model.buffers())))
        known: tuple[Any, str] | None = vars(self).get("_hashed")
        if known is None or known[0] != state:
            known = state, _hash(self.model.state_dict())
            object.__setattr__(self, "_hashed", known)
        return known[1]

    @cached_property
    def halves(self) -> Halves | None:
        """Of `preprocess`, where they are known."""
        return halves(self.preprocess)

    def check_layer(self, layer: int, *, last: bool = False) -> int:
        """Return `layer` if it has second-order effects (or, with `last`, if it exists).

        Raises
        ------
        SecondLensError
            No number, there is no such MLP layer, or no attention comes after it.
        """
        if not isinstance(layer, Integral):
            raise SecondLensError(f"a layer is a whole number, and this is {layer!r}")
        top = self.layers - 1 if last else self.last_effect_layer
        if self.unit_layers and layer not in self.unit_layers and 0 <= layer < self.layers:
            raise SecondLensError(
                f"layer {layer} of {self.name} has no units: choose one of "
                f"{', '.join(map(str, self.unit_layers))}, or load the model without units"
            )
        if 0 <= layer <= top:
            return layer
        if top < 0 and not self.heads:
            raise SecondLensError(self._without_attention)
        if layer == self.layers - 1:
            raise SecondLensError(
                f"layer {layer} is the last of {self.name}, and no later attention layer reads it: "
                f"second-order effects exist for layers 0 to {top}"
            )
        raise SecondLensError(f"{self.name} has no layer {layer}: choose one of 0 to {top}")

    def chosen_layers(self, layers: Any, *, last: bool = False) -> list[int]:
        """Return some MLP layers in order, each once; "all" are those that `check_layer` accepts.

        Raises
        ------
        SecondLensError
            Neither a list nor "all", an empty list, or a layer that `check_layer` refuses.
        """
        if isinstance(layers, Integral) or (isinstance(layers, str) and layers != "all"):
            raise SecondLensError(
                f'layers are a list such as [8, 9, 10], or "all", and these are {layers!r}'
            )
        every: Iterable[int] = range(self.layers if last else self.last_effect_layer + 1)
        if self.unit_layers:
            every = [layer for layer in every if layer in self.unit_layers]
        given = every if isinstance(layers, str) else layers
        chosen = sorted({self.check_layer(layer, last=last) for layer in given})
        if not chosen and isinstance(layers, str) and not self.heads:
            raise SecondLensError(self._without_attention)
        if not chosen:
            raise SecondLensError("no layers are named: name at least one, or all")
        return chosen

    def check_direct(self, what: str) -> None:
        """Raise `UnsupportedModel` if nothing but a pool writes to the output, which `what` needs
        to be otherwise."""
        if isinstance(self.reader, AttentionPool):
            raise UnsupportedModel(
                f"{self.name} has no {what}: an attention pool reads its output from the patches, "
                "and nothing reaches it otherwise"
            )

    @property
    def reads_texts(self) -> bool:
        """Whether its images are texts, see `text`."""
        return False

    @property
    def _without_attention(self) -> str:
        return (
            f"{self.name} has no second-order effects: it has no attention, so no value carries "
            "what a channel writes, and all effects of its channels are direct"
        )

    def check_images(self, what: str) -> None:
        """Raise `UnsupportedModel` if the inputs are texts."""
        if self.reads_texts:
            raise UnsupportedModel(f"{what} are of image towers, and {self.name} reads texts")

    def check_class_token(self, what: str) -> None:
        """Raise `UnsupportedModel` if the output is not the class token, which `what` needs."""
        if not isinstance(self.reader, ClassToken):
            raise UnsupportedModel(
                f"{what} of {self.name} cannot be told: that is known here for models whose class "
                "token makes the output, and the output of this one is read from other tokens"
            )

    def batch_major(self, states: Float[Tensor, "*_"]) -> Float[Tensor, "images tokens features"]:
        """What a module inside a block saw or returned, as [images, tokens, features]."""
        if states.dim() == 4:
            places = states.flatten(2).mT
            means = places.mean(dim=1, keepdim=True).expand(-1, self.prefix, -1)
            return torch.cat([means, places], dim=1)
        return states if self.batch_first else states.transpose(0, 1)

    def noise(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random input on the CPU that is the same each time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, *self.image_size, generator=generator, dtype=dtype)

    def as_module(self, tokens: Float[Tensor, "images tokens features"]) -> Float[Tensor, "*_"]:
        """[images, tokens, features] as modules inside a block see them: undoes `batch_major`."""
        if self.maps:
            places: Tensor = tokens[:, self.prefix :].mT.unflatten(-1, self.grid)
            return places
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def prepare(self, images: Any) -> Float[Tensor, "images 3 height width"]:
        """Images as the image tower takes them: its shape, device and dtype.

        Parameters
        ----------
        images
            A float tensor already preprocessed; or pictures, which are turned upright and go
            through the model's own inference transform: one PIL image or a list of them, the path
            of a file or of a folder, a list of paths, or whatever else `fit` takes, as long as all
            of it fits into memory.

        Raises
        ------
        SecondLensError
            No images, something else than images, a picture that cannot be read, a tensor of
            another shape or of integers, or pictures for a model that came without its transform.
        """
        if isinstance(images, Tensor | Sequence) and len(images) == 0:
            raise SecondLensError(f"{self.name} got no images: give at least one")
        given = isinstance(images, Tensor)
        pixels = images if given else self._preprocessed(picture_reader(images))
        if tuple(pixels.shape[1:]) != (3, *self.image_size) or not pixels.is_floating_point():
            height, width = self.image_size
            raise SecondLensError(
                f"{self.name} takes preprocessed float images [images, 3, {height}, {width}], and "
                f"these are {pixels.dtype} {list(pixels.shape)}"
            )
        # a look at pixels of an accelerator would wait for it
        if given and pixels.device.type == "cpu" and self._look_unnormalised(pixels):
            warnings.warn(UNNORMALISED, SecondLensWarning, stacklevel=2)
        return pixels.to(self.device, self.dtype)

    def _look_unnormalised(self, images: Tensor) -> bool:
        """Whether pixels go from 0 to 1, and those of the model's own preprocessing below 0."""
        if images[:1].amin() < 0:  # which is enough for nearly every batch
            return False
        low, high = images.aminmax()
        return bool(0 <= low < BLACK and WHITE < high <= 1) and self._normalises

    @cached_property
    def _normalises(self) -> bool:
        if self.preprocess is None:
            return True
        black = new_image("RGB", self.image_size[::-1])
        return bool(self.preprocess(black).amin() < 0)

    def _preprocessed(self, images: Sequence[Image] | Tensor) -> Tensor:
        if isinstance(images, Tensor):
            return images
        if self.preprocess is None:
            raise SecondLensError(
                f"{self.name} came without preprocessing: pass preprocess= when wrapping the "
                "model, or give a float tensor of preprocessed images"
            )
        return torch.stack([self.preprocess(image) for image in images])

    @undisturbed
    @torch.no_grad()
    def encode_image(self, images: Any) -> Float[Tensor, "images dim"]:
        """Representations r, before any normalisation, of images that `prepare` takes."""
        check_eval(self.model)
        return self.image_tower(self.prepare(images))

    @contextmanager
    def class_token_only(self) -> Iterator[None]:
        """Inside the `with`, the last block is computed for the class token alone.

        What reads the class token gets the same numbers, up to rounding, for less work: no keys
        and values, and one token in the MLP. What reads patches of the last block must not use it.
        A tower that reads other tokens too, or whose block cannot be run in halves, is left as it
        is.
        """
        block = self.blocks[-1]
        reads_one = isinstance(self.reader, ClassToken)
        if not reads_one or block.mlp_half is None or "forward" in vars(block.module):
            yield
            return

        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            assert block.mlp_half is not None
            y = self.batch_major(block.ln_1(x))
            attended = block.attended(block.class_rows(y), y)
            return block.mlp_half(x[class_rows] + self.as_module(attended[:, None]))

        class_rows = (slice(None), slice(1)) if self.batch_first else (slice(1),)
        block.module.forward = forward
        try:
            yield
        finally:
            del block.module.forward

    @checked
    @undisturbed
    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One unit row for each text, float32 (float64 for a float64 model).

        Raises
        ------
        SecondLensError
            A text alone and not in a list, or a model that came without a tokenizer or a text
            tower.
        """
        check_eval(self.model)
        if self.text_tower is None:
            raise SecondLensError(
                f"{self.name} came without a tokenizer: pass tokenizer= when wrapping the model, "
                "or put the tokenizer's files beside the weights"
            )
        starts = range(0, len(texts), TEXTS_PER_BATCH)
        batches = (self.text_tower(list(texts[i : i + TEXTS_PER_BATCH])) for i in starts)
        rows = [F.normalize(batch.to(self.compute_dtype), dim=-1) for batch in batches]
        empty = torch.empty(0, self.dim, dtype=self.compute_dtype, device=self.device)
        return torch.cat(rows) if rows else empty


def _state(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to, moved or converted."""
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version, tensor.dtype, tensor.device


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        name = name.replace("_orig_mod.", "")  # torch.compile puts it in
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def check_eval(model: nn.Module) -> None:
    """Raise `SecondLensError` if any part of `model` is in training mode.

    Dropout would make each pass another model; switching the mode is left to its owner.
    """
    if any(module.training for module in model.modules()):
        raise SecondLensError("the model is in training mode: call model.eval() first")


@contextmanager
def hooked(
    hooks: Iterable[tuple[nn.Module, Callable[..., Any]]],
    before: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
) -> Iterator[None]:
    """Forward hooks, and hooks `before` a module runs, that live only inside the `with`."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield
