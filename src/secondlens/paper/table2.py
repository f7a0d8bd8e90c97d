"""Table 2: four neurons in words."""

from .neurons import strongest_texts
from .results import Result
from .study import Study

PAPER = {
    4: "+snowy +frost +closings +advent",
    391: "+woodworking −swelling +cedar +heirloom",
    2137: "+refreshments +gelatin +sour +cosmopolitan",
    2914: "+motorhome +yacht +cirrus +cabriolet",
}
"""Neurons of layer 9, and the paper's words for them out of 30,000 common ones."""


def table2(study: Study) -> Result:
    """The strongest texts of four neurons."""
    return strongest_texts("table2", study, PAPER, first=0)
