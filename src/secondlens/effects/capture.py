"""Read a forward pass: how strongly each neuron reaches each later head's class token.

For neuron n of layer l and path k = (j, h), head h of a later block j, the coefficient is

    c[b,n,k] = sum_t  A[b,j,h,t] * p[b,t,n] / sigma[b,j,t]

with p the activation, A the class token's attention and sigma the scale of `ln_1`. It is all of
Eq. 5 (arXiv 2406.04341), with LayerNorm as in its appendix A.6, that depends on the image. Where
the output is the mean of the patches, A is the mean of their rows; where a pool of heads reads
them, it is the row of the pool's query, and the pool is the only block j.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import get_ident
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import SecondLensError
from ..models.readers import normalises
from ..models.view import Clip, hooked


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """What a forward pass showed of a batch of images, before anything is pooled over tokens."""

    activations: dict[int, Float[Tensor, "images tokens neurons"]]
    """By MLP layer, in the precision of the model."""
    attention_over_sigma: dict[int, Float[Tensor, "images heads tokens"]]
    """A / sigma by block j, from the one after the first layer on."""
    token_means: dict[int, Float[Tensor, "images tokens"]]
    """The mean that `ln_1` of a block subtracts."""
    scale: Float[Tensor, " images"]
    """1 / (sigma_post * norm of r): effects are then parts of the normalised embedding."""
    post_mean: Float[Tensor, " images"]
    post_sigma: Float[Tensor, " images"]
    """Of what is read, at `ln_post`; 0 and 1 where it is read after it, or nothing is divided."""
    post_token_sigma: Float[Tensor, "images tokens"] | None
    """What `ln_post` divides each token by, where their mean is taken after it."""
    place: Int[Tensor, " images"] | None
    """Which token is read, where the input says so."""
    sound: Bool[Tensor, " 2"]
    """Whether all numbers are finite, and whether the representation is that of the pass."""

    @cached_property
    def all_rows(self) -> Float[Tensor, "images _paths tokens"]:
        """A / sigma of the paths of the first layer, which end with those of every later layer."""
        return torch.cat(list(self.attention_over_sigma.values()), dim=1)

    def first_row(self, layer: int) -> int:
        """Return where in `all_rows` the paths of an MLP layer begin."""
        return sum(rows.shape[1] for j, rows in self.attention_over_sigma.items() if j <= layer)

    def path_scales(self, layer: int) -> Float[Tensor, "images _paths"]:
        """Return s0 of `Pooled`."""
        return self.all_rows[:, self.first_row(layer) :].sum(dim=-1)

    def path_means(self, layer: int) -> Float[Tensor, "images _paths"]:
        """Return s1 of `Pooled`."""
        means = [
            torch.bmm(rows, self.token_means[j][:, :, None])[:, :, 0]
            for j, rows in self.attention_over_sigma.items()
            if j > layer
        ]
        return torch.cat(means, dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """What second-order effects need of a batch of images, by MLP layer where it is a dict.

    Paths k = (j, h) are ordered by block j, from the layer's next to the last, then by head h.
    """

    coefficients: dict[int, Float[Tensor, "images _paths neurons"]]
    """c, without the image's scale; of one neuron and image, they lie side by side in memory."""
    scale: Float[Tensor, " images"]
    """1 / (sigma_post * norm of r): effects are then parts of the normalised embedding."""
    path_scales: dict[int, Float[Tensor, "images _paths"]]
    """s0 = sum over tokens of A / sigma."""
    path_means: dict[int, Float[Tensor, "images _paths"]]
    """s1 = sum over tokens of A * mu / sigma, mu the mean that `ln_1` subtracts."""
    post_mean: Float[Tensor, " images"]
    post_sigma: Float[Tensor, " images"]
    """Of the class token at `ln_post`."""
    activations: dict[int, Float[Tensor, "images tokens neurons"]] = field(default_factory=dict)
    attention_over_sigma: dict[int, Float[Tensor, "images heads tokens"]] = field(
        default_factory=dict
    )
    """A / sigma by block j."""
    post_token_sigma: Float[Tensor, "images tokens"] | None = None
    """See `Pass`, as `place`."""
    place: Int[Tensor, " images"] | None = None


ANOTHER_PASS = (
    "pool takes the representation that the last forward pass gave, as encode_image returned it "
    "and not normalised"
)


class NotFinite(SecondLensError):
    """NaN or infinity in the network, on some images or on all."""

    def __init__(self, where: str, finite: list[bool]) -> None:
        super().__init__(f"NaN or infinity in {where}: check the images, or use a wider precision")
        self.finite = finite
        """Whether all is well, by image."""


