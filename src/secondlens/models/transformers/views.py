"""The `Clip` of a transformers model, whatever its family, or the reason why it has none."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn

from ...arguments import checked
from ...devices import undisturbed
from ...errors import SecondLensError, SecondLensWarning, UnsupportedModel
from ...naming import shown
from ..checks import activation_name, check_parity
from ..classes import ClassNames
from ..view import Clip, check_eval
from ..wrappers import not_compiled, plain
from .clip import CLIP
from .dino import DINO_2, DINO_3
from .families import Family, TowerView, configuration_refusals
from .siglip import SIGLIP
from .vit import VIT

FAMILIES = (CLIP, SIGLIP, DINO_2, DINO_3, VIT)
COVERED = tuple(name for family in FAMILIES for name in family.models)


@checked
@undisturbed
def from_transformers(
    model: nn.Module,
    image_processor: Callable[..., Any] | None = None,
    tokenizer: Callable[..., Any] | None = None,
    name: str = "transformers model",
    check: bool = True,
) -> Clip:
    """View a transformers model that is in memory. The model itself is never changed.

    Parameters
    ----------
    model
        A model of a class in `COVERED` (CLIP, MetaCLIP 2, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT)
        with any attention implementation, in eval mode, on the device and in the precision it
        shall keep.
    image_processor
        From `AutoImageProcessor`; without it, images must come preprocessed.
    tokenizer
        From `AutoTokenizer`; without it, there is no `encode_text`. A model without a text tower
        cannot use one: the texts of a classifier are its classes.
    name
        What it is called in messages and in what is written; of a path, the last part.
    check
        Whether to run `check_parity`.

    Raises
    ------
    SecondLensError
        The model is in training mode, or has NaN or infinite weights, or an image tower of mixed
        precision.
    UnsupportedModel
        The tower computes something that the effects do not describe, or its configuration sets
        what is not known here.
    """
    model = plain(model, name)
    check_eval(model)
    family = family_of(type(model).__name__, name)
    for reason in (*configuration_refusals(family, model.config), *family.refusals(model)):
        raise UnsupportedModel(f"{name} cannot be explained: {reason}")
    view = family.view(model)
    _check_precision(view, name)
    preprocess = None
    if image_processor is not None:
        preprocess = (view.preprocess or _Preprocess)(image_processor)
    size = _image_size(view, preprocess)
    if view.preprocess is not None and preprocess is not None:
        warnings.warn(
            f"{name} takes pictures of every shape, each with a grid of its own (NaFlex), and a "
            f"lens needs one grid for all: pictures are squeezed to {size[0]} x {size[1]} pixels",
            SecondLensWarning,
            stacklevel=2,
        )
    grid = (size[0] // view.patch[0], size[1] // view.patch[1])
    clip = Clip(
        name=shown(name),
        origin=name,
        activation=activation_name(view.blocks[0].activation),
        blocks=tuple(block.at_grid(grid) for block in view.blocks),
        ln_post=view.ln_post,
        patches=view.patches,
        read_projection=view.read_projection,
        read_offset=view.read_offset,
        reader=view.reader,
        prefix=view.prefix,
        image_size=size,
        grid=grid,
        batch_first=True,
        model=model,
        # no functions within this one: a model must be able to go to other processes
        image_tower=partial(_encode_image, model, view.encode),
        text_tower=_text_tower(view, model, tokenizer, name),
        tokenizer=tokenizer,
        preprocess=preprocess,
        view_of=partial(from_transformers, image_processor=image_processor, name=name, check=False),
        context_length=_context_length(view),
    )
    if check:
        check_parity(clip)
    return clip


def family_of(model: str, name: str) -> Family:
    """The family of a class of models.

    Raises
    ------
    UnsupportedModel
        It is not covered.
    """
    for family in FAMILIES:
        if model in family.models:
            return family
    raise UnsupportedModel(
        f"{name} cannot be explained: it is a {model}, and only transformers' "
        f"{', '.join(COVERED[:-1])} and {COVERED[-1]} are covered"
    )


def family_of_configuration(configuration: Any, name: str) -> tuple[str, Family]:
    """The class of models that a configuration is of, and its family.

    Raises
    ------
    UnsupportedModel
        The configuration decides that the model is not covered.
    """
    kind = configuration.model_type
    known = {
        model: family for family in FAMILIES for model, of in family.models.items() if of == kind
    }
    if not known:
        raise UnsupportedModel(
            f"hf:{name} cannot be explained: it is a {kind} model, and only transformers' "
            f"{', '.join(COVERED[:-1])} and {COVERED[-1]} are covered"
        )
    named = [each for each in configuration.architectures or () if each in known]
    model = named[0] if named else next(iter(known))
    for reason in configuration_refusals(known[model], configuration):
        raise UnsupportedModel(f"hf:{name} cannot be explained: {reason}")
    return model, known[model]


def _check_precision(view: TowerView, name: str) -> None:
    """Raise `SecondLensError` if images would go through weights of several precisions."""
    weights = [weight for module in view.tower for weight in module.parameters()]
    found = sorted({str(each.dtype) for each in weights if each.is_floating_point()})
    if len(found) > 1:
        raise SecondLensError(
            f"the image tower of {name} has weights of {' and '.join(found)}: convert the whole "
            "model to one of them, with model.to(...)"
        )


def _image_size(view: TowerView, preprocess: Callable[[Image], Tensor] | None) -> tuple[int, int]:
    """What pictures become: where the tower takes any size, the image processor decides."""
    if preprocess is None or not view.any_size:
        return view.image_size
    height, width = preprocess(new_image("RGB", view.image_size[::-1])).shape[-2:]
    return (height, width)


def _encode_image(model: nn.Module, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with not_compiled(model):
        return encode(images)


def _context_length(view: TowerView) -> int:
    if view.classes is None:
        return view.context_length
    return max(len(each.encode()) for each in view.classes) + 2  # marks of start and end


def _text_tower(
    view: TowerView, model: nn.Module, tokenizer: Any, name: str
) -> Callable[[list[str]], Tensor] | None:
    if view.classes is not None:
        return ClassNames(model=name, names=view.classes, like=view.read_projection)
    if view.embed is None:
        # without a text tower it is the encoder that says so
        return partial(_no_texts, f"{name} has no text tower, so it embeds images only", view)
    if tokenizer is None:
        return None
    return partial(_encode_text, view, model, tokenizer)


def _no_texts(why: str, view: TowerView, texts: list[str]) -> NoReturn:
    raise SecondLensError(f"{why}: {view.instead}")


def _encode_text(view: TowerView, model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    assert view.embed is not None
    tokens = tokenizer(
        texts,
        padding=view.padding,
        truncation=True,
        max_length=view.context_length,
        return_tensors="pt",
    ).to(next(model.parameters()).device)
    return view.embed(tokens)


@dataclass(frozen=True)
class _Preprocess:
    """One picture through an image processor; a class, so that worker processes can have it."""

    processor: Any

    def __call__(self, image: Image) -> Tensor:
        return self._part(image)

    def eight_bits(self, image: Image) -> Tensor:
        """See `Halved`."""
        return self._part(image, do_rescale=False, do_normalize=False)

    def normalised(self, image: Image) -> Tensor:
        """See `Halved`."""
        return self._part(image, do_resize=False, do_center_crop=False)

    def _part(self, image: Image, **without: bool) -> Tensor:
        processed = self.processor(images=image.convert("RGB"), return_tensors="pt", **without)
        pixels: Tensor = processed.pixel_values[0]
        return pixels
