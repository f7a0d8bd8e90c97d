"""Pages of an attack: pictures beside themselves without the words, and what did it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...data.decoding import whole
from ...effects.linearised import linearise
from ...effects.total_effects import by_token
from ...lens.lens import Lens
from ...models.view import Clip
from ...report.page import data_uri, heat_map, model_view, write_page
from ...words.summary import label
from ..segmentation.segmenter import Recipe, Segmenter, encode
from .runs import Report, Sample, folder_name
from .selection import Pair

SHOWN = 48
"""Pictures on a page, the most fooling ones first."""

LARGEST = 256
"""Pixels on the longer side of a picture."""


STEPS = ("selector", "captioner", "image_generator", "judge")
"""Who did what in a run; its settings hold their names."""
NAMED = {
    "second order": "second-order effects",
    "template": "templates",
    "exact": "the truth of the drawn scene",
}
KINDS = {
    "sprites": "the painter of scenes",
    "referee": "the model {}",
    "chat": "the language model {}",
    "endpoint": "the language model {}",
    "diffusion": "the pipeline {}",
}
"""What people call them, by name, or by what stands before the colon in it."""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """A picture on the page."""

    sample: Sample
    picture: str
    """Data URI, as the three below."""
    plain: str
    seen: str
    """The picture as the model saw it."""
    heat: str
    """Where the neurons push to the wrong class."""


def write(clip: Clip, lens: Lens, report: Report, v: Float[Tensor, " dim"], out: Path) -> None:
    """`gallery.html` in a run folder: self-contained, all that comes from texts escaped."""
    ranked = sorted(report.samples, key=lambda each: (-each.counted, -each.flipped, -each.margin))
    write_page(
        out / "gallery.html",
        "gallery.html",
        title=f"{report.pair.draw}, mistaken for {report.pair.mistake_for}",
        report=report,
        rates=report.rates(),
        made={part: _in_words(report.settings[part]) for part in STEPS},
        cards=_cards(clip, lens, report, ranked[:SHOWN], v, out),
        words={word.text: word for word in report.words},
        called=partial(label, lens),
        clip=clip,
    )


def write_index(reports: Sequence[Report], left_out: Mapping[Pair, str], out: Path) -> None:
    """`index.html` over the galleries of many pairs."""
    rows: list[dict[str, Any]] = [
        {
            "pair": report.pair,
            "folder": folder_name(report.pair),
            "rates": report.rates(),
            "counted": len(report.counted),
            "words": [word.text for word in report.words[:6]],
        }
        for report in reports
    ]
    write_page(
        out / "index.html",
        "attacks.html",
        title="Attacks on every pair",
        rows=sorted(rows, key=lambda row: -row["rates"]["flipped"]["count"]),
        left_out=left_out,
    )


def _cards(
    clip: Clip, lens: Lens, report: Report, samples: Sequence[Sample], v: Tensor, out: Path
) -> list[GalleryItem]:
    layers = tuple(report.settings["layers"])
    count = min(report.settings["neurons"], len(layers) * clip.neurons)
    heat = (_heat_over_all_paths if lens.paths == "all" else _heat)(clip, lens, layers, count, v)
    view = model_view(clip)
    cards = []
    for sample in samples:
        picture, plain = (_open(out / file) for file in (sample.file, sample.plain_file))
        pixels = clip.prepare(whole(clip, [picture]))
        pushed = heat(pixels).clamp(min=0).float().cpu()
        cards.append(
            GalleryItem(
                sample=sample,
                picture=_small(picture),
                plain=_small(plain),
                seen=_small(view(pixels[0])),
                heat=data_uri(heat_map(pushed, float(pushed.max())), "png"),
            )
        )
    return cards


Heat = Callable[[Tensor], Tensor]
"""From one preprocessed picture [1, 3, height, width] to what the neurons along v add to
<image, v> at each patch, [rows, columns]."""


def _heat(clip: Clip, lens: Lens, layers: tuple[int, ...], count: int, v: Tensor) -> Heat:
    """On all second-order paths."""
    recipe = Recipe(layers=layers, neurons=count, weigh="effect", scale="centred")
    segmenter = Segmenter(clip, lens, recipe)

    def heat(pixels: Tensor) -> Tensor:
        return segmenter.heat_maps(encode(clip, pixels, layers), v.expand(1, 1, -1))[0, 0]

    return heat


def _heat_over_all_paths(
    clip: Clip, lens: Lens, layers: tuple[int, ...], count: int, v: Tensor
) -> Heat:
    """On all paths; less what each neuron adds on average, evenly over the tokens."""
    axis = v[None].to(clip.device, clip.compute_dtype)
    along = torch.cat([lens[n].directions @ v.to(lens[n].directions) for n in layers]).abs()
    chosen = torch.zeros(len(along), dtype=torch.bool)
    chosen[along.topk(count).indices] = True
    vectors, usual = {}, 0.0
    for layer, own in zip(layers, chosen.split(clip.neurons), strict=True):
        neurons = own.nonzero()[:, 0]
        vectors[layer] = neurons.to(clip.device), axis.new_ones(len(neurons), 1, 1)
        usual += float((lens[layer].mean[neurons] @ v.to(lens[layer].mean)).sum())

    def heat(pixels: Tensor) -> Tensor:
        found = by_token(linearise(clip, pixels), axis, vectors)[0, :, 0] - usual / clip.tokens
        return found[1:].reshape(clip.grid)

    return heat


def _in_words(name: str) -> str:
    """A part's name as a sentence has it."""
    kind, _, which = name.partition(":")
    return KINDS[kind].format(which) if kind in KINDS else NAMED.get(name, name)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def _small(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return data_uri(small, "webp", quality=85)
