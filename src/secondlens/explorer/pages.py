"""The pages as HTML: the same templates are served and exported."""

import io
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2
import orjson
from PIL import Image, ImageDraw, ImageFont

from ..data.decoding import Unreadable, decode
from ..formatting import counted, number
from . import page_kinds
from .atlas import TEXTS, Atlas
from .profile import Profiles
from .records import GROUPS
from .runs import Runs

PACKS: Mapping[str, str] = {
    "model": "model",
    "neurons": "table",
    "map": "map",
    "words": "words",
    "runs": "reports",
}
"""Data of all neurons together: the name of the file, and what of `Pages` it holds."""

SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'"
)
"""Content security policy of every page."""


class Pages:
    """Renders pages of one lens.

    Parameters
    ----------
    live
        Whether a model answers beside the pages.
    served
        Whether a server gives each neuron's data in its page; a static folder has packs of them.
    beside
        Whether a second lens is there to compare with, under `beside/`.
    runs
        Finished runs to show.
    classes
        That the attack lab can draw, if there is one.
    address
        Where the pages will be found, for link previews; without it, they have no pictures.
    """

    def __init__(
        self,
        atlas: Atlas,
        *,
        live: bool = False,
        served: bool = True,
        beside: bool = False,
        address: str = "",
        runs: Runs | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.runs, self.classes = runs or Runs(), classes
        self.atlas, self.live, self.served, self.beside = atlas, live, served, beside
        self.profiles = Profiles(atlas)
        self.address = address.rstrip("/")
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("secondlens.explorer"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {"number": number, "counted": counted}
        self._environment.globals |= {
            "model": atlas.model(),
            "live": live,
            "served": served,
            "beside": beside,
            "plain": {each.name: each.help for each in page_kinds},
            "policy": SECURITY,
            "version": version("secondlens"),
        }
        self._templates: dict[str, jinja2.Template] = {}

    def home(self) -> str:
        """Where one begins."""
        layers = [(layer, self.atlas.layer(layer)) for layer in self.atlas.lens.layers]
        clearest = [
            (*place, self.atlas.name(*place), self._cover(*place))
            for place in self.atlas.clearest()
        ]
        polysemous = [
            (*place, self.atlas.name(*place), self._holding(*place))
            for place in self.atlas.polysemous()
        ]
        return self._page(
            "home.html",
            "./",
            "Every neuron",
            f"{self.atlas.total:,} neurons",
            layers=layers,
            clearest=clearest,
            polysemous=polysemous,
        )

    def plain(self, name: str) -> str:
        """A page that needs nothing but its name: a member of `page_kinds`."""
        return page_kinds[name](self, name)

    def titled(self, name: str) -> str:
        """The template NAME.html under the title that `page_kinds` has for it."""
        title = page_kinds[name].help
        return self._page(f"{name}.html", "../", title, title, here=name)

    def layer(self, layer: int) -> str:
        """A layer's numbers and its neurons.

        Raises
        ------
        SecondLensError
            The lens lacks it.
        """
        self.atlas.check(layer)
        about = f"{self.atlas.sizes[layer]:,} neurons of layer {layer}"
        facts = self.atlas.layer(layer)
        return self._page(
            "layer.html",
            "../../",
            f"Layer {layer}",
            about,
            layer=layer,
            facts=facts,
            here="neurons",
        )

    def neuron(self, layer: int, neuron: int, *, address: str = "") -> str:
        """A neuron's page, with its data in it where a server serves it.

        Raises
        ------
        SecondLensError
            The lens lacks it.
        """
        self.atlas.check(layer, neuron)
        name = self.atlas.name(layer, neuron)
        data = _in_html(self.profiles.of(layer, neuron)) if self.served else None
        address = self.address or address.rstrip("/")
        cover = self._cover(layer, neuron)
        picture = f"preview/{layer}/{neuron}.png" if self.served else f"pictures/{cover}.webp"
        return self._page(
            "neuron.html",
            "../../../",
            f"L{layer} #{neuron}",
            name or "without names",
            picture=f"{address}/{picture}" if address and cover is not None else None,
            layer=layer,
            neuron=neuron,
            name=name,
            data=data,
            here="neurons",
        )

    def missing(self, about: str, root: str) -> str:
        """What stands where no page is; `root` leads from there to the first page."""
        return self._page("missing.html", root, "No such page", about)

    @cached_property
    def table(self) -> bytes:
        """`data/neurons.json.gz`: all neurons, column by column."""
        return packed(self.atlas.table())

    @cached_property
    def model(self) -> bytes:
        """`data/model.json.gz`: what all pages need to know of the lens."""
        return packed(self.atlas.model())

    @cached_property
    def reports(self) -> bytes:
        """`data/runs.json.gz`: finished runs, and the classes of the attack lab."""
        reports = self.runs.reports if self.served else self.runs.exported()
        return packed({"reports": reports, "classes": list(self.classes)})

    @cached_property
    def words(self) -> bytes:
        """`data/words.json.gz`: texts of the first description, with the neurons along them where
        no model finds these."""
        texts = self.atlas.labels()[:TEXTS]
        known = {text: [] for text in texts} if self.live else self.atlas.along_texts()
        return packed({"texts": known})

    @cached_property
    def map(self) -> bytes:
        """`data/map.json.gz`: a place for each neuron, in thousandths."""
        layout = self.atlas.layout
        places = [] if layout is None else (layout.place * 1000).round().int().flatten().tolist()
        return packed({"places": places})

    def _cover(self, layer: int, neuron: int) -> int | None:
        """The picture that stands for a neuron: one that holds its first name, if it has one."""
        if self.atlas.survey is None:
            return None
        if self.atlas.lens.fires_on(layer, neuron) and (holding := self._holding(layer, neuron)):
            return holding[0]
        return int(self.atlas.survey.layers[layer].images[neuron, 0])

    def _holding(self, layer: int, neuron: int) -> list[int]:
        """For each name of a neuron the strongest picture that holds it, where it is there."""
        profile = self.profiles.of(layer, neuron)
        return [profile["shots"][own[0]][0] for own in profile.get("holding", ()) if own]

    def _page(
        self,
        template: str,
        root: str,
        title: str,
        about: str,
        *,
        picture: str | None = None,
        **more: Any,
    ) -> str:
        if template not in self._templates:
            self._templates[template] = self._environment.get_template(template)
        context = {"root": root, "title": title, "about": about, "picture": picture, "here": ""}
        return self._templates[template].render(context | more)


def titled(pages: Pages, name: str) -> str:
    """The members of `page_kinds` that have a template of their own."""
    return pages.titled(name)


def static_files() -> dict[str, bytes]:
    """Scripts and styles by name; nothing else of the file system is ever served."""
    folder = files("secondlens.explorer") / "static"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def packed(content: Any) -> bytes:
    """JSON in gzip, the same bytes each time."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    return compressor.compress(orjson.dumps(content)) + compressor.flush()


def _in_html(content: Any) -> str:
    """JSON that no text in it can end early."""
    text = orjson.dumps(content).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


SIZE = (1200, 630)
"""Pixels, as networks crop the pictures of links."""
SIDE = 258
"""Pixels of a picture on it."""
PICTURES = 4
LONGEST_NAME = 38
"""Letters that fit."""
DARK, GREY, LIGHT = "#14161c", "#a0a6b1", "#eceef2"


def preview(atlas: Atlas, layer: int, neuron: int) -> bytes:
    """A PNG with a neuron's name and its strongest images.

    Raises
    ------
    SecondLensError
        The lens lacks the neuron.
    """
    atlas.check(layer, neuron)
    card = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(card)
    small, large = ImageFont.load_default(34), ImageFont.load_default(58)
    name = atlas.name(layer, neuron)
    if len(name) >= LONGEST_NAME:
        name = name[: LONGEST_NAME - 2] + "…"
    draw.text((60, 48), f"Layer {layer} · neuron {neuron}", GREY, small)
    draw.text((60, 100), name, LIGHT, large)
    if atlas.survey is not None:
        images = atlas.survey.layers[layer].images[neuron, GROUPS["strongest"]].tolist()
        for column, position in enumerate(each for each in images[:PICTURES] if each >= 0):
            with suppress(Unreadable):
                picture = decode(io.BytesIO(atlas.survey.picture(position)))
                card.paste(picture.resize((SIDE, SIDE)), (60 + 274 * column, 220))
    draw.text((60, 530), f"{atlas.lens.model['name']} · secondlens", GREY, small)
    buffer = io.BytesIO()
    card.save(buffer, "png")
    return buffer.getvalue()