class Capture:
    """Hooks on one forward pass after another, gone when the `with` ends.

        with Capture(clip, layers) as capture:
            representation = clip.encode_image(images)
            pooled = capture.pool(representation)

    Only what heads read, the activations of the wanted layers and `ln_post` are hooked, and nothing
    they return is changed. Attention, scales and coefficients are float32 (float64 for a
    float64 model) whatever the precision of the model, and carry no gradient.

    Parameters
    ----------
    clip
        The model.
    layers
        MLP layers to read, in any order.
    keep_activations
        Whether `Pooled` also holds `activations` and `attention_over_sigma`.

    Raises
    ------
    SecondLensError
        No layers, or one that `Clip.check_layer` refuses.
    """

    def __init__(self, clip: Clip, layers: Iterable[int], keep_activations: bool = False) -> None:
        self.clip = clip
        self.layers = sorted({clip.check_layer(layer) for layer in layers})
        if not self.layers:
            raise SecondLensError("no layers to capture: name at least one")
        self.keep_activations = keep_activations
        self._attentions = clip.attentions(self.layers[0])
        self._place: Tensor | None = None
        self._hooks = ExitStack()
        self._reset()

    def __enter__(self) -> "Capture":
        blocks = self.clip.blocks
        before: list[tuple[nn.Module, Callable[..., Any]]] = [(self.clip.patches, self._see_input)]
        before += [
            (blocks[layer].mlp_output, partial(self._see_activation, layer))
            for layer in self.layers
        ]
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (attention.ln_1, partial(self._see_heads, j))
            for j, attention in self._attentions.items()
        ]
        hooks.append((self.clip.ln_post, self._see_output))
        self._hooks.enter_context(hooked(hooks, before))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()
        self._reset()

    def pool(self, representation: Float[Tensor, "images dim"]) -> Pooled:
        """Coefficients of the pass that gave `representation`, whose activations are then let go.

        Raises
        ------
        SecondLensError
            What `read` raises.
        """
        seen = self.read(representation)
        rows = {layer: seen.all_rows[:, seen.first_row(layer) :] for layer in self.layers}
        with self._exactly():
            return Pooled(
                coefficients={
                    layer: torch.bmm(activation.mT.to(seen.scale.dtype), rows[layer].mT).mT
                    for layer, activation in seen.activations.items()
                },
                scale=seen.scale,
                path_scales={layer: seen.path_scales(layer) for layer in self.layers},
                path_means={layer: seen.path_means(layer) for layer in self.layers},
                post_mean=seen.post_mean,
                post_sigma=seen.post_sigma,
                activations=seen.activations if self.keep_activations else {},
                attention_over_sigma=seen.attention_over_sigma if self.keep_activations else {},
                post_token_sigma=seen.post_token_sigma,
                place=seen.place,
            )

    def read(self, representation: Float[Tensor, "images dim"], *, check: bool = True) -> Pass:
        """Return what the pass that gave `representation` showed, and let go of it here.

        Parameters
        ----------
        representation
            What `clip.encode_image` gave, not normalised.
        check
            Whether to wait for the device and look at `Pass.sound`; if not, the caller does.

        Raises
        ------
        SecondLensError
            No complete pass since the last call, a representation of another pass or a
            normalised one, or NaN or infinity somewhere in the network.
        """
        if self._post is None:
            raise SecondLensError(
                "no complete forward pass to pool: call clip.encode_image inside the Capture "
                "before each pool"
            )
        representation = representation.to(self.clip.compute_dtype)
        if representation.shape != self._post.embedded.shape:
            raise SecondLensError(ANOTHER_PASS)
        with self._exactly():
            seen = Pass(
                activations=self._activations,
                attention_over_sigma=self._rows,
                token_means=self._means,
                scale=1 / (self._post.sigma * representation.norm(dim=-1)),
                post_mean=self._post.mean,
                post_sigma=self._post.sigma,
                post_token_sigma=self._post.token_sigma,
                place=self._place,
                sound=self._sound(representation),
            )
            if check:
                finite, same = seen.sound.tolist()
                if not finite:
                    self._say_where()
                if not same:
                    raise SecondLensError(ANOTHER_PASS)
        self._reset()
        return seen

    def _reset(self) -> None:
        self._activations: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        self._means: dict[int, Tensor] = {}
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}
        self._post: Post | None = None
        self._thread: int | None = None

    def _see_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._place = self.clip.reader.place(inputs[0])

    def _see_activation(self, layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        starts = layer == self.layers[0]
        if starts and (self._post is not None or self._thread in (None, get_ident())):
            self._reset()  # the pass before this one was pooled, dropped, or broken off
            self._thread = get_ident()
        self._expect(layer not in self._activations)
        self._activations[layer] = self.clip.batch_major(inputs[0]).detach()

    def _see_heads(
        self, j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        self._expect(j not in self._means)
        clip, attention = self.clip, self._attentions[j]
        dtype = clip.compute_dtype
        with self._exactly():
            normalised = clip.batch_major(attention.read_from(inputs, output)).detach()
            if normalises(module):
                stream = clip.batch_major(inputs[0])
                self._means[j], sigma = norm_statistics(stream, attention.eps, dtype)
            else:
                self._means[j], sigma = _no_norm(normalised[:, :, 0].to(dtype))
            if clip.reader.waits:
                self._waiting[j] = normalised, sigma
            else:
                rows = clip.reader.rows(attention, normalised, dtype, place=self._place)
                self._rows[j] = rows / sigma[:, None]

    def _see_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._expect(self._post is None)
        with self._exactly():
            self._post = read_post(self.clip, inputs[0], output, self._place)
            for j, (normalised, sigma) in self._waiting.items():
                rows = self.clip.reader.rows(
                    self._attentions[j],
                    normalised,
                    self.clip.compute_dtype,
                    self._post.token_sigma,
                )
                self._rows[j] = rows / sigma[:, None]
        self._waiting.clear()

    def _expect(self, in_order: bool) -> None:
        if not in_order or self._post is not None or self._thread != get_ident():
            raise SecondLensError("two forward passes overlap in one Capture: run one at a time")

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        # a caller's autocast would round the sums that effects are made of
        with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
            yield

    def _sound(self, representation: Tensor) -> Bool[Tensor, " 2"]:
        assert self._post is not None
        projected = self._post.embedded
        # NaN and infinity spread to all later blocks, so the tensors kept last show them; and to
        # sums, which take one kernel
        sums = [each.sum() for each in (*self._rows.values(), projected)]
        finite = torch.stack(sums).isfinite().all()
        # loose: it has to tell other images and normalised rows apart, in bfloat16 too
        far = (representation - projected).norm(dim=-1) > 0.1 * projected.norm(dim=-1)
        return torch.stack([finite, ~far.any()])

    def _say_where(self) -> NoReturn:
        assert self._post is not None
        where = "the output"
        for depth in reversed(range(self.clip.layers)):
            if not _is_finite(self._activations.get(depth)):
                where = f"the activations of layer {depth}"
            if not _is_finite(self._rows.get(depth)):
                where = f"the input of block {depth}"
        kept = [*self._rows.values(), self._post.embedded]
        finite = torch.stack([row.flatten(1).isfinite().all(1) for row in kept]).all(0)
        raise NotFinite(where, finite.tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class Post:
    """What `ln_post` did to what is read."""

    mean: Float[Tensor, " images"]
    """As `post_mean` of `Pass`."""
    sigma: Float[Tensor, " images"]
    token_sigma: Float[Tensor, "images tokens"] | None
    projected: Float[Tensor, "images hidden"]
    """What the projection makes of it."""
    embedded: Float[Tensor, "images dim"]
    """The same, or what the model's `head` makes of that."""


def read_post(clip: Clip, states: Tensor, output: Tensor, place: Tensor | None = None) -> Post:
    """Return what `ln_post` did, from what it saw and returned; `place` as for `Reader`."""
    dtype, reader = clip.compute_dtype, clip.reader
    projected = reader.pooled(output, place).to(dtype) @ clip.projection.to(dtype)
    if clip.read_offset is not None:
        projected = projected + clip.read_offset().to(dtype)
    token_sigma = None
    if not clip.normalises:
        mean, sigma = _no_norm(projected[:, 0])
    elif reader.waits:
        _, token_sigma = norm_statistics(states, clip.post_eps, dtype)
        mean, sigma = _no_norm(projected[:, 0])
    else:
        mean, sigma = norm_statistics(reader.pooled(states, place), clip.post_eps, dtype)
    return Post(
        mean=mean,
        sigma=sigma,
        token_sigma=token_sigma,
        projected=projected,
        embedded=projected if clip.head is None else clip.head(projected),
    )


def _no_norm(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale where nothing is normalised."""
    return torch.zeros_like(like), torch.ones_like(like)


def norm_statistics(
    states: Float[Tensor, "*batch width"], eps: float, dtype: torch.dtype | None = None
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean and scale of a LayerNorm: sigma = sqrt(variance + eps).

    `dtype`, by default that of the states, is that of the sums and of the result.
    """
    dtype = dtype or states.dtype
    if states.is_cuda:
        # one kernel, which sums half precision in float32 and needs no wider copy
        _, mean, inverse = torch.native_layer_norm(states, states.shape[-1:], None, None, eps)
        return mean[..., 0].to(dtype), inverse[..., 0].to(dtype).reciprocal()
    states = states.to(dtype)
    mean = states.mean(dim=-1, keepdim=True)
    # several times faster than Tensor.var on a CPU, and as safe from cancellation
    variance = torch.linalg.vector_norm(states - mean, dim=-1).square() / states.shape[-1]
    return mean[..., 0], (variance + eps).sqrt()


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())
