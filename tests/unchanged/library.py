"""Cases that call the library: each is a function that returns tensors and plain values."""

import copy
import dataclasses
import inspect
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import secondlens as sl
from secondlens import sparse

from . import materials as m
from .commands import contents

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def over(*names):
    """The same case for several models."""

    def add(function):
        for name in names:
            CASES[f"{function.__name__} {name}"] = lambda name=name: function(name)
        return function

    return add


def refused(call, *arguments, **options):
    """What a mistake is called, and what it says."""
    try:
        call(*arguments, **options)
    except sl.SecondLensError as error:
        return [type(error).__name__, str(error)]
    return "nothing was refused"


MODELS = ("float32", "float64", "tiny-gelu", "tiny-quickgelu", "transformers")


# Models and effects


@over(*MODELS)
def a_model(name):
    clip = m.clip(name)
    facts = "activation image_size grid layers heads neurons width dim tokens last_effect_layer"
    texts = list(m.words().labels)[:5] if "tiny" not in name else []
    with clip.class_token_only():
        short = clip.encode_image(m.images(clip))
    return {
        "facts": {each: getattr(clip, each) for each in facts.split()},
        "dtypes": [str(clip.dtype), str(clip.compute_dtype), str(clip.device)],
        # a golden file has no texts, so that their weights are drawn each time
        "weights": None if "tiny" in name else clip.weights_hash,
        "images": clip.encode_image(m.images(clip)),
        "class token only": short,
        "texts": clip.encode_text(texts) if texts else None,
        "prepared": clip.prepare([m.picture(3, 0), m.picture(3, 1)]),
        "projection": clip.projection,
        "post": [clip.post_gain, clip.post_bias, clip.post_eps],
        "blocks": [clip.blocks[1].neuron_rows, clip.blocks[1].neuron_rows.shape[0]],
        "layer": [clip.check_layer(0), refused(clip.check_layer, 99)],
    }


@over("float32", "transformers")
def a_resized_model(name):
    clip = sl.resized(m.clip(name), 32, 16)
    return {
        "grid": clip.grid,
        "images": clip.encode_image(m.images(clip, 2)),
        "effects": sl.second_order(clip, m.images(clip, 2), 0),
    }


@over(*MODELS)
def effects(name):
    clip = m.clip(name)
    images, layer = m.images(clip, 3), clip.last_effect_layer - 1
    mean = torch.ones(clip.tokens, clip.neurons, dtype=clip.compute_dtype) / 3
    return {
        "exact": sl.second_order(clip, images, layer),
        "official": sl.second_order(clip, images, layer, "official"),
        "pictures": sl.second_order(clip, [m.picture(3, 0)], 0),
        "direct": sl.direct(clip, images, layer + 1),
        "indirect": sl.indirect(clip, images, layer, [3, 1], mean),
    }


@case
def transformers_in_memory():
    clip = sl.from_transformers(m.transformers_model(1), tokenizer=m.tokenize, name="mine")
    images = m.images(clip)
    return {
        "facts": [clip.name, clip.activation, clip.weights_hash, clip.context_length],
        "images": clip.encode_image(images),
        "texts": clip.encode_text(["a dog", "some ice"]),
        "effects": sl.second_order(clip, images, 2),
        "no preprocessing": refused(clip.prepare, [m.picture(3, 0)]),
    }


@case
def precisions():
    place = f"hf:{m.workplace() / 'model'}"
    found = {}
    for precision in ("bf16", "pure_bf16", "fp16"):
        clip = sl.load(place, precision=precision, check=False)
        found[precision] = [str(clip.dtype), str(clip.compute_dtype), clip.weights_hash]
    found["gelu"] = refused(sl.load, place, activation="gelu")[0]
    found["name"] = refused(sl.load, "ViT-B-33")
    return found


# Fitting


FITS = {
    "plain": {},
    "layers": {"layers": [2, 0], "top": 3},
    "official": {"convention": "official", "top": 6},
    "float32 store": {"store": "float32", "top": 6},
    "float16 store": {"store": "float16", "top": 6},
    "never stored": {"store": "never", "top": 6, "batch_size": 7},
    "shards": {"shard_size": 11, "batch_size": 4, "top": 6},
    "small memory": {"memory": 400_000, "top": 6},
    "kept": {"keep_coordinates": True, "layers": [1]},
}


