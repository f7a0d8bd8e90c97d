"""Put units in place of the neurons of an MLP: a model that computes the same through other parts.

The copy's MLP has `UnitActivation` for its activation function and a linear layer with the units'
rows behind it. To every view it looks like an MLP whose neurons are the units, so whatever reads
activations and rows takes it as it is.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import checked
from ...devices import undisturbed
from ...errors import SecondLensError, UnsupportedModel
from ..blocks import Block
from ..view import Clip
from .activation import UnitActivation
from .latents import Latents


@checked
@undisturbed
def units(
    clip: Clip, latents: Mapping[int, Latents], *, error: bool = True, name: str | None = None
) -> Clip:
    """Return a model whose neurons, at some MLP layers, are units.

    The model is a copy, and `fit`, `describe`, `search`, `score`, `discover`, `segment`, `ablate`,
    `audit` and the explorer take it as any other. It has these layers only: others have neurons,
    and as many units as here are in none of them. Units are numbered as the latents; behind them
    come the error terms, one for each coordinate of the residual stream, with which the MLP writes
    what it wrote before:

        MLP output = sum over latents of z decoder + decoder_bias + error

    Where latents rebuild the residual stream, error terms also take back the stream that went past
    the MLP: then the latents' rows hold all of the stream after the block.

    Parameters
    ----------
    clip
        The model, which is left as it is.
    latents
        By MLP layer; all layers need the same number.
    error
        Whether there are error terms. Without them it is another model, whose MLP writes only what
        the units do; a residual stream needs them.
    name
        What the model is called; by default its own name, "with", and the units'.

    Raises
    ------
    SecondLensError
        No latents, layers with different numbers of them, widths other than the model's, a layer
        that the model does not have, or latents of the stream without error terms.
    UnsupportedModel
        A text tower, or an MLP that is not a linear layer, an activation function and a linear
        layer that writes to the stream.
    """
    clip.check_images("units")
    if not latents:
        raise SecondLensError("no latents are given: name an MLP layer and its latents")
    if clip.unit_layers:
        raise SecondLensError(f"{clip.name} has units already: start from the model without them")
    if len({len(each) for each in latents.values()}) > 1:
        counts = ", ".join(f"{len(latents[layer])} at layer {layer}" for layer in sorted(latents))
        raise SecondLensError(
            f"every layer needs the same number of units, and there are {counts}: replace one "
            "layer at a time"
        )
    for layer, each in latents.items():
        _check(clip, clip.check_layer(layer, last=True), each, error)
    # what only reads inputs is shared; the text tower goes with the model that it is part of
    shared = (clip.preprocess, clip.tokenizer)
    copied = copy.deepcopy(clip, {id(each): each for each in shared if each is not None})
    blocks = list(copied.blocks)
    for layer, each in latents.items():
        blocks[layer] = _replaced(copied.model, blocks[layer], each, error=error)
    layers = tuple(sorted(latents))
    called = name or f"{clip.name} with {' and '.join({each.name: 0 for each in latents.values()})}"
    return replace(
        copied,
        name=called,
        blocks=tuple(blocks),
        unit_layers=layers,
        view_of=partial(_view, clip.view_of, layers, called, clip.activation),
    )


def _view(
    view_of: Any, layers: tuple[int, ...], name: str, activation: str, model: nn.Module
) -> Clip:
    """The view of a copy of a model that has units."""
    again = partial(_view, view_of, layers, name, activation)
    seen: Clip = view_of(model)
    return replace(seen, name=name, activation=activation, unit_layers=layers, view_of=again)


def _check(clip: Clip, layer: int, latents: Latents, error: bool) -> None:
    block, output = clip.blocks[layer], clip.blocks[layer].mlp_output
    where = f"layer {layer} of {clip.name} cannot have units"
    if block.gated:
        raise UnsupportedModel(f"{where}: its neurons are gated")
    if clip.maps or type(output) is not nn.Linear:
        raise UnsupportedModel(f"{where}: its MLP does not end with a plain linear layer")
    if not torch.equal(block.neuron_rows, output.weight.detach().T):
        raise UnsupportedModel(f"{where}: what its MLP writes is scaled afterwards (LayerScale)")
    if latents.site == "stream" and not error:
        raise SecondLensError(
            "latents of the residual stream rebuild more than the MLP writes: leave error=True"
        )
    wanted = (clip.width, clip.width)
    found = (len(latents.encoder), latents.decoder.shape[1])
    if found != wanted:
        raise SecondLensError(
            f"the latents read {found[0]} numbers and write {found[1]}, and the residual stream of "
            f"{clip.name} has {clip.width}: they were trained on another model or another place"
        )


def _replaced(model: nn.Module, block: Block, latents: Latents, *, error: bool) -> Block:
    """The view of a block of the model, whose modules are replaced."""
    output: Any = block.mlp_output
    weight = output.weight
    tensors = latents.tensors(weight.dtype, weight.device)
    unit = UnitActivation(
        block.activation,
        output,
        tensors,
        kind=latents.kind,
        k=latents.k,
        site=latents.site,
        error=error,
    )
    rows = [tensors["decoder"]]
    if error:
        rows.append(torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
    decoder = _linear(torch.cat(rows), tensors["decoder_bias"])
    block.ln_2.register_forward_hook(unit.see_norm)
    _put(model, block.activation, unit)
    _put(model, output, decoder, but=unit)
    model.eval()  # new modules come as if they were trained
    return replace(block, activation=unit, mlp_output=decoder)


def _linear(rows: Tensor, bias: Tensor) -> nn.Linear:
    count, width = rows.shape
    made = nn.Linear(count, width, device=rows.device, dtype=rows.dtype)
    made.load_state_dict({"weight": rows.T, "bias": bias})
    return made.requires_grad_(requires_grad=False)


def _put(model: nn.Module, old: nn.Module, new: nn.Module, but: nn.Module | None = None) -> None:
    """Put a module in another's place, wherever that stands, but inside one of them."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old and parent not in (new, but):
                parent._modules[name] = new
