"""Cuts the sprites of the embedded world out of openly licensed artwork.

    npm install --prefix training          # the icon and emoji sets of training/package.json
    apt-get install openclipart-png        # the drawings of the Open Clip Art Library
    python training/sprites.py             # writes src/secondlens/demo/data/sprites.zip

The zip holds one WebP per depiction and `sprites.json`, a list of
`{file, name, style, split, silhouette}`. Splits: `train`; `heldout`, for every object one artist's
depictions, never trained on; `style`, the whole of Twemoji, never trained on.
"""

import argparse
import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import resvg_py
from PIL import Image
from rich.progress import track

from secondlens.demo.world import NAMES

HERE = Path(__file__).parent
DATA = HERE / "../src/secondlens/demo/data"
SIZE = 72

FAMILY = {
    "fluent-3d": "fluent",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji-high-contrast": "fluent",
    "noto": "noto",
    "noto-v1": "noto",
    "emojione": "emojione",
    "emojione-monotone": "emojione",
    "icon-park-solid": "icon-park",
}
"""Styles whose drawings are variations of each other are held out together. Others stand alone."""

HELDOUT_FAMILIES = (
    *("emojione", "icon-park"),
    *("game-icons", "hugeicons", "mingcute", "healthicons", "mdi"),  # silhouettes
)
HELDOUT_STYLE = "twemoji"

EMOJI_SETS = (
    *("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "noto-v1", "fxemoji"),
    *("emojione", "emojione-monotone", "streamline-emojis"),
)
ICON_SETS = (
    *("flat-color-icons", "game-icons", "healthicons", "hugeicons", "icon-park"),
    *("icon-park-solid", "lucide", "maki", "mdi", "mingcute", "ph", "solar", "streamline-color"),
    *("streamline-flex-color", "streamline-freehand-color", "streamline-plump-color"),
    *("streamline-ultimate-color", "tabler", "temaki"),
)

EMOJI_LABELS: dict[str, tuple[str, ...]] = {
    "apple": ("red apple", "green apple"),
    "automobile": ("sport utility vehicle", "oncoming automobile"),
    "bee": ("honeybee",),
    "beer": ("beer mug",),
    "boat": ("sailboat", "speedboat", "motor boat"),
    "books": ("closed book", "open book", "green book", "blue book"),
    "boot": ("woman’s boot", "hiking boot"),
    "burger": ("hamburger",),
    "bus": ("oncoming bus", "minibus", "trolleybus"),
    "cake": ("birthday cake", "shortcake"),
    "calendar": ("tear-off calendar",),
    "camel": ("two-hump camel",),
    "camera": ("camera with flash",),
    "cheese": ("cheese wedge",),
    "chocolate": ("chocolate bar",),
    "clock": ("alarm clock", "mantelpiece clock"),
    "coffee": ("hot beverage",),
    "corn": ("ear of corn",),
    "dice": ("game die",),
    "fish": ("tropical fish",),
    "fries": ("french fries",),
    "gift": ("wrapped gift",),
    "hat": ("top hat", "woman’s hat"),
    "house": ("house with garden",),
    "key": ("old key",),
    "moon": ("crescent moon",),
    "mushroom": ("brown mushroom",),
    "newspaper": ("rolled-up newspaper",),
    "pepper": ("hot pepper", "bell pepper"),
    "piano": ("musical keyboard",),
    "pumpkin": ("jack-o-lantern",),
    "sheep": ("ewe", "ram"),
    "shell": ("spiral shell",),
    "ship": ("passenger ship",),
    "shirt": ("t-shirt",),
    "shoe": ("man’s shoe", "running shoe"),
    "snowman": ("snowman without snow",),
    "sofa": ("couch and lamp",),
    "taxi": ("oncoming taxi",),
    "telephone": ("telephone receiver",),
    "tie": ("necktie",),
    "train": ("high-speed train", "bullet train", "locomotive"),
    "tree": ("evergreen tree", "deciduous tree", "leafless tree"),
    "truck": ("delivery truck", "articulated lorry", "pickup truck"),
    "umbrella": ("closed umbrella", "umbrella with rain drops"),
    "whale": ("spouting whale",),
}
"""Emoji that depict a name under another label. A name's own label always counts."""

ICON_WORDS: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane"),
    "automobile": ("car",),
    "bicycle": ("bike",),
    "books": ("book",),
    "burger": ("hamburger",),
    "cherries": ("cherry",),
    "dice": ("die",),
    "doughnut": ("donut",),
    "fire": ("flame",),
    "gloves": ("glove",),
    "grapes": ("grape",),
    "headphone": ("headphones",),
    "house": ("home",),
    "lamp": ("desk lamp", "table lamp", "floor lamp"),
    "mosquito": ("mosquitos",),
    "motorcycle": ("motorbike",),
    "peanuts": ("peanut",),
    "rocket": ("spaceship rocket",),
    "scissors": ("scissor",),
    "shell": ("seashell", "sea shell"),
    "ship": ("cruise ship", "cargo ship"),
    "shirt": ("t shirt", "tshirt"),
    "skis": ("ski",),
    "sofa": ("couch",),
    "socks": ("sock",),
    "sunglasses": ("sunglass",),
    "telephone": ("phone classic",),
    "television": ("tv",),
    "tree": ("pine tree", "palm tree", "oak"),
    "whale": ("sperm whale",),
}
"""Icons that depict a name under another name."""

