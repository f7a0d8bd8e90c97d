"""A small explored lens: a random CLIP, random pictures with hostile ids, hostile words."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from models import TEXT, randomise
from open_clip.model import CLIP
from PIL import Image

from secondlens.applications.adversarial.runs import Report, Sample
from secondlens.applications.adversarial.selection import Pair, RankedWord
from secondlens.applications.auditing.audits import Audit
from secondlens.applications.auditing.defence import OURS, Defence, Outcome, Point
from secondlens.effects.value_paths import second_order
from secondlens.explorer.layout import lay_out
from secondlens.explorer.survey import survey
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip
from secondlens.storage.files import save_json
from secondlens.words.describing import describe
from secondlens.words.naming import name

HOSTILE = (
    "<script>document.title='x'</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onload='x",
    "{{ 7 * 7 }}",
    "=1+1",
    "a & b",
)
WORDS = (*HOSTILE, *(f"word {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))
LAYERS = (0, 1)


ONE, TWO = 5, 7
"""Neurons of layer 1 with one name, a hostile one, and with two."""


@dataclass
class Pictures:
    count: int = 40
    first: int = 0

    @property
    def ids(self):
        numbers = range(self.first, self.first + self.count)
        return [f"{i} {HOSTILE[i % len(HOSTILE)]}.png" for i in numbers]

    def load(self, index):
        noise = np.random.default_rng(self.first + index).integers(
            0, 256, (16, 24, 3), dtype=np.uint8
        )
        return Image.fromarray(noise)


def preprocess(image):
    array = np.array(image.convert("RGB").resize((24, 16)), dtype=np.float32)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.4) / 0.3


def tiny_clip(seed=0):
    """Two rows of three patches, so that no row passes for a column; two later blocks."""
    vision = {"image_size": (16, 24), "patch_size": 8, "width": 24, "head_width": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(12, vision | {"layers": 3, "mlp_ratio": 2.0}, TEXT | {"context_length": 48})
        randomise(model)
    return from_open_clip(model.eval(), preprocess, tokenizer, name="tiny <b>")


def tokenizer(texts):
    """Characters as tokens; the highest one ends the text."""
    tokens = torch.zeros(len(texts), 48, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        codes = [ord(letter) % 62 + 1 for letter in text[: len(row) - 1]] + [63]
        row[: len(codes)] = torch.tensor(codes)
    return tokens


NAMED_ON = Pictures(count=160, first=1000)
"""What the neurons of the lens are named on."""


def name_some(clip, lens):
    """Names by labels that follow the effects of two neurons."""
    rows = lens[1].directions[[ONE, TWO]]
    pictures = [NAMED_ON.load(i) for i in range(NAMED_ON.count)]
    effects = second_order(clip, pictures, 1, lens.convention)[:, [ONE, TWO]]
    along = torch.einsum("bnd,nd->nb", effects, rows)
    labels = [{f"word {'cdef'[i % 4]}"} for i in range(NAMED_ON.count)]
    for image in along[0].topk(24).indices.tolist():
        labels[image].add(HOSTILE[0])
    for place, image in enumerate(along[1].topk(48).indices.tolist()):
        labels[image].add(("word a", "word b")[place % 2])
    return name(clip, lens, NAMED_ON, WORDS, labels)


def make(convention="exact", seed=0):
    """Clip, pictures, lens, survey and layout."""
    clip, pictures = tiny_clip(seed), Pictures()
    lens = fit(clip, pictures, layers=LAYERS, top=6, convention=convention)
    describe(clip, lens, WORDS, 8)
    name_some(clip, lens)
    return clip, pictures, lens, survey(clip, lens, pictures, NAMED_ON), lay_out(lens)


def write_runs(folder):
    """A finished attack, audit and defence, as their own code writes them."""
    pictures = folder / "a" / "images"
    pictures.mkdir(parents=True)
    Pictures().load(0).save(pictures / "0.png")
    Pictures().load(1).save(folder / "outside.png")
    sample = Sample(
        file="images/0.png",
        plain_file="images/0.png",
        caption="a dog and <b>snow</b>",
        plain="a dog",
        words=("snow",),
        seed=0,
        margin=0.1,
        plain_margin=-0.2,
        best="deer",
        plain_best="dog",
        counted=True,
    )
    outside = replace(sample, file="../outside.png", plain_file="/etc/hostname")
    word = RankedWord(text="snow", score=0.3, neurons=((0, 5, 0.2),))
    report = Report(
        pair=Pair(draw="dog", mistake_for="deer"),
        settings={},
        words=(word,),
        samples=(sample, outside),
    )
    save_json(folder / "a" / "report.json", report.as_json())
    effect = torch.tensor([[0.2, -0.1], [float("nan"), 0.05]])
    Audit(
        model={"name": "tiny"},
        classes=("dog", "<i>deer"),
        cues=("snow", "grass"),
        prompts=(("snow",), ("grass",)),
        effect=effect,
        spread=effect.abs() / 2,
        neurons=(((0, 5),), ((1, 7),)),
        images=(("0",), ("1",)),
    ).save(folder / "b")
    values = {str: OURS, float: 0.7}
    point = Point(**{each.name: values.get(each.type, 1) for each in fields(Point)})
    point = replace(point, unusual=0.5, fooled=float("nan"))
    cut = replace(point, usual=0.69, unusual=0.6)
    change = (0.1, 0.0, 0.2)
    result = Outcome(point=cut, usual_change=change, unusual_change=change, fooled_change=change)
    Defence(
        neurons=((0, 5),), strength=1.0, before=point, results=(result,), points=(point, cut)
    ).save(folder / "c")
