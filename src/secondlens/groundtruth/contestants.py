"""Contestants: methods that explain neurons, by the answers that each of them gives.

A contestant answers some of the questions, each by a function of an `Exam`. To add one is to
register a function that returns a `Contestant`:

    @contestants.register("loudness", help="mean activation, whatever the text")
    def loudness() -> Contestant:
        return Contestant(effects=my_effects)
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..registry import Registry
from .exam import Exam


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A name that a contestant gives a unit."""

    feature: str
    evidence: float
    """The surer, the larger, in any unit: the bench turns it into a probability."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A method, as the answers that it gives; what it has no answer to is None."""

    effects: "Callable[[Exam], Float[Tensor, 'images words units']] | None" = None
    """What each unit adds to the similarity with each word, up to a factor."""
    classes: "Callable[[Exam], list[str]] | None" = None
    """The class of path that carries most of each unit's effect, one of `all_paths.CLASSES`."""
    names: "Callable[[Exam], list[list[Claim]]] | None" = None
    """The features that each unit responds to."""
    edges: "Callable[[Exam], Float[Tensor, 'units units']] | None" = None
    """How strongly each unit (row) acts on each other one (column), up to a factor."""
    places: "Callable[[Exam], Float[Tensor, 'images places rows columns']] | None" = None
    """Heat-maps of the words of `Program.places`, in their order."""
    by_truth: bool = False
    """Whether it looks at the truth, or at nothing: a bound rather than a method."""


contestants: Registry[Contestant] = Registry("contestant", "contestants")
"""By name; ours first, bounds last."""

for _name, _function, _help in (
    ("value path", "attribution:value_path", "second-order effects, and names of them"),
    ("all paths", "attribution:all_paths", "finite effects by all classes of paths (ours)"),
    ("activation", "attribution:activation", "mean activation, and names of it by our test"),
    ("direct effect", "attribution:direct_effect", "what goes straight to the output (logit lens)"),
    ("zero ablation", "attribution:zero_ablation", "indirect effect of a unit held at zero"),
    ("gradient x activation", "attribution:gradient_activation", "derivative times activation"),
    ("attribution patching", "attribution:attribution_patching",
     "derivative times activation minus its mean"),
    ("integrated gradients", "attribution:integrated_gradients",
     "derivative averaged while a layer goes from its means to its activations"),
    ("raw attention", "attribution:raw_attention",
     "activation where the class token looks in the last block"),
    ("CLIP-Dissect", "labelling:clip_dissect", "SoftWPMI of the labels of top pictures"),
    ("Network Dissection", "labelling:network_dissection", "overlap of strong patches and labels"),
    ("top pictures", "labelling:top_pictures", "the commonest label of the ten strongest pictures"),
    ("virtual weights", "wiring:virtual_weights", "what a unit's row is to another's input weights"),
    ("rollout", "maps:rollout_maps", "products of all blocks' attention"),
    ("Grad-CAM", "maps:grad_cam_maps", "gradients times the last attention"),
    ("patch similarity", "maps:similarity_maps", "patches of the output compared with the text"),
    ("random", "bounds:random", "answers at random"),
    ("oracle", "bounds:oracle", "cheats: it looks at the truth"),
):
    contestants.register(_name, f"{__package__}.{_function}", help=_help)