AMBIGUOUS_ICONS = frozenset({"mouse", "ring", "tie"})
"""Names that icon sets use for something else (a computer mouse, a telephone ring)."""

NOT_PART_OF_A_NAME = frozenset(
    """
    face head fill filled bold solid duotone outline linear broken regular light thin line
    rounded round sharp alt alternative variant icon animal food pet 1 2 3 4 5 6 7 8 9 01 02
    03 sitting side front standing running flying simple emoji flat color two tone
    """.split()  # noqa: SIM905
)

CLIPART_FOLDERS = frozenset(
    """
    animals food plants transportation tools recreation buildings electronics computer office
    containers people science geography household
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class Sprite:
    name: str
    style: str
    image: Image.Image
    silhouette: bool = False

    @property
    def family(self) -> str:
        return FAMILY.get(self.style, self.style)


def cut_out(image: Image.Image) -> Image.Image | None:
    """Cropped to what is visible and scaled to SIZE, or None where there is nothing to see."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image if min(image.size) >= 10 else None


def render_icon(icons: dict, key: str) -> Image.Image | None:
    """One icon of an Iconify set as a cut-out. Monochrome icons come out black."""
    icon = icons["icons"].get(key) or icons["icons"][icons["aliases"][key]["parent"]]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="96" height="96" color="black">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=96, height=96))
    return cut_out(Image.open(io.BytesIO(png)))


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def emoji_of_names(modules: Path) -> dict[str, list[dict]]:
    """Name -> the emoji that depict it."""
    by_label = {
        emoji["label"].lower(): emoji
        for emoji in json.loads((modules / "emojibase-data/en/data.json").read_text())
    }
    found: dict[str, list[dict]] = {}
    for name in NAMES:
        labels = (name, f"{name} face", *EMOJI_LABELS.get(name, ()))
        found[name] = [by_label[label] for label in labels if label in by_label]
    return found


def emoji_pictures(modules: Path) -> Iterator[Sprite]:
    """Emoji that come as pictures, found by code point."""
    folders = {
        "fluent-3d": (modules / "@lobehub/fluent-emoji-3d/assets", "webp"),
        "noto": (modules / "emoji-datasource-google/img/google/64", "png"),
        HELDOUT_STYLE: (modules / "emoji-datasource-twitter/img/twitter/64", "png"),
    }
    for name, emojis in emoji_of_names(modules).items():
        for emoji in emojis:
            code = emoji["hexcode"].lower()
            codes = (code, code.replace("-fe0f", ""), f"{code}-fe0f")
            for style, (folder, suffix) in folders.items():
                path = next((p for c in codes if (p := folder / f"{c}.{suffix}").exists()), None)
                if path and (image := cut_out(Image.open(path))):
                    yield Sprite(name=name, style=style, image=image)


def is_monochrome(modules: Path, style: str) -> bool:
    return not json.loads((modules / f"@iconify-json/{style}/info.json").read_text())["palette"]


