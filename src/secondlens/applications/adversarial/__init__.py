"""Semantic adversarial images: pictures of one class that a CLIP takes for another.

The steps of the attack (section 5 of arXiv 2406.04341) have a file each: `selection` of words,
`captioning`, `generation` of images, `judging`. `attacks` does all of them for one pair of classes
or many, in the run folders of `runs`.

Who writes captions and who draws them are registered here. A member's name is what stands before
the colon on the command line, and its factory gets the whole of what stands there.
"""

from typing import TYPE_CHECKING

from ...registry import Registry

if TYPE_CHECKING:
    from .captioning import Captioner
    from .generation import ImageGenerator

captioners: Registry["Captioner"] = Registry("captioner", "captioners")
"""Factories of `(chosen, *, device, model, timeout)`: the model of an endpoint, seconds a call."""
captioners.register("template", f"{__name__}.captioning:template", help="sentences with the words")
captioners.register("chat", f"{__name__}.chat:chat", help="chat:MODEL, a model of transformers")
for _scheme in ("http", "https"):
    captioners.register(
        _scheme,
        f"{__name__}.endpoint:endpoint",
        help="the address of an OpenAI-compatible endpoint, whose key is read from OPENAI_API_KEY",
    )

image_generators: Registry["ImageGenerator"] = Registry("image generator", "image-generators")
"""Factories of `(chosen, *, device, dtype, offload, steps, guidance, size)`; those without a
meaning for a generator are ignored by it."""
image_generators.register(
    "sprites", f"{__name__}.sprites:sprites", help="the embedded world, which knows what it shows"
)
image_generators.register(
    "diffusers",
    f"{__name__}.diffusion:diffusers",
    help="diffusers:PIPELINE, a text-to-image pipeline by hub name or folder",
)
