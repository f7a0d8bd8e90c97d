"""The attack lab: a small attack on the embedded world while a visitor waits."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from ..attack import attack as attack_lens
from ..clip import DEMOS
from ..clip.view import Clip
from ..demo.world import NAMES
from ..lens import Lens
from ..report.page import data_uri
from .numbers import json_ready

PICTURES = 8
"""Of an attack."""


def classes(clip: Clip) -> Sequence[str]:
    """What can be drawn and mistaken: the objects of an embedded model's world, of others none."""
    return NAMES if clip.name in DEMOS else ()


def attack(clip: Clip, lens: Lens, draw: str, mistake_for: str) -> dict[str, Any]:
    """A small attack from words to verdicts, with its pictures; nothing of it is kept.

    Raises
    ------
    SecondLensError
        What `attack` raises.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        report = attack_lens(
            *(clip, lens, draw, mistake_for, out), captions=PICTURES // 2, images=PICTURES
        ).as_json()
        for shot in report["shots"]:
            shot["picture"] = _inline(out / shot["file"])
            shot["plain"] = _inline(out / shot["plain_file"])
    shown: dict[str, Any] = json_ready(report)
    return shown


def _inline(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(picture.convert("RGB"), "webp", quality=80)
