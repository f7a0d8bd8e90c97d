"""Pictures and texts as heat-maps need them: whole, and read to their end."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
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


def embed_texts(clip: Clip, texts: str | Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Unit rows for one text or several, which the model must read to their end.

    Raises
    ------
    SecondLensError
        No texts, an empty one, or one longer than the model's context.
    """
    texts = [text.strip() for text in ([texts] if isinstance(texts, str) else texts)]
    if not texts:
        raise SecondLensError("there are no texts: give at least one")
    if not all(texts):
        raise SecondLensError("one of the texts is empty: say what to look for")
    rows = clip.encode_text(texts)
    # tokenizers cut in silence: where the last letter changes nothing, it was not read
    distances = (rows - clip.encode_text([text[:-1] for text in texts])).norm(dim=1)
    for text, distance in zip(texts, distances.tolist(), strict=True):
        if distance < torch.finfo(clip.dtype).eps ** 0.5:
            raise SecondLensError(
                f"the text {text[:30]!r}… is longer than {clip.name} can read: shorten it"
            )
    return rows
