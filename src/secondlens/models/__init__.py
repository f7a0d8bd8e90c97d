"""One view over any CLIP: where models come from, what the mathematics reads, and whether it is so.

`open_clip`, `timm` and `transformers` hold a file for each kind of tower, which turns a model in
memory into a `Clip` of `view`, made of `blocks` and of what `readers` say reads the tokens;
`loading` finds models by name, `checks` holds the view against what the model computes.

A tower that computes anything else than the mathematics describes is refused, with the reason, and
every view is checked against the model's own forward pass before it is handed out.

Ways to name a model are registered here; `loading.load` says what their factories get.
"""

from typing import TYPE_CHECKING

from ..registry import Member, Registry

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .view import Clip

named_models: Registry["Clip"] = Registry("model", "models")
"""Factories of `(name, *, pretrained, device, precision, activation, check)`, by a whole name or by
what stands before the colon in it; every other name is open_clip's."""

picture_reader: Member["list[Image] | Tensor"] = Member(
    name="pictures",
    factory="secondlens.data.sources:pictures_of",
    help="upright RGB pictures of whatever names or holds some",
)
"""What a `Clip` asks for pictures. Files are read above this package, which imports nothing there:
the function is looked up when something else than a tensor is first given."""

for _name, _function, _help in (
    ("demo", "loading:demo", "the embedded model: drawn scenes"),
    ("demo-twin", "loading:demo", "the same without planted cues: the referee of demo"),
    ("hf", "loading:hugging_face", "hf:MODEL, a model of transformers by hub name or folder"),
    ("units", "units.folders:by_units", "units:FOLDER, a model with units that save_units wrote"),
    ("timm", "timm.loading:by_timm", "timm:MODEL, a vision transformer of timm by name or folder"),
    (
        "open_clip",
        "loading:by_open_clip",
        "any other name, such as ViT-B-32 with --pretrained openai",
    ),
):
    named_models.register(_name, f"{__name__}.{_function}", help=_help)
