"""Every command that writes, on the smallest model and data that it takes.

A new command adds itself to `CASES`, and its results to `small` if they take long.
"""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from models import tiny_model, tiny_tokenizer
from PIL import Image

import secondlens as sl
from secondlens.applications.adversarial import captioners
from secondlens.data.labelled import labelled
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import ATTACK_PAIRS
from secondlens.models import named_models
from secondlens.models.open_clip.views import from_open_clip
from secondlens.paper.multiclass import compare_labels
from secondlens.paper.registry import results
from secondlens.paper.table4 import compare
from secondlens.registry import Registry

MODEL = ("--model", "tiny:8", "--device", "cpu")
CLASSES = ("ship", "cow")
WORDS = ("sea", "road", "grass", "snow", "a dog", "a bus", "wheel", "sail", "horn", "sky")
SIDE = 16


def prepared(image):
    array = np.array(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.4) / 0.3


def tiny(name="tiny:8", seed=0, **options):
    """A model of eight neurons a layer."""
    model = tiny_model(seed=seed, width=16, mlp_ratio=0.5, layers=3)
    return from_open_clip(model, prepared, tiny_tokenizer, name=name)


def noise(number):
    values = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(values)


@contextmanager
def small():
    """Inside it, the tiny model has a name, and the embedded world is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_models, "_members", dict(named_models._members))
        patch.setattr(captioners, "_members", dict(captioners._members))
        captioners.register("echo", Echo, help="says what it is asked")
        named_models.register("tiny", tiny, help="eight neurons")
        named_models.register("other", partial(tiny, seed=1), help="with other weights")
        for module, name, value in (
            ("secondlens.commands.audit", "UNSEEN_SCENES", 20),
            ("secondlens.commands.score", "UNSEEN_SCENES", 20),
            ("secondlens.paper.study", "DEMO_TEST_IMAGES", 12),
            ("secondlens.paper.table3", "ATTACK_PAIRS", ATTACK_PAIRS[:1]),
            ("secondlens.paper.table3", "fit", one_layer),
            ("secondlens.paper.study", "fit", one_layer),
            ("secondlens.paper.demo", "fit", one_layer),
            ("secondlens.paper.demo", "WORDS", 4),
            ("secondlens.paper.everything", "results", some_results()),
            ("secondlens.paper.table4", "compare", compared_once),
            ("secondlens.paper.multiclass", "compare_labels", labelled_once),
        ):
            patch.setattr(import_module(module), name, value)
        yield


class Echo:
    """A language model that says what it is asked."""

    name = "echo"

    def __init__(self, chosen, **options):
        pass

    def write(self, pair, words, count, seed):
        return [f"{pair.draw} {word}" for word in words]

    def ask(self, prompt, seed):
        return prompt.split()


def one_layer(clip, images, layers=(), **options):
    """A fit of one layer, whichever ones are asked for."""
    return sl.fit(clip, images, [5], **options)


_kept = {}


def compared_once(*given, **options):
    """Of methods that segment: it takes long, and says how long."""
    if compare not in _kept:
        _kept[compare] = compare(*given, **options)
    return _kept[compare]


def labelled_once(*given, work, **options):
    """Of methods that label pixels, which takes long; how it resumes is tested with the method."""
    if compare_labels not in _kept:
        _kept[compare_labels] = compare_labels(*given, **options)
    return _kept[compare_labels]


def some_results():
    """Two of the paper's, for the command that makes all of them."""
    registry = Registry("result", "results")
    for name in ("fig3", "fig11"):
        registry.register(name, results[name], help=results[name].help)
    return registry


