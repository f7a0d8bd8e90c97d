"""What units are: an encoder that gives their activations, and the rows that they write."""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...devices import undisturbed
from ...errors import SecondLensError
from ..view import Clip

Kind = Literal["linear", "relu", "topk", "signed_topk", "jumprelu"]
Site = Literal["mlp", "stream", "transcoder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """Encoder and decoder of a sparse autoencoder or transcoder, or any pairs like theirs.

    With the vector x that it reads at a token, activations and what they write are

        z = f((x - centre) @ encoder + encoder_bias)          written = z @ decoder + decoder_bias

    BatchTopK computes as JumpReLU when it is not trained: with one threshold, which it learnt.

    Raises
    ------
    SecondLensError
        Shapes that do not fit each other, numbers that are not finite, an unknown `kind`, or a kind
        without the `k` or the `threshold` that it needs.
    """

    encoder: Float[Tensor, "_reads _latents"]
    decoder: Float[Tensor, "_latents _width"]
    encoder_bias: Float[Tensor, " _latents"] | None = None
    """By default zero, as `decoder_bias` and `centre`."""
    decoder_bias: Float[Tensor, " _width"] | None = None
    centre: Float[Tensor, " _reads"] | None = None
    """Subtracted from x before the encoder."""
    kind: Kind = "relu"
    """The function f: "linear" (z as it is), "relu", "topk" (ReLU of the `k` largest of a token),
    "signed_topk" (the `k` largest as they are), or "jumprelu" (ReLU where z is above
    `threshold`)."""
    k: int | None = None
    threshold: Float[Tensor, " _latents"] | float | None = None
    """Of "jumprelu", for each latent or for all."""
    site: Site = "mlp"
    """What is read and rebuilt: "mlp" is the MLP's output, "stream" the residual stream after its
    block; a "transcoder" reads the MLP's input, after the norm, and rebuilds its output."""
    name: str = field(default="units")
    """What the units are called in messages and in the name of a model."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SecondLensError(
                f"no activation function {self.kind!r} of latents: choose "
                f"{', '.join(get_args(Kind))}"
            )
        if self.site not in get_args(Site):
            raise SecondLensError(
                f"no site {self.site!r} of latents: choose {', '.join(get_args(Site))}"
            )
        count = self.encoder.shape[1]
        if count != len(self.decoder) or not count:
            raise SecondLensError(
                f"an encoder [reads, latents] and a decoder [latents, width] are needed, and these "
                f"are {list(self.encoder.shape)} and {list(self.decoder.shape)}"
            )
        if self.kind.endswith("topk") and not 1 <= (self.k or 0) <= count:
            raise SecondLensError(f"topk needs k, from 1 to the {count} latents, and got {self.k}")
        if self.kind == "jumprelu" and self.threshold is None:
            raise SecondLensError("jumprelu needs the threshold of its latents: pass threshold=")
        for name, size in (
            ("encoder_bias", count),
            ("threshold", count),
            ("decoder_bias", self.decoder.shape[1]),
            ("centre", len(self.encoder)),
        ):
            given = getattr(self, name)
            if isinstance(given, Tensor) and given.shape != (size,):
                raise SecondLensError(f"{name} needs {size} numbers, and has {list(given.shape)}")
        for name in (each.name for each in fields(self)):
            given = getattr(self, name)
            if isinstance(given, Tensor) and not given.isfinite().all():
                raise SecondLensError(f"{name} of the latents has NaN or infinity: check its file")

    def __len__(self) -> int:
        """How many units there are, without error terms."""
        return len(self.decoder)

    def tensors(self, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Encoder, decoder, biases, centre and threshold in one precision and place."""
        reads, count = self.encoder.shape
        given = {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "encoder_bias": _or_zeros(self.encoder_bias, count),
            "decoder_bias": _or_zeros(self.decoder_bias, self.decoder.shape[1]),
            "centre": _or_zeros(self.centre, reads),
        }
        if self.kind == "jumprelu":
            threshold = torch.as_tensor(self.threshold, dtype=torch.float64)
            given["threshold"] = threshold.expand(count)
        return {key: each.detach().to(device, dtype).clone() for key, each in given.items()}


def _or_zeros(given: Tensor | None, size: int) -> Tensor:
    return torch.zeros(size) if given is None else given


@checked
@undisturbed
def singular_vectors(clip: Clip, layer: int, count: int | None = None) -> Latents:
    """Return the right singular vectors of an MLP's output matrix as units.

    With the neurons' rows W = U S V^T [neurons, width], unit i is active by v_i . (MLP output minus
    its bias), and writes v_i: rotated coordinates of what the MLP writes, strongest first.

    Parameters
    ----------
    clip
        The model.
    layer
        Any MLP layer.
    count
        How many, from the largest singular value; by default all.

    Raises
    ------
    SecondLensError
        No such layer, or more vectors than there are.
    """
    block = clip.blocks[clip.check_layer(layer, last=True)]
    # the CPU factorises in float64, which not every accelerator has
    rows = block.neuron_rows.detach().cpu().double()
    vectors = torch.linalg.svd(rows, full_matrices=False).Vh
    if count is not None and not 1 <= count <= len(vectors):
        raise SecondLensError(f"layer {layer} has {len(vectors)} singular vectors, not {count}")
    vectors = vectors[:count]
    bias = block.mlp_bias.detach().cpu().double()
    return Latents(
        encoder=vectors.T,
        decoder=vectors,
        centre=bias,
        decoder_bias=bias,
        kind="linear",
        name="singular vectors",
    )


@checked
@undisturbed
def directions(rows: Float[Tensor, "rows width"], name: str = "directions") -> Latents:
    """Return own rows as units, such as those of a linear probe on an MLP's output.

    Activations are the coefficients of the least squares fit of the MLP's output by the rows, so
    the error terms are orthogonal to all of them.

    Parameters
    ----------
    rows
        What each unit writes at activation 1, linearly independent.
    name
        What the units are called.

    Raises
    ------
    SecondLensError
        Rows that depend on one another.
    """
    exact = rows.detach().cpu().double()
    if int(torch.linalg.matrix_rank(exact)) < len(exact):
        raise SecondLensError(
            "the rows depend on one another, so their activations are not unique: give an encoder "
            "too, by Latents"
        )
    return Latents(encoder=torch.linalg.pinv(exact), decoder=exact, kind="linear", name=name)
