"""A model with units as a folder: `units.json`, and one safetensors file for each layer.

The folder names the model whose neurons the units replace, and does not hold it. Whether that model
is still the same is told by the digest of all weights, which is checked when the folder is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...arguments import checked
from ...errors import SecondLensError
from ...storage.checkpoints import load_tensors, save_tensors
from ...storage.files import read_json, save_json, whole_folder
from .. import named_models
from ..view import Clip
from .latents import Latents
from .replacing import units

FORMAT = 1
MANIFEST = "units.json"


@checked
def save_units(
    folder: str | Path,
    latents: Mapping[int, Latents],
    model: str,
    *,
    pretrained: str | None = None,
    activation: str | None = None,
    error: bool = True,
) -> str:
    """Write units and the name of their model, to be loaded by the name that is returned.

    `sl.load("units:FOLDER")`, and `--model units:FOLDER` of every command, load the model and put
    the units into it.

    Parameters
    ----------
    folder
        Where to; it must not hold units already.
    latents
        By MLP layer, as `units` takes them.
    model, pretrained, activation
        As `load` takes them.
    error
        As `units` takes it.

    Raises
    ------
    SecondLensError
        The folder holds units already, or the model cannot be loaded or cannot have these units;
        then nothing is written.
    """
    from ..loading import load

    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise SecondLensError(f"{folder} holds units already: name another folder")
    clip = units(load(model, pretrained, activation=activation), latents, error=error)
    manifest = {
        "format": FORMAT,
        "model": model,
        "pretrained": pretrained,
        "activation": activation,
        "error": error,
        "weights": clip.weights_hash,
        "layers": {
            str(layer): {"kind": each.kind, "k": each.k, "site": each.site, "name": each.name}
            for layer, each in latents.items()
        },
    }
    with whole_folder(folder) as partial:
        for layer, each in latents.items():
            save_tensors(partial / _file(layer), each.tensors(torch.float64, "cpu"))
        save_json(partial / MANIFEST, manifest)
    return f"units:{folder}"


def by_units(
    name: str, *, pretrained: str | None, device: Any, precision: str, check: bool, **_: Any
) -> Clip:
    """The member "units" of `named_models`.

    Raises
    ------
    SecondLensError
        No units in the folder, or damaged ones; units of other weights; or `pretrained`, which the
        folder names itself.
    """
    folder = Path(name.removeprefix("units:"))
    if pretrained is not None:
        raise SecondLensError(f"{name} names its own weights: drop pretrained")
    if not (folder / MANIFEST).is_file():
        raise SecondLensError(f"{folder} holds no units: there is no {MANIFEST} in it")
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] != FORMAT:
            raise SecondLensError(f"the units in {folder} have format {manifest['format']}, not 1")
        base = str(manifest["model"])
        latents = {
            int(layer): Latents(
                **load_tensors(folder / _file(int(layer))),
                kind=each["kind"],
                k=each["k"],
                site=each["site"],
                name=str(each["name"]),
            )
            for layer, each in manifest["layers"].items()
        }
        error, weights = bool(manifest["error"]), manifest["weights"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as problem:
        raise SecondLensError(f"the units in {folder} are damaged: {problem}") from problem
    kind = base.partition(":")[0]
    if kind == "units":
        raise SecondLensError(f"the units in {folder} name units as their model, which has neurons")
    member = base if base in named_models else kind if kind in named_models else "open_clip"
    clip = named_models[member](
        base,
        pretrained=manifest.get("pretrained"),
        device=device,
        precision=precision,
        activation=manifest.get("activation"),
        check=check,
    )
    found = units(clip, latents, error=error)
    if precision == "fp32" and found.weights_hash != weights:
        raise SecondLensError(
            f"the units in {folder} are of other weights than {base} has now: make them again"
        )
    return found


def _file(layer: int) -> str:
    return f"units-{layer:02}.safetensors"
