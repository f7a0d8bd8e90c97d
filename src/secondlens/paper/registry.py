"""The list of the paper's tables and figures, and which of them stand apart from the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .results import Result

results: "Registry[Result]" = Registry("result", "results")
"""In the order of the paper, then what is not in it. Each is made from a `Study`, or raises
`SecondLensError` if the study has no data for it; `table3` has a run and arguments of its own."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A result is not made with all others from one study."""

    how: str
    """Why, and the command that makes it."""
    in_demo: bool
    """Whether one study of the embedded world gives it all the same."""


APART: dict[str, Apart] = {}
"""By name of a result."""

results.register(
    "table1",
    "secondlens.paper.table1:table1",
    help="Accuracy without direct, indirect and second-order effects, and their rank.",
)
results.register(
    "fig3",
    "secondlens.paper.fig3:fig3",
    help="Accuracy without second-order effects, layer by layer.",
)
results.register(
    "table2",
    "secondlens.paper.table2:table2",
    help="The strongest texts of four neurons.",
)
results.register(
    "fig4",
    "secondlens.paper.fig4:fig4",
    help="Accuracy with directions replaced by sparse texts.",
)
results.register(
    "fig5",
    "secondlens.paper.fig5:fig5",
    help="The pictures on which the effects of neurons are largest.",
)
results.register(
    "table3",
    "secondlens.paper.table3:reproduce_table3",
    help="Semantic adversarial images, second-order effects against every baseline.",
)
APART["table3"] = Apart(
    how="attacks take a run of their own, which resumes: secondlens reproduce table3 --demo",
    in_demo=False,
)
results.register(
    "table4",
    "secondlens.paper.table4:table4",
    help="Zero-shot segmentation, neurons against every earlier method.",
)
results.register(
    "fig8",
    "secondlens.paper.fig8:fig8",
    help="Concepts in pictures, in words of their active neurons.",
)
results.register(
    "fig9",
    "secondlens.paper.fig9:fig9",
    help="Figure 3 for a second model: name it; with --demo, the twin.",
)
APART["fig9"] = Apart(
    how="another model: secondlens reproduce fig9 --model ViT-L-14 and its --images",
    in_demo=True,
)
results.register(
    "fig10",
    "secondlens.paper.fig10:fig10",
    help="Figure 3 on shifted pictures: name them with --shifted.",
)
results.register(
    "fig11",
    "secondlens.paper.fig11:fig11",
    help="Accuracy without direct effects of attention layers.",
)
results.register(
    "fig12",
    "secondlens.paper.fig12:fig12",
    help="Figure 11 for a second model: name it; with --demo, the twin.",
)
APART["fig12"] = Apart(
    how="another model: secondlens reproduce fig12 --model ViT-L-14 and its --images",
    in_demo=True,
)
results.register(
    "table5",
    "secondlens.paper.table5:table5",
    help="The strongest texts of four more neurons.",
)
results.register(
    "distributions",
    "secondlens.paper.distributions:distributions",
    help="Quantiles over neurons of what the paper claims of them, with nulls.",
)
results.register(
    "budget",
    "secondlens.paper.effect_budget:effect_budget",
    help="How much of total effects is direct, second-order, and neither.",
)
