"""Table 2: four neurons in words."""

from .neurons import strongest_texts
from .pools import TABLE_2
from .results import Result
from .study import Study

PAPER = TABLE_2
"""Neurons of layer 9, and the paper's words for them out of 30,000 common ones."""


def table2(study: Study) -> Result:
    """The strongest texts of four neurons."""
    return strongest_texts("table2", study, PAPER, first=0)
