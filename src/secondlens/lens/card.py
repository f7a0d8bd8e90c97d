"""The card of a shared lens: what a stranger should know before using it, from the lens itself."""

import re
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import ModelCardData

from .folder import manifest

if TYPE_CHECKING:
    from .lens import Lens

TAGS = ("clip", "interpretability", "neurons", "secondlens")


def lens_card(lens: "Lens", repo_id: str) -> str:
    """Markdown with the metadata of a model card: model, images, layers, descriptions, scores.

    Parameters
    ----------
    lens
        What is shared.
    repo_id
        The repository's name on the hub, such as "user/name".
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secondlens.lens"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("lens-card.md").render(
        metadata=_metadata(lens),
        repo_id=repo_id,
        lens=lens,
        manifest=manifest(lens),
        layers=[_layer(lens, layer) for layer in lens.layers],
        descriptions=[_description(lens, name) for name in lens.codes],
        scores=[
            {"name": name, "images": each.images, "layer": layer, **_score(each, layer)}
            for name, each in lens.scores.items()
            for layer in sorted(each.auc)
        ],
    )


def _metadata(lens: "Lens") -> str:
    """YAML. The explained model is named where it is one of the hub."""
    hub, _, name = str(lens.model["name"]).partition(":")
    on_hub = hub == "hf" and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    data = ModelCardData(
        library_name="secondlens",
        tags=list(TAGS),
        base_model=name if on_hub else None,
    )
    return data.to_yaml()


def _layer(lens: "Lens", layer: int) -> dict[str, Any]:
    names = ("selectivity", "selectivity_null", "explained", "explained_null", "explained_all")
    medians = {name: f"{float(getattr(lens[layer], name).median()):.2f}" for name in names}
    return {"layer": layer, **medians}


def _description(lens: "Lens", name: str) -> dict[str, Any]:
    codes = lens.codes[name]
    size = max(each.shape[1] for each in codes.indices.values())
    cosines = [float(each.median()) for each in codes.cosine.values()]
    chance = "–" if codes.control is None else f"{float(codes.control[-1]):.2f}"
    shown = f"{min(cosines):.2f} to {max(cosines):.2f}"
    return {
        "name": name,
        "texts": len(codes.labels),
        "size": size,
        "cosine": shown,
        "chance": chance,
    }


def _score(scores: Any, layer: int) -> dict[str, str]:
    ours = float(scores.auc[layer][:, 0].nanmedian())
    controls = scores.controls[layer][:, 0].nanmedian(dim=0).values.tolist()
    return {"auc": f"{ours:.3f}", "controls": ", ".join(f"{each:.3f}" for each in controls)}


def _cell(text: object) -> str:
    """A name as code in one cell of a table, whatever is in it."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "/") + "`"
