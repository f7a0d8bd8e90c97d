"""Figure 10: Figure 3 under a shift of distribution."""

from .curves import curves, span
from .results import Result
from .study import Study


def fig10(study: Study) -> Result:
    """Accuracy on shifted pictures after ablating second-order effects of each layer."""
    pictures = study.some(study.shifted_test, 10)
    found = study.ablate(pictures)
    settings = study.settings(
        pictures, paper_pictures="ImageNet-R", step=10, layers=(span(found.layers), "8 to 10")
    )
    title = f"without second-order effects of a layer, {pictures.name}"
    return curves("fig10", title, found, settings)
