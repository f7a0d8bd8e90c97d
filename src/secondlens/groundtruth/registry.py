"""The lists of networks and of contestants of the bench; nothing here needs torch."""

from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .contestants import Contestant
    from .program import Program

networks: "Registry[Program]" = Registry("network", "networks")
"""Each is a program without arguments; order as in the table."""

for _name, _function, _help in (
    ("marks", "marks", "one detector for each of 16 textures and shapes, through values"),
    ("depth", "depth", "detectors of marks and tints in three layers, read by one late head"),
    ("pairs", "pairs", "units that fire on two unrelated marks, beside some that fire on one"),
    (
        "keys",
        "keys",
        "shapes draw the look of the class token, through keys",
    ),
    (
        "queries",
        "queries",
        "textures make the class token look at shapes, through its query",
    ),
    ("feeding", "feeding", "detectors that only later units at the class token read"),
    ("relay", "relay", "values that pass two heads, and units that feed a reader at the end"),
    ("norms", "norms", "units that LayerNorms undo, and units that scale everything else down"),
    ("repair", "repair", "units whose effect a later unit takes away again"),
    ("duplicates", "duplicates", "three units for each of five marks, in two layers"),
    ("idle", "idle", "units that fire on no picture or everywhere, among detectors"),
    (
        "cue",
        "cue",
        "dots make it a ship: through values and through a later unit",
    ),
    (
        "hidden cue",
        "hidden_cue",
        "dots make it a ship by where the class token looks, not by values",
    ),
    ("inhibited", "inhibited", "shapes, unless they are red or blue"),
    (
        "superposed",
        "superposed",
        "18 marks in 12 units: a unit fires on three, a mark raises two",
    ),
    ("everything", "everything", "all parts of the language in one network"),
):
    networks.register(_name, f"{__package__}.networks:{_function}", help=_help)

contestants: "Registry[Contestant]" = Registry("contestant", "contestants")
"""By name; ours first, bounds last."""

for _name, _function, _help in (
    ("value path", "attribution:value_path", "second-order effects, and names of them"),
    ("all paths", "attribution:all_paths", "finite effects by all classes of paths (ours)"),
    ("activation", "attribution:activation", "mean activation, and names of it by our test"),
    (
        "effect or activation",
        "labelling:effect_or_activation",
        "names that pass our test on value-path effects or on activations (ours)",
    ),
    ("direct effect", "attribution:direct_effect", "what goes straight to the output (logit lens)"),
    ("zero ablation", "attribution:zero_ablation", "indirect effect of a unit held at zero"),
    ("gradient x activation", "attribution:gradient_activation", "derivative times activation"),
    (
        "attribution patching",
        "attribution:attribution_patching",
        "derivative times activation minus its mean",
    ),
    (
        "integrated gradients",
        "attribution:integrated_gradients",
        "derivative averaged while a layer goes from its means to its activations",
    ),
    (
        "raw attention",
        "attribution:raw_attention",
        "activation where the class token looks in the last block",
    ),
    ("CLIP-Dissect", "labelling:clip_dissect", "SoftWPMI of the labels of top pictures"),
    ("Network Dissection", "labelling:network_dissection", "overlap of strong patches and labels"),
    ("top pictures", "labelling:top_pictures", "the commonest label of the ten strongest pictures"),
    (
        "virtual weights",
        "wiring:virtual_weights",
        "a unit's row times another's input weights",
    ),
    ("rollout", "maps:rollout_maps", "products of all blocks' attention"),
    ("Grad-CAM", "maps:grad_cam_maps", "gradients times the last attention"),
    ("patch similarity", "maps:similarity_maps", "patches of the output compared with the text"),
    ("random", "bounds:random", "answers at random"),
    ("oracle", "bounds:oracle", "cheats: it looks at the truth"),
):
    contestants.register(_name, f"{__package__}.{_function}", help=_help)
