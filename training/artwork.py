"""Cuts the sprites of the second world out of openly licensed artwork.

    npm install --prefix training          # the icon and emoji sets of training/package.json
    apt-get install openclipart-png        # the drawings of the Open Clip Art Library
    python training/artwork.py             # writes training/world/data/sprites.zip

The zip holds one WebP for each depiction and `sprites.json`, a list of
`{file, name, style, split, silhouette}`. The splits, all of them chosen before any training:

train      what training sees
heldout    of every object, the depictions of one family of styles, chosen by hash
style      one emoji style in full, chosen by hash
older      what the first world held out (EmojiOne and its successors in `sprites.py`): never
           trained on either, so that the two worlds can be compared
"""

import argparse
import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import resvg_py
from PIL import Image
from rich.progress import track
from sprites import (
    AMBIGUOUS_ICONS,
    CLIPART_FOLDERS,
    FAMILY,
    HELDOUT_FAMILIES,
    ICON_WORDS,
    emoji_of_names,
    is_monochrome,
    slug,
    words_of,
)

from secondlens.demo.world import NAMES

HERE = Path(__file__).parent
COLOURED_SIDE = 112
"""Pixels of the longer side: the largest size at which a scene of 128 pixels shows an object."""
SILHOUETTE_SIDE = 88
"""Shapes of one colour lose nothing when they are enlarged a little."""

STYLE_CANDIDATES = ("fluent", "noto", "openmoji", "twemoji")
"""Emoji styles that depict nearly every name; the one with the smallest hash is held out."""

FAMILIES = FAMILY | {
    "icon-park-twotone": "icon-park",
    "streamline-flex": "streamline-flex",
    "fluent-color": "fluent-icons",
    "lucide-lab": "lucide",
}

EMOJI_SETS = (
    *("fluent-emoji-flat", "fluent-emoji-high-contrast", "noto-v1", "fxemoji"),
    *("emojione", "openmoji", "streamline-emojis"),
)
ICON_SETS = (
    *("basil", "bi", "bxs", "carbon", "cil", "clarity", "f7", "fa6-solid", "flat-color-icons"),
    *("fluent-color", "fontisto", "game-icons", "gis", "guidance", "healthicons", "hugeicons"),
    *("icon-park", "icon-park-solid", "icon-park-twotone", "iconoir", "ion", "la", "lucide"),
    *("lucide-lab", "mage", "majesticons", "maki", "map", "material-symbols", "mdi"),
    *("medical-icon", "meteocons", "mingcute", "mynaui", "pepicons-pop", "ph", "solar"),
    *("streamline", "streamline-color", "streamline-flex", "streamline-flex-color"),
    *("streamline-freehand-color", "streamline-pixel", "streamline-plump"),
    *("streamline-plump-color", "streamline-ultimate", "streamline-ultimate-color", "tabler"),
    *("tdesign", "temaki", "uis", "vaadin", "wpf"),
)

AMBIGUOUS = AMBIGUOUS_ICONS | {"seal"}
"""Names that icon sets use for something else, such as a seal on a letter."""
SOMETHING_ELSE = re.compile(
    "arms|barcode|candied|cap_|chips|coat_check|corn_dog|dead_frogs|dish|donkey_kevin|duck_yellow_ii"
    "|engine|eris|extinguisher|flying_spag|garlic_toast|glove|hot_dog|hub|juice|key_yemu|lane"
    "|lindworm|lutte|mateya|mountain_seal|muffin|opposite|pie_|pill.button|pointer|print_|rental"
    "|sauvetage|scrathing|slate|sword|tennis_shoe|toilet|under_sta|watch_for|wine|chicken_burger|^(horse|train|airplane)$"
)
"""Drawings of the Open Clip Art Library whose file name starts with what they do not show."""


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One depiction of a name, as it is written to the zip."""

    name: str
    style: str
    image: Image.Image
    silhouette: bool = False

    @property
    def family(self) -> str:
        return FAMILIES.get(self.style, self.style)


def cut_out(image: Image.Image, side: int) -> Image.Image | None:
    """Cropped to what is visible and at most `side` pixels; None where there is too little."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image if min(image.size) >= 12 else None


