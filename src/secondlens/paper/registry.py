"""The list of the paper's tables and figures, and which of them stand apart from the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .results import Result

results: "Registry[Result]" = Registry("result", "results")
"""In the order of the paper, then what is not in it. Each is made from a `Study`, or raises
`SecondLensError` if the study has no data for it; `table3` and `multiclass` have runs and arguments
of their own."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A result is not made with all others from one study."""

    how: str
    """Why, and the command that makes it."""
    by_second: bool
    """Whether a study with a second model gives it all the same, as that of the embedded world."""


APART: dict[str, Apart] = {
    "table3": Apart(
        how="attacks take a run of their own, which resumes: secondlens reproduce table3 --demo",
        by_second=False,
    ),
    "multiclass": Apart(
        how="label maps have a run of their own: secondlens reproduce multiclass --demo",
        by_second=False,
    ),
    "fig9": Apart(
        how="another model: secondlens reproduce fig9 --model ViT-L-14 and its --images",
        by_second=True,
    ),
    "fig12": Apart(
        how="another model: secondlens reproduce fig12 --model ViT-L-14 and its --images",
        by_second=True,
    ),
}
"""By name of a result."""

for _name, _function, _help in (
    (
        "table1",
        "table1:table1",
        "Accuracy without direct, indirect and second-order effects, and their rank.",
    ),
    ("fig3", "fig3:fig3", "Accuracy without second-order effects, layer by layer."),
    ("table2", "table2:table2", "The strongest texts of four neurons."),
    ("fig4", "fig4:fig4", "Accuracy with directions replaced by sparse texts."),
    ("fig5", "fig5:fig5", "The pictures on which the effects of neurons are largest."),
    (
        "table3",
        "table3:reproduce_table3",
        "Semantic adversarial images, second-order effects against every baseline.",
    ),
    ("table4", "table4:table4", "Zero-shot segmentation, neurons against every earlier method."),
    ("fig8", "fig8:fig8", "Concepts in pictures, in words of their active neurons."),
    ("fig9", "fig9:fig9", "Figure 3 for a second model: name it; with --demo, the twin."),
    ("fig10", "fig10:fig10", "Figure 3 on shifted pictures: name them with --shifted."),
    ("fig11", "fig11:fig11", "Accuracy without direct effects of attention layers."),
    ("fig12", "fig12:fig12", "Figure 11 for a second model: name it; with --demo, the twin."),
    ("table5", "table5:table5", "The strongest texts of four more neurons."),
    (
        "distributions",
        "distributions:distributions",
        "Quantiles over neurons of what the paper claims of them, with nulls.",
    ),
    (
        "budget",
        "effect_budget:effect_budget",
        "How much of total effects is direct, second-order, and neither.",
    ),
    (
        "multiclass",
        "multiclass:compare_labels",
        "Multi-class mIoU of neurons and of newer methods, on label maps of eight sets.",
    ),
):
    results.register(_name, f"secondlens.paper.{_function}", help=_help)
