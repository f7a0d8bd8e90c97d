"""Files of latents as other libraries write them, read as plain tensors and JSON.

Nothing that a file names is run. Each function takes the tensors of one library and the settings
that lie beside them, and returns `Latents` that compute what the library computes when it does not
train. What computes otherwise, such as a gated autoencoder, is refused.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arguments import checked
from ...errors import SecondLensError
from ..weights import read_file
from . import unit_layouts
from .latents import Kind, Latents, Site

LARGEST_HEADER = 2**20
"""Bytes of the JSON before or beside the tensors."""
FILES = ("sae_weights.safetensors", "weights.pt", "ae.pt", "sae.pt")
"""Names of weights in a folder, in the order in which they are looked for."""
SETTINGS = ("cfg.json", "config.json")
SITES: dict[str, Site] = {"hook_mlp_out": "mlp", "hook_resid_post": "stream"}
"""By the end of the name of a hook of TransformerLens or ViT-Prisma."""
KINDS: dict[str, Kind] = {
    "AutoEncoder": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
}
"""By the class of dictionary_learning."""
PLAIN = (None, "none", "None", "")
"""How settings say that activations are not normalised before they are encoded."""


@checked
def read_latents(
    path: str | Path,
    layout: str,
    *,
    site: Site | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Latents:
    """Read latents that another library saved.

    Parameters
    ----------
    path
        A file of weights, safetensors or `.pt`, or the folder that holds one. A cfg.json or
        config.json beside it is read too.
    layout
        One of `secondlens list unit-layouts`.
    site
        What the latents read, as in `Latents`; by default what the settings name as their hook.
    settings
        Added to those of the file, or in their place.
    name
        What the units are called; by default as the layout.

    Raises
    ------
    SecondLensError
        No such layout or file, tensors or settings that are not of that layout, latents that
        compute otherwise than `Latents` can, or no site in the settings and none given.
    """
    member, place = unit_layouts[layout], _weights(Path(path))
    tensors, beside = _saev_file(place) if layout == "saev" else (read_file(place), {})
    for file in SETTINGS:
        if layout != "saev" and (place.parent / file).is_file():
            beside = _json((place.parent / file).read_bytes(), file)
            break
    given = {**beside, **(settings or {})}
    try:
        found = member(tensors, given)
    except KeyError as error:
        raise SecondLensError(
            f"{place.name} is not of the layout {layout}: it has no {error.args[0]!r}, and it has "
            f"{', '.join(sorted(tensors)[:6])}"
        ) from None
    if found.site != "transcoder":
        found = replace(found, site=site or _site(given))
    return replace(found, name=name or layout)


def _weights(path: Path) -> Path:
    if path.is_dir():
        for file in FILES:
            if (path / file).is_file():
                return path / file
        raise SecondLensError(f"{path} holds no latents: there is none of {', '.join(FILES)} in it")
    if not path.is_file():
        raise SecondLensError(f"there is no file of latents {str(path)!r}")
    return path


def _json(content: bytes, file: str) -> dict[str, Any]:
    try:
        found = json.loads(content[:LARGEST_HEADER])
    except ValueError as error:
        raise SecondLensError(f"the settings in {file} are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SecondLensError(f"the settings in {file} are not a JSON object")
    return found


def _saev_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        header = _json(file.readline(LARGEST_HEADER), path.name)
        try:
            tensors = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a damaged archive leads to
            raise SecondLensError(f"{path.name} has no plain tensors behind its header") from error
    return dict(tensors), header


def _site(settings: Mapping[str, Any]) -> Site:
    metadata = settings.get("metadata")
    for place in (settings, metadata if isinstance(metadata, dict) else {}):
        for key in ("hook_name", "hook_point", "layer_subtype"):
            hook = str(place.get(key, "")).rpartition(".")[2]
            if hook in SITES:
                return SITES[hook]
    raise SecondLensError(
        "the settings do not say what the latents read: pass site='mlp' for the MLP's output, or "
        "site='stream' for the residual stream after a block"
    )


def _refuse(what: str) -> SecondLensError:
    return SecondLensError(f"these latents are not covered: {what}")


def _check_plain(settings: Mapping[str, Any]) -> None:
    if (how := settings.get("normalize_activations")) not in PLAIN:
        raise _refuse(f"their input is normalised ({how}): fold that into the weights first")
    if (shape := settings.get("reshape_activations")) not in PLAIN:
        raise _refuse(f"their input is reshaped ({shape})")


def saelens(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Latents:
    """The member "saelens" of `unit_layouts`."""
    _check_plain(settings)
    architecture = settings.get("architecture", "standard")
    kind, _, transcoder = architecture.partition("_")
    kinds: dict[str, Kind] = {
        "standard": "relu",
        "transcoder": "relu",
        "topk": "topk",
        "jumprelu": "jumprelu",
    }
    if kind not in kinds or transcoder not in ("", "transcoder"):
        raise _refuse(f"their architecture is {architecture!r}")
    function = settings.get("activation_fn_str", settings.get("activation_fn", "relu"))
    if kinds[kind] == "relu" and function != "relu":
        raise _refuse(f"their activation function is {function!r}")
    is_transcoder = "transcoder" in (kind, transcoder)
    encoder, bias, decoder = tensors["W_enc"], tensors["b_enc"], tensors["W_dec"]
    if settings.get("rescale_acts_by_decoder_norm"):
        # the library ranks latents by what they write: the same with rows of length one
        norms = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norms, bias * norms, decoder / norms[:, None]
    centred = settings.get("apply_b_dec_to_input", True) and not is_transcoder
    return Latents(
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=tensors["b_dec"],
        centre=tensors["b_dec"] if centred else None,
        kind=kinds[kind],
        k=settings["k"] if kind == "topk" else None,
        threshold=tensors["threshold"] if kind == "jumprelu" else None,
        site="transcoder" if is_transcoder else "mlp",
    )


def prisma(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Latents:
    """The member "prisma" of `unit_layouts`."""
    _check_plain(settings)
    if (architecture := settings.get("architecture", "standard")) != "standard":
        raise _refuse(f"their architecture is {architecture!r}")
    for limit in ("cls_token_only", "use_patches_only", "is_transcoder"):
        if settings.get(limit):
            raise _refuse(f"they read only some tokens, or are a transcoder ({limit})")
    if (kind := settings.get("activation_fn_str", "relu")) not in ("relu", "topk"):
        raise _refuse(f"their activation function is {kind!r}")
    tensors = {key.removeprefix("state_dict."): each for key, each in tensors.items()}
    return Latents(
        encoder=tensors["W_enc"],
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        centre=tensors["b_dec"],
        kind=kind,
        k=settings["activation_fn_kwargs"]["k"] if kind == "topk" else None,
    )


def saev(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Latents:
    """The member "saev" of `unit_layouts`: files without a schema, and of schema 2."""
    schema = settings.get("schema")
    if schema not in (None, 2):
        raise _refuse(f"files of saev's schema {schema} say too little of how they compute")
    activation: dict[str, Any] = settings["cfg"]["activation"] if schema else {"cls": "Relu"}
    if activation["cls"] not in ("Relu", "TopK", "BatchTopK"):
        raise _refuse(f"their activation function is {activation['cls']!r}")
    ranked = activation["cls"] != "Relu"
    return Latents(
        encoder=tensors["W_enc"],
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        # the first files subtracted the decoder's bias, and later ones do not
        centre=None if schema else tensors["b_dec"],
        # saev keeps the largest, negative ones too, and its BatchTopK counts in each sample
        kind="signed_topk" if ranked else "relu",
        k=activation["params"]["top_k"] if ranked else None,
    )


def overcomplete(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Latents:
    """The member "overcomplete" of `unit_layouts`: encoders of one linear layer.

    A state dict does not say how it computes, so `settings` must: {"kind": "relu"}, {"kind":
    "topk", "k": 32}, or, of BatchTopK, {"kind": "jumprelu", "threshold": ...} with the running
    threshold; of a JumpSAE, thresholds are among the tensors.
    """
    jumps = "thresholds" in tensors
    kind: Any = "jumprelu" if jumps else settings.get("kind")
    if kind is None:
        raise SecondLensError(
            "a state dict of overcomplete does not say its activation function: pass settings= "
            "with kind relu, topk and k, or jumprelu and threshold"
        )
    if any(key.startswith("encoder.mlp_blocks.") for key in tensors):
        raise _refuse("their encoder has several layers")
    weight, bias = _overcomplete_encoder(tensors)
    decoder = tensors["dictionary._weights"]
    decoder = decoder / (decoder.norm(dim=1, keepdim=True) + 1e-8)
    multiplier = tensors.get("dictionary.multiplier", torch.zeros(()))
    threshold: Any = tensors["thresholds"].exp() if jumps else settings.get("threshold")
    if threshold is not None:
        # the library keeps what equals the threshold
        least = torch.as_tensor(threshold, dtype=weight.dtype)
        threshold = torch.nextafter(least, torch.full_like(least, -torch.inf))
        threshold = threshold.expand(len(weight))
    return Latents(
        encoder=weight.T,
        encoder_bias=bias,
        decoder=decoder * multiplier.exp(),
        kind=kind,
        k=settings.get("k"),
        threshold=threshold,
    )


def _overcomplete_encoder(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, with the batch norm behind them folded in."""
    if "encoder.weight" in tensors:
        return tensors["encoder.weight"], tensors.get("encoder.bias")
    last = "encoder.final_block."
    weight, bias = tensors[f"{last}0.weight"], tensors[f"{last}0.bias"]
    if f"{last}1.weight" not in tensors:
        return weight, bias
    if f"{last}1.running_mean" not in tensors:
        raise _refuse("their encoder ends with a LayerNorm")
    scale = (tensors[f"{last}1.running_var"] + 1e-5).rsqrt() * tensors[f"{last}1.weight"]
    shifted = (bias - tensors[f"{last}1.running_mean"]) * scale + tensors[f"{last}1.bias"]
    return weight * scale[:, None], shifted


