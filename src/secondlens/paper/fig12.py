"""Figure 12: Figure 11 for a second model."""

from .fig11 import without_attention
from .results import Result
from .study import PAPER_SECOND_MODEL, Study


def fig12(study: Study) -> Result:
    """Accuracy after ablating direct effects of attention layers of a second model."""
    return without_attention("fig12", study.second, PAPER_SECOND_MODEL)
