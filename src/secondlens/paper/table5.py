"""Table 5: four more neurons in words."""

from . import table2
from .neurons import strongest_texts
from .pools import TABLE_5
from .results import Result
from .study import Study

PAPER = TABLE_5
"""Neurons of layer 9, and the paper's words for them out of 30,000 common ones."""


def table5(study: Study) -> Result:
    """The strongest texts of four neurons that are not in Table 2."""
    return strongest_texts("table5", study, PAPER, first=len(table2.PAPER))
