"""From an encoded picture to upright RGB, or to one reason why not.

What is decided here, for every source:

- EXIF orientation is applied; damaged EXIF data is ignored.
- An animation is its first frame, and a multi-page TIFF its first page.
- Transparent pixels show white, the page that such pictures are drawn for.
- 16-bit grey keeps its whole range: 65,535 is white. Floats have no white and are refused.
- Texts in a PNG do not count, however large they are.
- HEIC needs the extra `heif`.
- Colour profiles are ignored, as the preprocessing of CLIP does.
- Pictures that would need gigabytes, decoded or resized, are refused.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import SecondLensError
from ..models.view import Clip, Images
from ..storage.regular import check_regular

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# PostScript would start a program, and formats without a signature would claim any file.
_FORMATS = {
    "AVIF",
    "BMP",
    "GIF",
    "HEIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "QOI",
    "TIFF",
    "WEBP",
}
SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS
)
"""Of the files that count as pictures, such as `.jpg`."""

_OPENED = sorted(_FORMATS & Image.OPEN.keys())

LARGEST_FILE = 2**29
"""Bytes of an encoded picture: more than the most pixels of it take without any compression."""
MAX_ELONGATION = 1000
"""Longer side to shorter: resizing the shorter one blows the longer one up as much."""


class Unreadable(ValueError):
    """A picture that cannot be decoded; the message is the reason."""


def decode(file: io.BufferedReader | io.BytesIO, *, most_pixels: int | None = None) -> Image.Image:
    """The upright RGB picture in an open file.

    Parameters
    ----------
    most_pixels
        Larger pictures are refused before they are decoded; by default, those with more pixels
        than Pillow lets pass.

    Raises
    ------
    Unreadable
        It is empty, damaged, cut off, too large, or no picture.
    """
    # some decoders read a file to its end before they look at it
    if (size := file.seek(0, io.SEEK_END)) > LARGEST_FILE:
        raise Unreadable(f"its file has {size:,} bytes, and {LARGEST_FILE:,} are the most")
    file.seek(0)
    if not size:
        raise Unreadable("it is empty")
    with _reasons():
        try:
            return _decoded(file, most_pixels)
        except ValueError:
            file.seek(0)
            if (without := _without_texts(file.read())) is None:
                raise
        return _decoded(io.BytesIO(without), most_pixels)


def _decoded(file: io.BufferedReader | io.BytesIO, most_pixels: int | None) -> Image.Image:
    picture = Image.open(file, formats=_OPENED)
    if most_pixels is not None and picture.width * picture.height > most_pixels:
        raise Unreadable(f"it has more than {most_pixels:,} pixels")
    return _upright_rgb(picture)


_PNG = b"\x89PNG\r\n\x1a\n"


def _without_texts(encoded: bytes) -> bytes | None:
    """A PNG without its texts, whose size Pillow limits; None if there are none to leave out."""
    if not encoded.startswith(_PNG):
        return None
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(encoded):
        end = start + 12 + int.from_bytes(encoded[start : start + 4])
        if encoded[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(encoded[start:end])
        start = end
    without = b"".join(kept)
    return without if len(without) < len(encoded) else None


def decode_file(path: Path) -> Image.Image:
    """The upright RGB picture in a file; a pipe or device is not waited for.

    Raises
    ------
    OSError, ValueError
        There is none.
    """
    check_regular(path)
    with path.open("rb") as file:
        return decode(file)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture itself if it is upright RGB already, or a copy that is.

    Raises
    ------
    Unreadable
        Its pixels cannot be read, or mean no colours.
    """
    with _reasons():
        return _upright_rgb(picture)


DIGESTED = 128
"""Rows and columns of a picture that its digest counts, if it has more of both."""


def digest(picture: Image.Image | Tensor) -> str:
    """What an upright RGB picture shows, as 16 hexadecimal digits, to find it under another name.

    Large pictures are told apart by evenly spaced pixels and by their size; of preprocessed tensors
    every value counts.
    """
    if isinstance(picture, Tensor):
        size = tuple(picture.shape)
        values = picture.detach().cpu().double().numpy()
    else:
        size = picture.size
        if picture.width * picture.height > DIGESTED**2:
            picture = picture.resize((DIGESTED, DIGESTED), Image.Resampling.NEAREST)
        values = np.asarray(picture)
    found = hashlib.blake2b(repr(size).encode(), digest_size=8)
    found.update(values.tobytes())
    return found.hexdigest()


def _upright_rgb(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    if max(width, height) > MAX_ELONGATION * min(width, height):
        raise Unreadable(f"{width} x {height} pixels are too long and thin to resize")
    # decoding comes first: TIFF turns itself upright here
    picture.load()
    if _turned(picture):
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode == "F":
        raise Unreadable("its pixels are floats, for which no value is white")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _turned(picture: Image.Image) -> bool:
    try:
        return bool(picture.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except Exception:  # whatever a parser trips over, the pixels are fine
        return False


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey from 16-bit values, which Pillow would cut off at 255."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise Unreadable("its pixels are whole numbers beyond 16 bits, for which no value is white")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


@contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever a decoder raises into `Unreadable`, and keeps its warnings quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except Unreadable:
            raise
        except UnidentifiedImageError as error:
            raise Unreadable("it is no picture in a known format") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Unreadable(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
        except Exception as error:  # decoders raise whatever their parsers trip over
            raise Unreadable(f"it is damaged: {error or type(error).__name__}") from error


def open_picture(path: Path) -> Image.Image:
    """The upright RGB picture in a file.

    Raises
    ------
    SecondLensError
        There is none.
    """
    try:
        return decode_file(path)
    except (OSError, ValueError) as error:
        raise SecondLensError(f"{path} cannot be read as a picture: {error}") from error


def whole(clip: Clip, pictures: Images) -> Images:
    """Pictures squeezed into the model's square, so that preprocessing crops nothing away.

    Raises
    ------
    SecondLensError
        A picture cannot be decoded, or is more than a thousand times as long as wide.
    """
    if isinstance(pictures, Tensor):
        return pictures
    height, width = clip.image_size
    try:
        turned = [upright_rgb(picture) for picture in pictures]
    except Unreadable as error:
        raise SecondLensError(f"a picture cannot be used: {error}") from error
    return [each.resize((width, height), Image.Resampling.BICUBIC) for each in turned]