def _fit(name, how):
    options = FITS[how]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lens"
        clip = m.clip(name)
        lens = sl.fit(clip, m.Pictures(5, 40), out=out, **options)
        files = sorted(path.name for path in out.iterdir())
        again = sl.Lens.load(out)
        if "tiny" in name:
            lens.model["weights"] = "drawn each time"
        return {"lens": lens, "files": files, "loaded": again.by_layer[lens.layers[0]]}


for _how in FITS:
    CASES[f"a fit, {_how}"] = lambda how=_how: _fit("float32", how)
for _how in ("plain", "official", "shards"):
    CASES[f"a fit of float64, {_how}"] = lambda how=_how: _fit("float64", how)
for _name in ("tiny-gelu", "tiny-quickgelu", "transformers"):
    CASES[f"a fit of {_name}"] = lambda name=_name: _fit(name, "kept")


class Failing(m.Pictures):
    """Pictures of which one cannot be read, and one stops everything the first time."""

    stop = True

    def load(self, index):
        if index == 7:
            raise OSError("gone")
        if index == 30 and self.stop:
            raise KeyboardInterrupt
        return super().load(index)


@case
def a_fit_that_goes_on():
    clip, source = m.clip("float32"), Failing(5, 40)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lens"
        options = {"out": out, "shard_size": 8, "batch_size": 8, "top": 5}
        try:
            sl.fit(clip, source, **options)
            stopped = "it was not"
        except KeyboardInterrupt:
            stopped = sorted(path.name for path in Path(folder).iterdir())
        source.stop = False
        lens = sl.fit(clip, source, **options)
        return {
            "stopped": stopped,
            "left": sorted(path.name for path in Path(folder).iterdir()),
            "lens": lens,
        }


@case
def a_merged_lens():
    clip = m.clip("float32")
    one, two = (
        sl.fit(clip, m.Pictures(seed, 20), layers=[1, 2], top=4, keep_coordinates=True)
        for seed in (5, 6)
    )
    return {"lens": one.merge(two), "twice": refused(one.merge, one)}


@case
def a_folder_of_pictures():
    place = m.workplace()
    folder = sl.Folder(place / "unseen")
    return {
        "ids": list(folder.ids),
        "isinstance": isinstance(folder, sl.ImageSource),
        "size": folder.load(0).size,
        "lens": sl.fit(m.clip("float32"), place / "photos", layers=[1], top=3),
        "images": sl.fit(m.clip("float32"), m.images(m.clip("float32"), 9), layers=[1], top=3),
        "nowhere": refused(sl.Folder, "no/where"),
    }


@case
def ties():
    """Equal pictures and equal texts, between which a rule decides."""
    clip = m.clip("float64")
    images = m.images(clip, 8)[[0, 1, 2, 1, 3, 0, 4, 1, 5, 6, 7, 2]]
    lens = sl.fit(clip, images, top=3)
    texts = sl.vocabulary(["sea", "ice", "sky", "ant"], templates=["a {}"])
    same = sl.Vocabulary(name="same", labels=("one", "two", "three"), prompts=(("sea",),) * 3)
    sl.describe(clip, lens, texts, 3)
    copied = copy.deepcopy(lens)
    copied[1].directions[1::2] = copied[1].directions[::2]
    # scores are of the pictures of the fit here, which is refused where they are known
    forgetful = dataclasses.replace(lens, digests=())
    return {
        "lens": lens,
        "same texts": sl.describe(clip, copy.deepcopy(lens), same, 1, how="unit"),
        "search": sl.search(clip, copied, "sea", 9),
        "similar": sl.similar(copied, 1, 4, 9),
        "score": sl.score(clip, forgetful, texts, images, [{"sea"}, {"ice"}, set(), {"sky"}] * 3),
        "audit": sl.audit(
            clip, lens, ["ant", "bee", "bee "], images, ["sea", "ice"], random=1, chance=1.0
        ),
    }


@case
def mistakes_in_fits():
    clip, source = m.clip("float32"), m.Pictures(5, 6)
    return {
        "layer": refused(sl.fit, clip, source, [9]),
        "last": refused(sl.fit, clip, source, [3]),
        "top": refused(sl.fit, clip, source, top=99),
        "one": refused(sl.fit, clip, m.Pictures(5, 1)),
        "convention": refused(sl.fit, clip, source, convention="mine"),
        "store": refused(sl.fit, clip, source, store="mine"),
        "model": refused(m.lens().check_model, m.clip("float64")),
        "no layer": refused(m.lens().__getitem__, 3),
        "no folder": refused(sl.Lens.load, "no/where"),
    }


