"""The HTML report: whole, safe, self-contained, and true to the activations."""

import base64
import io
import re
from dataclasses import dataclass, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_model
from PIL import Image

from secondlens.effects.capture import Capture
from secondlens.errors import SecondLensError
from secondlens.formatting import counted, fixed, number
from secondlens.lens.codes import Codes
from secondlens.lens.fitting import fit
from secondlens.lens.names import NO_NAME, Names
from secondlens.models.open_clip.views import from_open_clip
from secondlens.report.neurons import PER_NAME, PICTURES, Fact, write_report
from secondlens.report.page import heat_map, model_view
from secondlens.words.summary import neurons_in_words

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></script><b>",
    "\"' onload='x",
    "{{ 7 * 7 }}",
    "a & b",
)
VOID = {"meta", "link", "input", "br", "path", "line"}


def oblong_clip(seed=0):
    """Two rows of three patches, so that no row passes for a column."""
    return from_open_clip(tiny_model(seed=seed, image_size=(16, 24)), preprocess)


def preprocess(image):
    array = np.array(image.convert("RGB").resize((24, 16)), dtype=np.float32)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.4) / std


@dataclass
class Pictures:
    """Random pictures with hostile ids; `broken` cannot be read."""

    count: int = 40
    broken: int = -1
    first: int = 0

    @property
    def ids(self):
        numbers = range(self.first, self.first + self.count)
        return [f"{i} {HOSTILE[i % len(HOSTILE)]}.png" for i in numbers]

    def load(self, index):
        if index == self.broken:
            raise OSError("gone")
        noise = np.random.default_rng(self.first + index).integers(
            0, 256, (16, 24, 3), dtype=np.uint8
        )
        return Image.fromarray(noise)


