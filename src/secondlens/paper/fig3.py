"""Figure 3: accuracy without second-order effects, layer by layer."""

from .curves import curves, span
from .results import Result
from .study import PAPER_LAYER, PAPER_MODEL, Study

PAPER_ALL_AT_9 = 29.6
"""Table 1: the only value of these curves that the paper prints."""


def fig3(study: Study) -> Result:
    """Accuracy after ablating second-order effects of each layer."""
    pictures, found = study.some(study.test, 1), study.ablation
    settings = study.settings(pictures, layers=(span(found.layers), "0 to 10"))
    printed = {(PAPER_LAYER, "all"): PAPER_ALL_AT_9} if study.published == PAPER_MODEL else {}
    return curves("fig3", "without second-order effects of a layer", found, settings, printed)