@case
def a_saved_lens():
    lens = copy.deepcopy(m.lens())
    clip = m.clip("float32")
    sl.dissect(clip, lens, m.words(), m.Pictures(5, 60))
    sl.stability(clip, lens, m.words(), m.Pictures(5, 60))
    sl.score(clip, lens, m.words(), m.Pictures(6, 40), m.clip("float64"))
    with tempfile.TemporaryDirectory() as folder:
        lens.save(Path(folder) / "lens")
        return {"files": contents(Path(folder) / "lens"), "loaded": sl.Lens.load(f"{folder}/lens")}


# Words


@case
def vocabularies():
    place = m.workplace()
    given = {
        "list": sl.vocabulary(["sea", "ice"]),
        "file": sl.vocabulary(place / "words.txt"),
        "templates": sl.vocabulary(place / "words.txt", templates=m.TEMPLATES, name="mine"),
        "column": sl.vocabulary(f"{place / 'table.csv'}:b"),
        "vocabulary": sl.vocabulary(m.words("other")),
    }
    clip = m.clip("transformers")
    return {
        "given": given,
        "embedded": {name: each.embed(clip) for name, each in given.items()},
        "built in": {name: len(sl.vocabulary(name)) for name in ("english-10k", "imagenet")},
        "some": [sl.vocabulary("english-10k").labels[i] for i in (0, 1, 99, 5000)],
        "prompts": sl.vocabulary("imagenet").prompts[7][:3],
        "twice": refused(sl.vocabulary, ["sea", "sea"]),
        "none": refused(sl.vocabulary, []),
        "unknown": refused(sl.vocabulary, "no-such-words"),
    }


@over("unit", "centred", "official")
def descriptions(how):
    lens, clip = copy.deepcopy(m.lens()), m.clip("float32")
    found = {k: sl.describe(clip, lens, m.words(f"{how} {k}"), k, how=how) for k in (1, 5, 12)}
    codes = found[5]
    return {
        "codes": found,
        "by default": sl.describe(clip, lens, m.words("default"), how=how).indices,
        "code": [codes.code(1, 7), codes.code(2, 0)],
        "words": [codes.words(1, 7), codes.words(1, 7, 2)],
        "names": list(lens.codes),
        "too many": refused(sl.describe, clip, lens, m.words(), 999),
    }


@case
def descriptions_of_float64():
    lens, clip = sl.fit(m.clip("float64"), m.Pictures(5, 40), top=6), m.clip("float64")
    return {"codes": sl.describe(clip, lens, m.words(), 4), "names": list(lens.codes)}


@case
def searches():
    lens, clip = copy.deepcopy(m.lens()), m.clip("float32")
    sl.describe(clip, lens, m.words("official"), 4, how="official")
    found = sl.search(clip, lens, "sea", 9)
    return {
        "text": found,
        "names": [each.name for each in found],
        "match": isinstance(found[0], sl.Match),
        "official": sl.search(clip, lens, "sea", 5, description="official"),
        "similar": sl.similar(lens, 1, 4, 12),
        "nobody": refused(sl.similar, lens, 1, 4000),
        "no words": refused(sl.search, clip, lens, "sea", description="none"),
    }


@case
def scores():
    """The last two are of one vocabulary, judge and images, which is said."""
    warnings.simplefilter("ignore", sl.SecondLensWarning)
    lens, clip = copy.deepcopy(m.lens()), m.clip("float32")
    truth = [{WORDS_A[i % 5], WORDS_A[(3 * i) % 7]} for i in range(40)]
    source = m.Pictures(6, 40)
    return {
        "truth": sl.score(clip, lens, m.words(), source, truth),
        "referee": sl.score(clip, lens, m.words(), source, m.clip("float64")),
        "related": sl.score(
            clip, lens, m.words(), source, m.clip("float64"), related=m.clip("float64"), seed=3
        ),
        "names": list(lens.scores),
    }


WORDS_A = ("ant", "bee", "cat", "dog", "eel", "sea", "sky")


@case
def halves_and_dissection():
    lens, clip = copy.deepcopy(m.lens()), m.clip("float32")
    return {
        "stability": sl.stability(clip, lens, m.words(), m.Pictures(5, 60), seed=1),
        "dissection": sl.dissect(clip, lens, m.words(), m.Pictures(5, 60)),
        "names": [list(lens.stability), list(lens.codes)],
    }


# Applications