class Page(HTMLParser):
    """Tags with their attributes, checked for nesting, and the text of each element by tag."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.open, self.text = html, [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]][-1] += data

    def having(self, name):
        return [attrs for _, attrs in self.tags if name in attrs]

    def of_class(self, name):
        return [attrs for attrs in self.having("class") if name in attrs["class"].split()]

    def heats(self):
        """Opacity of every heat map, in page order, [rows, columns] uint8."""
        styles = [a["style"] for tag, a in self.tags if tag == "i"]
        uris = [re.fullmatch(r"--heat:url\((data:image/png;.*)\)", style)[1] for style in styles]
        return [np.asarray(decode(uri))[..., 1] for uri in uris]


def cards(made):
    """Neurons in the order of the page: as they were given."""
    return list(made.neurons)


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@dataclass(kw_only=True)
class Made:
    clip: object
    lens: object
    codes: object
    neurons: list

    def holding(self, neuron):
        """Of each name the positions of the pictures that stand under it."""
        names = self.lens.first_names
        rows = names.pictures[neuron.layer][neuron.neuron].tolist()
        beyond = len(self.lens.image_ids)
        kept = [[beyond + place for place in row if place >= 0][:PER_NAME] for row in rows]
        return kept[: len(neuron.names)]

    def write(self, path, source=None, neurons=None, **options):
        options = {"title": "A <report> & more", "named_on": NAMED_ON, **options}
        source = Pictures() if source is None else source
        neurons = self.neurons if neurons is None else neurons
        write_report(path, self.clip, self.lens, self.codes, source, neurons, **options)
        return path.read_text(encoding="utf-8")


NAMED_ON = Pictures(count=30, first=100)
HELD = {(0, 3): {0: [4, 1, 9, 7, 3], 2: [8, 2]}, (1, 7): {1: [5, 6, 0]}}
"""Of two neurons the texts that they fire on, and the pictures that hold these."""


def named(clip, lens):
    """Names of some neurons, and of no others."""
    shape = clip.neurons, 4
    texts = {layer: torch.full(shape, -1) for layer in lens.layers}
    held = {layer: torch.zeros(shape, dtype=torch.long) for layer in lens.layers}
    pictures = {layer: torch.full((*shape, 6), -1) for layer in lens.layers}
    auc = {n: torch.full(shape, torch.nan, dtype=torch.float64) for n in lens.layers}
    for (layer, neuron), of_texts in HELD.items():
        for rank, (text, images) in enumerate(of_texts.items()):
            texts[layer][neuron, rank] = text
            held[layer][neuron, rank] = len(images)
            pictures[layer][neuron, rank, : len(images)] = torch.tensor(images)
            auc[layer][neuron, rank] = 0.9
    return Names(
        vocabulary="hostile",
        referee="<i>judge",
        labels=HOSTILE,
        image_ids=tuple(NAMED_ON.ids),
        shown=24,
        tested=50,
        shuffled=0,
        rare=0,
        texts=texts,
        auc=auc,
        p=auc,
        q=auc,
        held=held,
        pictures=pictures,
    )


@pytest.fixture(scope="module")
def made():
    clip = oblong_clip()
    lens = fit(clip, Pictures(), top=10)
    generator = torch.Generator().manual_seed(0)
    indices = {
        n: torch.stack([torch.randperm(5, generator=generator) for _ in range(clip.neurons)])
        for n in lens.layers
    }
    weights = {n: torch.randn(clip.neurons, 5, generator=generator) for n in lens.layers}
    codes = Codes(
        labels=HOSTILE,
        normalise="centred",
        indices=indices,
        coefficients=weights,
        brief=weights,
        cosine={n: torch.full((clip.neurons,), 0.5) for n in lens.layers},
    )
    lens.names["hostile"] = named(clip, lens)
    found = {(each.layer, each.neuron): each for each in neurons_in_words(lens, codes)}
    neurons = [
        replace(
            found[key],
            clarity=0.1 * key[1],
            score=0.75 if key[1] else float("nan"),
            score_interval=(0.7, 0.8),
        )
        for key in ((0, 3), (1, 0), (1, 7))
    ]
    return Made(clip=clip, lens=lens, codes=codes, neurons=neurons)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    facts = [Fact(label="<energy>", value=0.314, null=0.15, explanation="Σ </script>")]
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    html = made.write(path, facts=facts)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(html)


def test_one_card_a_neuron_in_the_order_given(made, page):
    shown = [attrs for tag, attrs in page.tags if tag == "article"]
    assert [card["id"] for card in shown] == [f"L{n.layer}-{n.neuron}" for n in cards(made)]
    assert [card["data-layer"] for card in shown] == ["0", "1", "1"]
    assert [card["data-place"] for card in shown] == ["3", "2", "1"]
    ids = [attrs["id"] for attrs in page.having("id")]
    assert len(ids) == len(set(ids))


def test_every_button_and_link_has_its_target(page):
    ids = {attrs["id"] for attrs in page.having("id")}
    assert {attrs["popovertarget"] for attrs in page.having("popovertarget")} <= ids
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} <= ids


def test_nothing_is_fetched(page):
    assert not re.search(r"https?:|@import|\ssrc=|\ssrcset=|fetch\(", page.html)
    assert set(re.findall(r"url\((.{5})", page.html)) == {"data:"}
    links = [attrs["href"] for attrs in page.having("href")]
    assert all(link.startswith(("#", "data:,")) for link in links)


def test_hostile_texts_stay_texts(made, page):
    assert page.text["title"] == ["A <report> & more"]
    assert len(page.text["script"]) == len(page.text["style"]) == 1
    assert all(label not in page.html for label in HOSTILE[:3])
    assert not page.having("onload")
    words = {text for text in page.text["span"] if text in HOSTILE}
    assert words == set(HOSTILE)
    assert "<i>judge" not in page.html
    assert "<energy>" in page.text["dt"]
    assert "Σ </script>" in page.text["p"]
    labels = [attrs["aria-label"] for attrs in page.of_class("shot")]
    assert any(label.startswith("2 \"' onload='x.png: ") for label in labels)


def test_names_are_titles_and_stand_over_the_pictures_that_hold_them(made, page):
    titles = re.findall(r"<h2>.*?<span[^>]*>(.*?)</span></h2>", page.html)
    assert list(map(unescape, titles)) == [f"{HOSTILE[0]}, {HOSTILE[2]}", NO_NAME, HOSTILE[1]]
    shots = [attrs["class"].split("p")[1] for attrs in page.of_class("shot")]
    for neuron in cards(made):
        shots = shots[2 * PICTURES :]
        for name, images in zip(neuron.names, made.holding(neuron), strict=True):
            shown, shots = shots[: len(images)], shots[len(images) :]
            assert [int(position) for position in shown] == images
            said = f"{name.held} of its 24 strongest hold it · area 0.90"
            assert said in page.text["small"]
            assert any(name.text in text for text in page.text["p"])
    assert shots == []


def test_without_the_pictures_of_names_the_names_stand_alone(made, tmp_path):
    page = Page(made.write(tmp_path / "bare.html", named_on=None))
    assert len(page.of_class("shot")) == 3 * 2 * PICTURES
    assert any(HOSTILE[1] in text for text in page.text["p"])


def test_a_lens_without_names_says_nothing_of_what_fires(made, tmp_path):
    lens = replace(made.lens, names={})
    neurons = neurons_in_words(lens, made.codes)[:1]
    page = Page(replace(made, lens=lens, neurons=neurons).write(tmp_path / "bare.html"))
    assert "Fires on" not in page.html
    assert NO_NAME not in page.html


def test_scores_are_shown_and_sorted_by(page):
    scores = [attrs.get("data-score") for attrs in page.of_class("card")]
    assert sorted(scores, key=str) == ["0.75", "0.75", None]
    assert page.text["small"].count("[0.70, 0.80]") == 2
    assert {"value": "score"} in [attrs for tag, attrs in page.tags if tag == "option"]


def test_each_picture_is_in_it_once(page):
    shown = {re.search(r"\bp(\d+)\b", attrs["class"])[1] for attrs in page.of_class("shot")}
    rules = re.findall(r"\.p(\d+) \{ background-image: url\((data:image/webp;[^)]*)\)", page.html)
    assert len(page.of_class("shot")) > 3 * 2 * PICTURES > len(shown)
    assert sorted(shown, key=int) == [position for position, _ in rules]
    assert page.html.count("data:image/webp") == len(shown)
    for position, uri in rules:
        of_fit = int(position) < 40
        own = Pictures().load(int(position)) if of_fit else NAMED_ON.load(int(position) - 40)
        difference = np.asarray(decode(uri), float) - np.asarray(own)
        assert np.abs(difference.mean()) < 5


def test_heat_is_the_activation(made, page):
    source, heats = Pictures(), page.heats()
    shots = [attrs["class"].split("p")[1] for attrs in page.of_class("shot")]
    start = 0
    for neuron in cards(made):
        positions = [int(p) for p in shots[start:][: 2 * PICTURES]]
        top = made.lens[neuron.layer].top_images[neuron.neuron, :PICTURES].tolist()
        assert positions[:PICTURES] == top
        assert len(set(positions)) == 2 * PICTURES
        with Capture(made.clip, [neuron.layer], keep_activations=True) as capture:
            images = [source.load(position) for position in positions]
            pooled = capture.pool(made.clip.encode_image(images))
        activation = pooled.activations[neuron.layer][:, 1:, neuron.neuron].reshape(-1, 2, 3)
        scale = activation[:PICTURES].max()
        assert scale > 0
        expected = (activation / scale).clamp(0, 1) * 255
        found = np.stack(heats[start:][: 2 * PICTURES])
        start += 2 * PICTURES
        start += sum(map(len, made.holding(neuron)))
        assert np.abs(found - expected.numpy()).max() <= 0.51
        assert found[:PICTURES].max() == 255


def test_silent_neuron_has_no_heat():
    assert np.asarray(heat_map(torch.full((2, 3), -0.1), scale=-0.1)).max() == 0
    assert heat_map(torch.zeros(2, 3), scale=0.0).size == (3, 2)


def test_histogram_counts_every_image(page):
    counts = [attrs["data-counts"].split() for attrs in page.having("data-counts")]
    assert [sum(map(int, each)) for each in counts] == [40, 40, 40]


def test_same_input_same_bytes(made, page, tmp_path):
    again = made.write(tmp_path / "a.html")
    assert again == made.write(tmp_path / "b.html")
    assert again != made.write(tmp_path / "c.html", seed=1)


def test_random_images_do_not_depend_on_the_other_cards(made, tmp_path):
    alone = Page(made.write(tmp_path / "alone.html", neurons=made.neurons[:1] * 2))
    together = Page(made.write(tmp_path / "together.html"))
    shots = [attrs["aria-label"] for attrs in alone.of_class("shot")][: 2 * PICTURES]
    assert shots == [attrs["aria-label"] for attrs in together.of_class("shot")][: 2 * PICTURES]


def test_missing_picture_is_named(made, tmp_path):
    with pytest.raises(SecondLensError, match=r"no picture '\d+ .*', which the lens was fitted on"):
        made.write(tmp_path / "report.html", source=Pictures(count=2))


def test_missing_picture_of_a_name_is_named(made, tmp_path):
    with pytest.raises(
        SecondLensError, match=r"no picture '10\d .*', which the neurons were named"
    ):
        made.write(tmp_path / "report.html", named_on=Pictures(count=2))


def test_unreadable_picture_is_named_and_the_old_file_stays(made, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = int(made.lens[0].top_images[3, 0])
    with pytest.raises(
        SecondLensError, match=f"picture '{broken} .* cannot be read: OSError: gone"
    ):
        made.write(path, source=Pictures(broken=broken))
    assert path.read_text() == "old"


def test_refuses_no_neurons_and_another_model(made, tmp_path):
    with pytest.raises(SecondLensError, match="no neurons"):
        made.write(tmp_path / "report.html", neurons=[])
    other = replace(made, clip=oblong_clip(seed=5))
    with pytest.raises(SecondLensError, match="other weights"):
        other.write(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_model_view_undoes_the_normalisation():
    clip = oblong_clip()
    picture = Pictures().load(1)
    assert np.array_equal(np.asarray(model_view(clip)(preprocess(picture))), np.asarray(picture))


def test_model_view_without_preprocessing_stretches():
    view = model_view(from_open_clip(tiny_model()))
    shown = np.asarray(view(torch.linspace(-3, 5, 3 * 16 * 16).view(3, 16, 16)))
    assert (shown.min(), shown.max()) == (0, 255)


def test_neuron_without_words(made, tmp_path):
    wordless = replace(made.neurons[0], words=(), names=())
    page = Page(made.write(tmp_path / "report.html", neurons=[wordless]))
    assert len(page.of_class("card")) == 1
    assert not page.of_class("names")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.4999, "0.50"),
        (0.996, "1"),
        (1.02, "1"),
        (3.71, "3.7"),
        (0.0123, "0.012"),
        (12.3, "12"),
        (1536, "1,536"),
        (-0.25, "−0.25"),
        (-3, "−3"),
        (0.0, "0"),
        (-0.0, "0"),
        (float("nan"), "–"),
        (None, "–"),
        ("ViT", "ViT"),
    ],
)
def test_number(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(-0.0004, "0.000"), (-0.0006, "−0.001"), (1234.5678, "1,234.568")]
)
def test_fixed(value, shown):
    assert fixed(value, 3) == shown


def test_template_ships_with_the_package():
    import secondlens

    assert (Path(secondlens.__file__).parent / "report" / "templates" / "report.html").is_file()


def test_counted():
    assert [counted(n, "picture") for n in (0, 1, 2304)] == [
        *("0 pictures", "1 picture", "2,304 pictures")
    ]