def dictionary_learning(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Latents:
    """The member "dictionary_learning" of `unit_layouts`."""
    trainer = settings.get("trainer", settings)
    name = trainer["dict_class"]
    if name == "JumpReluAutoEncoder":
        return Latents(
            encoder=tensors["W_enc"],
            encoder_bias=tensors["b_enc"],
            decoder=tensors["W_dec"],
            decoder_bias=tensors["b_dec"],
            kind="jumprelu",
            threshold=tensors["threshold"],
        )
    if name not in KINDS:
        raise _refuse(f"their class is {name}")
    kind: Kind = KINDS[name]
    plain, ranked = name == "AutoEncoder", name == "AutoEncoderTopK"
    encoder, bias = tensors["encoder.weight"], tensors["encoder.bias"]
    decoder = tensors["decoder.weight"]
    if plain:
        # the library makes rows one long when it loads, unless they are already
        norms = decoder.norm(dim=0)
        if not torch.allclose(norms, torch.ones_like(norms)):
            encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms
    centre = tensors["bias" if plain else "b_dec"]
    return Latents(
        encoder=encoder.T,
        encoder_bias=bias,
        decoder=decoder.T,
        decoder_bias=centre,
        centre=centre,
        kind=kind,
        k=int(tensors["k"]) if ranked else None,
        threshold=None if plain or ranked else float(tensors["threshold"]),
    )
