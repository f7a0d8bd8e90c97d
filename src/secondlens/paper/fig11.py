"""Figure 11: accuracy without direct effects of attention layers."""

from ..applications.ablation.attention import ablate_attention
from .curves import curves
from .results import Result, Setting
from .study import PAPER_MODEL, Study


def fig11(study: Study) -> Result:
    """Accuracy after ablating direct effects of attention layers."""
    return without_attention("fig11", study, PAPER_MODEL)


def without_attention(name: str, study: Study, model: str) -> Result:
    """The figure of a study's model; `model` is the paper's."""
    pictures = study.some(study.test, 1)
    found = ablate_attention(
        *(study.clip, pictures.source, pictures.labels, study.classifier(pictures)),
        study.reference,
        progress=True,
    )
    settings = study.settings(
        pictures,
        model=model,
        more=[
            Setting(
                name="pictures for means",
                ours=f"{len(study.reference.ids):,}",
                paper="about 5,000",
            )
        ],
    )
    title = f"without direct effects of attention layers, {study.model}"
    return curves(name, title, found, settings)