@case
def discoveries():
    lens, clip = m.lens(), m.clip("float32")
    found = sl.discover(clip, lens, m.picture(3, 0), 6)
    return {
        "words": found,
        "tensor": sl.discover(clip, lens, m.images(clip, 1)[0], 3),
        "paper": sl.discover(clip, lens, m.picture(3, 1), 6, paper=True),
        "texts": sl.discover(clip, lens, m.picture(3, 1), 4, texts=["sea", "ice", "dog", "sky"]),
        "unpacked": [list(each)[:2] for each in found],
        "shown": [str(each) for each in found],
    }


RECIPES = {
    "best": {},
    "neurons": {"neurons": 9, "layers": (1, 2)},
    "positive": {"choose": "positive", "weigh": "sign"},
    "effect": {"weigh": "effect", "scale": "standard"},
    "paper": {"weigh": "equal", "scale": "none", "positive": False, "share": 0.2},
    "signed": {"weigh": "cosine", "positive": False, "layers": (0,)},
}


@over(*RECIPES)
def segments(name):
    lens, clip = m.lens(), m.clip("float32")
    best = inspect.signature(sl.segment).parameters["recipe"].default
    recipe = replace(best, **RECIPES[name])
    image = m.picture(3, 0)
    return {
        "one": sl.segment(clip, lens, image, "sea", recipe=recipe),
        "several": sl.segment(
            clip, lens, m.images(clip, 2), ["sea", "a dog"], against=["sky"], recipe=recipe
        ),
        "windows": sl.segment(clip, lens, [image], ["sea"], recipe=recipe, windows=2),
        "recipe": recipe,
    }


@over("second-order", "direct", "indirect", "together")
def ablations(effect):
    lens, clip = m.lens(), m.clip("float32")
    classifier = clip.encode_text(list(m.CLASSES))
    options = {"effect": effect, "seed": 2}
    if effect in ("direct", "indirect"):
        options["reference"] = m.Pictures(5, 20)
    if effect == "indirect":
        options |= {"neurons": [1, 5], "layers": [1]}
    labels = [i % 5 for i in range(24)]
    found = sl.ablate(clip, lens, m.Pictures(7, 24), labels, classifier, **options)
    kind = found.kinds[0]
    return {
        "ranks": {f"{layer} {kind}": each for (layer, kind), each in found.ranks.items()},
        "significant": found.significant,
        "layers": [found.layers, found.kinds],
        "baseline": [found.baseline(), found.baseline(2)],
        "interval": found.interval(found.layers[0], kind),
        "cost": found.cost(found.layers[0], kind),
    }


@case
def more_ablations():
    lens, clip = m.lens(), m.clip("float32")
    classifier = clip.encode_text(list(m.CLASSES))
    labels = [i % 5 for i in range(24)]
    common = (m.Pictures(7, 24), labels, classifier)
    halved = sl.ablate(
        clip, lens, *common, layers=[1], neurons=[0, 3, 9], recode=lambda d: {"halved": d / 2}
    )
    shrunk = sl.ablate(
        clip, lens, *common, layers=[2], recode=lambda d: {"half": d / 2}, shrunk=True
    )
    attention = sl.ablate_attention(clip, *common, m.Pictures(5, 20))
    every = {"recode": halved, "shrunk": shrunk, "attention": attention}
    return {
        name: {f"{layer} {kind}": each for (layer, kind), each in found.ranks.items()}
        for name, found in every.items()
    } | {"mistake": refused(sl.ablate, clip, lens, *common, effect="mine")}


@over("float32", "transformers")
def budgets(name):
    clip = m.clip(name)
    lens = m.lens() if name == "float32" else sl.Lens.load(m.workplace() / "lens")
    found = sl.budget(clip, lens, m.Pictures(6, 5), 1, [0, 2, 5])
    return {"budget": found, "mistake": refused(sl.budget, clip, lens, m.Pictures(6, 5), 1, [999])}


@case
def audits_and_cuts():
    lens, clip = m.lens(), m.clip("float32")
    found = sl.audit(clip, lens, list(m.CLASSES), m.Pictures(6, 40), list(m.CUES), chance=1.0)
    shown = [{m.CUES[i % 6], m.CUES[(5 * i) % 6]} for i in range(40)]
    cut = sl.Cut(clip, lens, {1: [0, 4], 2: [7]}, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "audit")
        files = contents(Path(folder) / "audit")
        loaded = sl.Audit.load(Path(folder) / "audit")
    return {
        "audit": found,
        "ties": found.ties(5),
        "first": [found.first_cue(each) for each in m.CLASSES[:1]],
        "files": files,
        "loaded": loaded,
        "shown": sl.audit(
            *(clip, lens, list(m.CLASSES), m.Pictures(6, 40), list(m.CUES)),
            shown=shown,
            random=2,
            chance=1.0,
        ),
        "cut": cut.encode_image(m.images(clip)),
        "cut layers": cut.layers,
    }