def emoji_icons(modules: Path) -> Iterator[Sprite]:
    """Emoji that come as drawings, found by the slug of their label."""
    emojis = emoji_of_names(modules)
    for style in EMOJI_SETS:
        icons = json.loads((modules / f"@iconify-json/{style}/icons.json").read_text())
        known = icons["icons"].keys() | icons.get("aliases", {}).keys()
        silhouette = is_monochrome(modules, style)
        for name in NAMES:
            labels = {slug(e["label"]) for e in emojis[name]} | {name}
            keys = {k for lab in labels for k in (lab, f"{lab}-face", lab.removesuffix("-face"))}
            for key in sorted(keys & known):
                if image := render_icon(icons, key):
                    yield Sprite(name=name, style=style, image=image, silhouette=silhouette)


def words_of(key: str) -> str:
    words = [w for w in re.split(r"[-_ ]+", key.lower()) if w not in NOT_PART_OF_A_NAME]
    return " ".join(words)


def icon_drawings(modules: Path, per_set: int = 3) -> Iterator[Sprite]:
    """Icons whose name says just what they show."""
    names = {word: n for n in NAMES if n not in AMBIGUOUS_ICONS for word in (n, n + "s")}
    names |= {word: name for name, words in ICON_WORDS.items() for word in words}
    for style in ICON_SETS:
        icons = json.loads((modules / f"@iconify-json/{style}/icons.json").read_text())
        silhouette = is_monochrome(modules, style)
        chosen: dict[str, list[str]] = defaultdict(list)
        for key in sorted(icons["icons"], key=lambda k: ("fill" not in k and "bold" not in k, k)):
            name = names.get(words_of(key))
            outline = re.search(r"outline|linear|thin|light|broken|line$", key)
            if name and not outline and len(chosen[name]) < per_set:
                chosen[name].append(key)
        for name, keys in chosen.items():
            for key in keys:
                if image := render_icon(icons, key):
                    yield Sprite(name=name, style=style, image=image, silhouette=silhouette)


def clipart(root: Path, per_name: int = 12) -> Iterator[Sprite]:
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
        words = [w for w in re.split(r"[^a-z]+", path.stem.lower()) if w]
        name = next((names[w] for w in (" ".join(words[:2]), *words[:2]) if w in names), None)
        if name is None or count[name] >= per_name:
            continue
        if image := cut_out(Image.open(path)):
            if image.getchannel("A").getextrema()[0] > 200:
                continue  # a picture with its own background has no outline to cut
            count[name] += 1
            yield Sprite(name=name, style="openclipart", image=image)


def choose_splits(sprites: list[Sprite]) -> list[str]:
    """`train`, `heldout` or `style` for each sprite, the same on every run."""
    families: dict[str, set[str]] = defaultdict(set)
    for sprite in sprites:
        families[sprite.name].add(sprite.family)
    held = {n: next((f for f in HELDOUT_FAMILIES if f in families[n]), None) for n in NAMES}
    return [
        "style"
        if s.style == HELDOUT_STYLE
        else "heldout"
        if held.get(s.name) == s.family
        else "train"
        for s in sprites
    ]


def write(sprites: list[Sprite], path: Path) -> None:
    """One zip, the same bytes for the same sprites."""
    index, number = [], defaultdict(int)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for sprite, split in zip(sprites, choose_splits(sprites), strict=True):
            stem = f"{sprite.style}/{sprite.name}"
            number[stem] += 1
            file = f"{stem}-{number[stem]}.webp"
            buffer = io.BytesIO()
            sprite.image.save(buffer, "webp", quality=80, alpha_quality=80, method=6)
            archive.writestr(zipfile.ZipInfo(file), buffer.getvalue())
            entry = asdict(sprite) | {"file": file, "split": split}
            del entry["image"]
            index.append(entry)
        archive.writestr(zipfile.ZipInfo("sprites.json"), json.dumps(index, indent=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modules", type=Path, default=HERE / "node_modules")
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument(
        "--out", type=Path, default=HERE / "../src/secondlens/demo/data/sprites.zip"
    )
    args = parser.parse_args()
    sources = (
        emoji_pictures(args.modules),
        emoji_icons(args.modules),
        icon_drawings(args.modules),
        clipart(args.clipart),
    )
    sprites = [s for source in sources for s in track(source, "sprites", total=None)]
    write(sprites, args.out)
    print(f"{len(sprites)} sprites, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