def render(icons: dict, key: str, side: int) -> Image.Image | None:
    """One icon of an Iconify set as a cut-out. Monochrome icons come out black."""
    icon = icons["icons"].get(key) or icons["icons"][icons["aliases"][key]["parent"]]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="192" height="192" color="black">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=192, height=192))
    return cut_out(Image.open(io.BytesIO(png)), side)


def icons_of(modules: Path, style: str) -> tuple[dict, bool, int]:
    """An Iconify set, whether it has one colour only, and the side to cut at."""
    icons = json.loads((modules / f"@iconify-json/{style}/icons.json").read_text())
    silhouette = is_monochrome(modules, style)
    return icons, silhouette, SILHOUETTE_SIDE if silhouette else COLOURED_SIDE


def emoji_pictures(modules: Path) -> Iterator[Cutout]:
    """Emoji that come as pictures, found by code point."""
    folders = {
        "fluent-3d": (modules / "@lobehub/fluent-emoji-3d/assets", "webp"),
        "twemoji": (modules / "emoji-datasource-twitter/img/twitter/64", "png"),
    }
    for name, emojis in emoji_of_names(modules).items():
        for emoji in emojis:
            code = emoji["hexcode"].lower()
            codes = (code, code.replace("-fe0f", ""), f"{code}-fe0f")
            for style, (folder, suffix) in folders.items():
                path = next((p for c in codes if (p := folder / f"{c}.{suffix}").exists()), None)
                if path and (image := cut_out(Image.open(path), COLOURED_SIDE)):
                    yield Cutout(name=name, style=style, image=image)


def emoji_icons(modules: Path) -> Iterator[Cutout]:
    """Emoji that come as drawings, found by the slug of their label."""
    emojis = emoji_of_names(modules)
    for style in ("noto", *EMOJI_SETS):
        icons, silhouette, side = icons_of(modules, style)
        known = icons["icons"].keys() | icons.get("aliases", {}).keys()
        for name in NAMES:
            labels = {slug(e["label"]) for e in emojis[name]} | {name}
            keys = {k for lab in labels for k in (lab, f"{lab}-face", lab.removesuffix("-face"))}
            for key in sorted(keys & known):
                if image := render(icons, key, side):
                    yield Cutout(name=name, style=style, image=image, silhouette=silhouette)


def icon_drawings(modules: Path) -> Iterator[Cutout]:
    """Icons whose name says just what they show: at most four of a name and coloured set."""
    names = {word: n for n in NAMES if n not in AMBIGUOUS for word in (n, n + "s")}
    names |= {word: name for name, words in ICON_WORDS.items() for word in words}
    for style in ICON_SETS:
        icons, silhouette, side = icons_of(modules, style)
        chosen: dict[str, list[str]] = defaultdict(list)
        for key in sorted(icons["icons"], key=lambda k: ("fill" not in k and "bold" not in k, k)):
            name = names.get(words_of(key))
            outline = re.search(r"outline|linear|thin|light|broken|line$", key)
            if name and not outline and len(chosen[name]) < (2 if silhouette else 4):
                chosen[name].append(key)
        for name, keys in chosen.items():
            for key in keys:
                if image := render(icons, key, side):
                    yield Cutout(name=name, style=style, image=image, silhouette=silhouette)


