"""Figure 9: Figure 3 for a second model."""

from .curves import curves, span
from .results import Result
from .study import PAPER_SECOND_MODEL, Study


def fig9(study: Study) -> Result:
    """Accuracy after ablating second-order effects of each layer of a second model."""
    second = study.second
    pictures = second.some(second.test, 10)
    found = second.ablate(pictures)
    settings = second.settings(
        pictures, model=PAPER_SECOND_MODEL, step=10, layers=(span(found.layers), "0 to 22")
    )
    title = f"without second-order effects of a layer, {second.model}"
    return curves("fig9", title, found, settings)