# What version 0.1 wrote


@case
def an_old_lens():
    lens, clip = sl.Lens.load(m.OLD_LENS), m.clip("transformers")
    lens.check_model(clip)
    other = sl.fit(clip, m.Pictures(4, 20), top=lens.top, keep_coordinates=True)
    with tempfile.TemporaryDirectory() as folder:
        lens.save(Path(folder) / "lens")
        files = contents(Path(folder) / "lens")
    return {
        "lens": lens,
        "saved again": files,
        "search": sl.search(clip, lens, "sea", 5),
        "discover": sl.discover(clip, lens, m.picture(3, 0), 4),
        "segment": sl.segment(clip, lens, m.picture(3, 0), "sea"),
        "merged": lens.merge(other),
    }


class _Named:
    """A part of an attack of which nothing but its name is asked."""

    knows = None

    def __init__(self, name):
        self.name = name

    def too_close(self, words, to):
        return [False] * len(words)

    def write(self, pair, words, count, seed):
        raise AssertionError("all captions are there")

    def draw(self, caption, subject, seed):
        raise AssertionError("all pictures are there")

    def __call__(self, drawings, pair):
        return [True] * len(drawings)


@case
def an_old_attack():
    """Opened by a run that goes on, which finds everything done."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        run = shutil.copytree(m.OLD_ATTACK, Path(folder) / "run")
        asked = json.loads((run / "attack.json").read_text(encoding="utf-8"))
        report = sl.attack(
            m.clip("transformers"),
            sl.Lens.load(m.OLD_LENS),
            "ant",
            "eel",
            run,
            classes=sl.vocabulary(m.CLASSES, templates=["a photo of a {}"]),
            captions=3,
            images=8,
            neurons=20,
            words=3,
            too_close=_Named(asked["too_close"]),
            captioner=_Named(asked["writer"]),
            image_generator=_Named(asked["drawer"]),
            judge=_Named(asked["check"]),
        )
        return {"report": report, "files": contents(run), "rates": report.rates()}


@case
def an_old_audit():
    found = sl.Audit.load(m.OLD_AUDIT)
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "audit")
        return {"audit": found, "ties": found.ties(5), "files": contents(Path(folder) / "audit")}


# Sparse coding


@over("float32", "float64")
def sparse_codes(dtype):
    rng = np.random.default_rng(4)
    atoms = m.noise(rng, 40, 12)
    atoms = (atoms / atoms.norm(dim=1, keepdim=True)).to(getattr(torch, dtype))
    targets = m.noise(rng, 9, 12).to(atoms)
    many = m.noise(rng, 80, 12).to(atoms)
    targets[3] = atoms[5] * 2  # one atom is enough
    targets[4] = 0
    twice = torch.cat([atoms, atoms[:5]])  # ties
    # some are so alike that least squares have to give one of them up
    near = [atoms + size * m.noise(rng, 40, 12).to(atoms) for size in (1e-2, 1e-4, 1e-6)]
    alike = torch.nn.functional.normalize(torch.cat([atoms[:6], *(each[:6] for each in near)]))
    lasso = {alpha: sparse.lasso(targets[:3], atoms, alpha) for alpha in (0.1, 0.3)}
    if dtype == "float32":  # which ends where its rounding errors are as large as its steps
        lasso = {"here": str([[each.tolist() for each in pair] for pair in lasso.values()])}
    return {
        "omp": {k: sparse.omp(targets, atoms, k) for k in (1, 4, 12)},
        "nonnegative": {k: sparse.omp(targets, atoms, k, nonnegative=True) for k in (1, 5)},
        "many nonnegative": sparse.omp(many, atoms, 10, nonnegative=True),
        "ties": sparse.omp(targets, twice, 6),
        "alike": sparse.omp(targets[:3], alike, 12)[0] if dtype == "float64" else None,
        "path": sparse.omp_path(targets, atoms, 6),
        "nonnegative path": sparse.omp_path(targets, atoms, 6, nonnegative=True),
        "paths": list(sparse.omp_paths(targets, atoms, 3)),
        "lasso": lasso,
        "mistakes": [
            refused(sparse.omp, targets, atoms, 0),
            refused(sparse.omp, targets, 2 * atoms, 2),
            refused(sparse.omp, targets * torch.nan, atoms, 2),
        ],
    }