def clipart(root: Path, per_name: int = 40) -> Iterator[Cutout]:
    """Drawings of the Open Clip Art Library whose file name starts with an object's name."""
    names = {word: name for name in NAMES for word in (name, f"{name}s")}
    names |= {w: n for n, words in ICON_WORDS.items() for w in words if n not in AMBIGUOUS_ICONS}
    count: dict[str, int] = defaultdict(int)
    for path in sorted(root.rglob("*.png")):
        folders = path.relative_to(root).parts[:-1]
        if not folders or folders[0] not in CLIPART_FOLDERS or path.stat().st_size > 1_500_000:
            continue
        if {"cards", "chess", "dice", "flags", "icons", "maps"} & set(folders):
            continue
        if SOMETHING_ELSE.search(path.stem.lower()) or "sign" in " ".join(folders):
            continue
        words = [w for w in re.split(r"[^a-z]+", path.stem.lower()) if w]
        name = next((names[w] for w in (" ".join(words[:2]), *words[:2]) if w in names), None)
        if name is None or count[name] >= per_name:
            continue
        if image := cut_out(Image.open(path), COLOURED_SIDE):
            if image.getchannel("A").getextrema()[0] > 200:
                continue  # a picture with its own background has no outline to cut
            count[name] += 1
            yield Cutout(name=name, style="openclipart", image=image)


def by_hash(kind: str, values: set[str]) -> list[str]:
    """The values in an order that nobody chose."""
    return sorted(values, key=lambda value: sha256(f"secondlens {kind} {value}".encode()).digest())


def choose_splits(cutouts: list[Cutout]) -> list[str]:
    """The split of each cut-out, the same on every run.

    A name's held-out family is a coloured one if another coloured one is left to train on.
    """
    style = by_hash("style", set(STYLE_CANDIDATES))[0]
    coloured: dict[str, set[str]] = defaultdict(set)
    families: dict[str, set[str]] = defaultdict(set)
    for c in cutouts:
        families[c.name].add(c.family)
        if not c.silhouette:
            coloured[c.name].add(c.family)
    older = {n: next((f for f in HELDOUT_FAMILIES if f in families[n]), None) for n in NAMES}
    held = {}
    for name in NAMES:
        left = coloured[name] - {style, older[name]}
        if len(left) < 2:
            left = families[name] - {style, older[name]}
        held[name] = by_hash(f"depiction of {name}", left)[0] if len(left) > 1 else None
    return [
        "style"
        if c.family == style
        else "older"
        if c.family == older[c.name]
        else "heldout"
        if c.family == held[c.name]
        else "train"
        for c in cutouts
    ]


def encoded(cutout: Cutout) -> bytes:
    """A WebP file; what is transparent or of one colour costs nothing."""
    buffer = io.BytesIO()
    quality = 10 if cutout.silhouette else 78
    cutout.image.save(buffer, "webp", quality=quality, alpha_quality=70, method=6)
    return buffer.getvalue()


def write(cutouts: list[Cutout], path: Path) -> None:
    """One zip, the same bytes for the same cut-outs."""
    index, number, seen = [], defaultdict(int), set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for cutout, split in zip(cutouts, choose_splits(cutouts), strict=True):
            data = encoded(cutout)
            if (digest := sha256(data).digest()) in seen:
                continue  # two labels of one drawing, or one artist's drawing in two sets
            seen.add(digest)
            stem = f"{cutout.style}/{cutout.name}"
            number[stem] += 1
            file = f"{stem}-{number[stem]}.webp"
            archive.writestr(zipfile.ZipInfo(file), data)
            index.append(
                {
                    "file": file,
                    "name": cutout.name,
                    "style": cutout.style,
                    "split": split,
                    "silhouette": cutout.silhouette,
                }
            )
        archive.writestr(zipfile.ZipInfo("sprites.json"), json.dumps(index, indent=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modules", type=Path, default=HERE / "node_modules")
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--out", type=Path, default=HERE / "world/data/sprites.zip")
    args = parser.parse_args()
    sources = (
        emoji_pictures(args.modules),
        emoji_icons(args.modules),
        icon_drawings(args.modules),
        clipart(args.clipart),
    )
    cutouts = [c for source in sources for c in track(source, "sprites", total=None)]
    write(cutouts, args.out)
    print(f"{len(cutouts)} sprites, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
