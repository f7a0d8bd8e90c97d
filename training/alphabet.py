"""Draws the letters of the second world from free fonts.

    npm install --prefix training          # the fonts of training/package.json
    python training/alphabet.py            # writes training/world/data/letters.zip

The zip holds pictures of letters, no fonts: for every face one PNG strip with a to z and A to Z,
and `letters.json`, a list of `{file, font, weight, height, cells}`; a cell is
`[left, width, bearing, advance]` of a letter, in pixels of the strip.
"""

import argparse
import io
import json
import string
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
EM = 36
"""Pixels of the em: letters on a scene of 128 pixels are rarely larger."""
MARGIN = 8


def strip(path: Path) -> tuple[Image.Image, list[list[int]]]:
    """All letters of a font beside one another, and where each of them is."""
    font = ImageFont.truetype(path, EM)
    boxes = {letter: font.getbbox(letter, anchor="ls") for letter in string.ascii_letters}
    top = min(int(box[1]) for box in boxes.values()) - 1
    bottom = max(int(box[3]) for box in boxes.values()) + 1
    cells, left = [], 0
    for letter, box in boxes.items():
        bearing, width = int(box[0]) - 1, int(box[2]) - int(box[0]) + 2
        cells.append([left, width, bearing, round(font.getlength(letter))])
        left += width
    image = Image.new("L", (left, bottom - top))
    draw = ImageDraw.Draw(image)
    for letter, (x, _, bearing, _) in zip(boxes, cells, strict=True):
        draw.text((x - bearing, -top), letter, fill=255, font=font, anchor="ls")
    return image, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modules", type=Path, default=HERE / "node_modules")
    parser.add_argument("--out", type=Path, default=HERE / "world/data/letters.zip")
    args = parser.parse_args()
    index = []
    with zipfile.ZipFile(args.out, "w", zipfile.ZIP_STORED) as archive:
        for folder in sorted((args.modules / "@fontsource").iterdir()):
            for weight in (400, 700):
                path = folder / f"files/{folder.name}-latin-{weight}-normal.woff2"
                if not path.exists():
                    continue
                image, cells = strip(path)
                buffer = io.BytesIO()
                image.save(buffer, "png", optimize=True)
                file = f"{folder.name}-{weight}.png"
                archive.writestr(zipfile.ZipInfo(file), buffer.getvalue())
                index.append(
                    {
                        "file": file,
                        "font": folder.name,
                        "weight": weight,
                        "height": image.height,
                        "cells": cells,
                    }
                )
        archive.writestr(zipfile.ZipInfo("letters.json"), json.dumps(index))
    print(f"{len(index)} faces, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
