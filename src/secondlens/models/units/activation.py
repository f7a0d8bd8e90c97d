"""Units inside a model: the activation function of one MLP, after which a linear layer decodes."""

from collections.abc import Mapping
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class UnitActivation(nn.Module):
    """An activation function whose outputs are units and their error terms, not neurons.

    It computes what the MLP writes as before, y, encodes what the units read, and returns

        [z, y - (z @ decoder + decoder_bias)]

    so that a linear layer with the rows [decoder; identity] writes y again, up to rounding. Each
    coordinate of the error is a unit too.

    Parameters
    ----------
    function, output
        Activation function and last linear layer of the MLP, as the model has them.
    tensors
        What `Latents.tensors` gives.
    kind, k, site
        As in `Latents`.
    error
        Whether error terms are there. Without them the model computes what the units alone write.
    """

    def __init__(
        self,
        function: nn.Module,
        output: nn.Linear,
        tensors: Mapping[str, Tensor],
        *,
        kind: str,
        k: int | None,
        site: str,
        error: bool,
    ) -> None:
        super().__init__()
        self.function, self.output = function, output
        self.kind, self.k, self.site, self.error = kind, k, site, error
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def see_norm(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the norm before the MLP saw and gave: a hook on it."""
        if self.site != "mlp":
            self._seen[get_ident()] = inputs[0], output

    def forward(self, hidden: Float[Tensor, "*tokens neurons"]) -> Float[Tensor, "*tokens units"]:
        """Activations of the units, then error terms, from what the neurons get."""
        parts: dict[str, Tensor] = dict(self.named_buffers(recurse=False))
        written = self.output(self.function(hidden))
        before, normalised = self._seen.pop(get_ident(), (written, written))
        read = {"mlp": written, "stream": before + written, "transcoder": normalised}[self.site]
        z = (read.to(written) - parts["centre"]) @ parts["encoder"] + parts["encoder_bias"]
        z = active(z, self.kind, k=self.k, threshold=parts.get("threshold"))
        if not self.error:
            return z
        rest = written - (z @ parts["decoder"] + parts["decoder_bias"])
        return torch.cat([z, rest], dim=-1)


def active(
    z: Float[Tensor, "*tokens latents"],
    kind: str,
    *,
    k: int | None = None,
    threshold: Float[Tensor, " latents"] | None = None,
) -> Float[Tensor, "*tokens latents"]:
    """Return f(z) of `Latents`."""
    if kind == "linear":
        return z
    if kind.endswith("topk"):
        assert k is not None
        top = z.topk(k, dim=-1)
        kept = top.values if kind == "signed_topk" else top.values.relu()
        return torch.zeros_like(z).scatter(-1, top.indices, kept)
    if kind == "jumprelu":
        assert threshold is not None
        return z.relu() * (z > threshold)
    return z.relu()