def write_given(folder):
    """What commands read, in a folder."""
    for name in CLASSES:
        (folder / "classes" / name).mkdir(parents=True)
    for number in range(12):
        noise(number).save(folder / "classes" / CLASSES[number % 2] / f"{number:02}.png")
    noise(99).save(folder / "photo.png")
    (folder / "unseen").mkdir()
    for number in range(60):
        noise(200 + number).save(folder / "unseen" / f"new-{number:02}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (folder / "cut.json").write_text('{"neurons": [[0, 1], [1, 2]]}', encoding="utf-8")
    clip = tiny()
    lens = sl.fit(clip, folder / "classes", [0, 1], top=2)
    lens.save(folder / "bare")
    sl.describe(clip, lens, folder / "words.txt", 3)
    lens.save(folder / "lens")
    classes = labelled(folder / "classes").classes
    audit = sl.audit(clip, lens, classes, folder / "classes", folder / "words.txt", chance=1.0)
    # there is something to cut
    replace(audit, effect=audit.effect.abs()).save(folder / "audit")
    demo = sl.load("demo")
    lens = sl.fit(demo, Scenes(World(), 31, 50), [5])
    sl.describe(demo, lens, world_vocabulary(), 12)
    lens.save(folder / "demo-lens")
    sl.attack(demo, lens, "cow", "lion", folder / "attacks", images=2, captions=1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that writes."""

    command: str
    """Its words; what it reads lies beside, see `write_given`."""
    given: tuple[str, ...] = ("lens", "classes", "classes.txt", "words.txt")
    grows: tuple[str, ...] = ()
    """Of what it writes, the folders that fill file by file: the others are there whole or not."""
    moments: int = 3
    """At which it is stopped where there is little time; 0 where one run takes long."""

    @property
    def arguments(self):
        return self.command.replace(" ON", f" {' '.join(MODEL)}").split()

    def place(self, given, folder):
        """Put what it reads into a folder, where it shall run."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.given:
            copy = shutil.copytree if (given / name).is_dir() else shutil.copy
            copy(given / name, folder / name)


CASES = {
    "fit": Case(
        command="fit classes --out fitted --shard-size 4 ON",
        given=("classes",),
    ),
    "describe": Case(
        command="describe lens --texts words.txt --texts classes.txt -k 2 --parquet codes.pq ON",
    ),
    "name": Case(
        command="name lens --texts words.txt --everywhere words.txt --images unseen "
        "--referee other:8 ON",
        given=("lens", "unseen", "words.txt"),
    ),
    "score": Case(
        command="score lens --texts words.txt --images unseen --referee tiny:8 ON",
        given=("lens", "unseen", "words.txt"),
    ),
    "attack": Case(
        command="attack demo-lens --draw cow --mistake-for lion --images 2 --captions 1 "
        "--out attacked",
        given=("demo-lens",),
        grows=("attacked",),
        moments=1,
    ),
    "attack pairs": Case(
        command="attack demo-lens --pairs all --among cow,lion --images 1 --captions 1 "
        "--out attacked",
        given=("demo-lens",),
        grows=("attacked",),
        moments=1,
    ),
    "audit": Case(
        command="audit lens --classes classes.txt --cues words.txt --images classes --chance 1 "
        "--out audited ON",
    ),
    "defend": Case(
        command="defend audit lens --usual classes --unusual classes --out defence ON",
        given=("lens", "classes", "audit"),
    ),
    "edit": Case(
        command="edit lens --cut cut.json --usual classes --out edited ON",
        given=("lens", "classes", "cut.json"),
        moments=1,
    ),
    "harden": Case(
        command="harden attacks --drawn 4 --steps 1 --batch-size 2 --out hardened",
        given=("attacks",),
        moments=1,
    ),
    "diff": Case(
        command="diff tiny:8 other:8 --images classes --classes classes.txt --out compared --top 2",
        given=("classes", "classes.txt"),
        moments=1,
    ),
    "segment": Case(
        command="segment lens photo.png --text sea --text road --out masks ON",
        given=("lens", "photo.png"),
    ),
    "segment folder": Case(
        command="segment lens unseen --text sea --text road --out masks ON",
        given=("lens", "unseen"),
    ),
    "discover folder": Case(
        command="discover lens unseen --top 2 --out words ON", given=("lens", "unseen")
    ),
    "discover": Case(
        command="discover lens photo.png --page page.html ON", given=("lens", "photo.png")
    ),
    "why-attention": Case(
        command="why-attention photo.png --layer 1 --head 0 --heat-map heat.png ON",
        given=("photo.png",),
    ),
    "circuit": Case(
        command="circuit lens photo.png --text sea --against classes --nodes 8 --page page.html ON",
        given=("lens", "photo.png", "classes"),
    ),
    "ablate": Case(command="ablate lens classes --out ablation ON"),
    "budget": Case(command="budget lens classes --neurons 2 --out budget ON"),
    "export": Case(
        command="export lens site --images classes --space ON",
        grows=("lens",),  # it keeps what it saw of the pictures
        moments=1,
    ),
    "share": Case(command="share lens --to shared", given=("lens",)),
    "pull": Case(command="pull lens pulled", given=("lens",)),
    "pool": Case(
        command="pool --classes classes.txt --captioner echo --out pool",
        given=("classes.txt",),
        grows=("pool",),
    ),
    "reproduce fig3": Case(
        command="reproduce fig3 --demo --fit-images 50 --out paper",
        given=(),
        grows=("paper",),
        moments=1,
    ),
    "reproduce all": Case(
        command="reproduce all --demo --lens demo-lens --effect-images 10 --out paper",
        given=("demo-lens",),
        grows=("paper",),
        moments=0,
    ),
    "reproduce table3": Case(
        command="reproduce table3 --demo --fit-images 50 --seeds 1 --images-a-run 1 "
        "--effect-images 0 --out paper",
        given=(),
        grows=("paper",),
        moments=1,
    ),
    "reproduce table4": Case(
        command="reproduce table4 --demo --lens demo-lens --test-images 2 --dev 2 --out paper",
        given=("demo-lens",),
        moments=0,
    ),
    "reproduce multiclass": Case(
        command="reproduce multiclass --demo --lens demo-lens --test-images 1 --dev 1 --out paper",
        given=("demo-lens",),
        moments=0,
    ),
    "groundtruth run": Case(
        command="groundtruth run --network idle --contestant oracle --named 100 --tested 4 "
        "--out bench",
        given=(),
        moments=1,
    ),
    "demo": Case(
        command="demo --images 50 --test-images 2 --out demo",
        given=(),
        grows=("demo",),
        moments=0,
    ),
}
"""By the words that name a command."""
