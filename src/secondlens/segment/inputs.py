"""Pictures as heat-maps need them: upright and whole."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..clip.view import Clip, Images
from ..errors import SecondLensError
from ..images import Unreadable, decode, upright_rgb


def open_picture(path: Path) -> Image.Image:
    """The upright RGB picture in a file.

    Raises
    ------
    SecondLensError
        There is none.
    """
    try:
        with path.open("rb") as file:
            return decode(file)
    except (OSError, Unreadable) as error:
        raise SecondLensError(f"{path} cannot be read as a picture: {error}") from error


def whole(clip: Clip, pictures: Images) -> Images:
    """Pictures squeezed into the model's square, so that preprocessing crops nothing away.

    Raises
    ------
    SecondLensError
        A picture cannot be decoded, or is more than a thousand times as long as wide.
    """
    turned = upright(pictures)
    if isinstance(turned, Tensor):
        return turned
    height, width = clip.image_size
    return [each.resize((width, height), Image.Resampling.BICUBIC) for each in turned]


def upright(pictures: Images) -> Images:
    """PIL images as RGB, turned as their files say; preprocessed images as they are.

    Raises
    ------
    SecondLensError
        As `whole`.
    """
    if isinstance(pictures, Tensor):
        return pictures
    try:
        return [upright_rgb(picture) for picture in pictures]
    except Unreadable as error:
        raise SecondLensError(f"a picture cannot be used: {error}") from error
