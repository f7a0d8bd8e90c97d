"""Everything runs on any accelerator and agrees with the CPU, shown on the fake one."""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import fake
import pytest
import torch
from on_devices import (
    DESCRIPTIONS,
    DEVICE,
    LABELS,
    LAYER,
    LAYERS,
    OTHERS,
    PICTURES,
    PRECISIONS,
    UNSEEN,
    WORDS,
    Noise,
    X,
    cpu_lens,
    picture,
    tiny_clip,
)

import secondlens as sl
from secondlens.applications.adversarial.judging import ExactJudge
from secondlens.applications.adversarial.sprites import Taxonomy
from secondlens.data.labelled import Labelled
from secondlens.data.sources import as_source
from secondlens.data.vocabularies import object_names, world_vocabulary


@dataclass
class Kit:
    """What a case is given: the same on the CPU and on the device."""

    clip: sl.Clip
    lens: sl.Lens
    folder: Path

    @property
    def words(self):
        return sl.vocabulary(WORDS)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def fitted(kit):
    lens = sl.fit(kit.clip, PICTURES, LAYERS)
    return {
        f"{name} {layer}": getattr(lens[layer], name)
        for layer in lens
        for name in ("mean", "energy", "top_norms", "explained_all", "activation_mean")
    } | {"directions": torch.cat([lens[n].directions for n in lens])}


def over_all_paths(kit):
    """The same with effects over all paths, along all axes, so that none is left out."""
    lens = sl.fit(kit.clip, PICTURES, LAYERS, paths="all", axes=kit.clip.dim)
    return replace(kit, lens=lens.over("all"))


def totals(kit):
    lens = over_all_paths(kit).lens
    return {f"{name} {n}": getattr(lens[n], name) for n in lens for name in ("mean", "energy")}


def discovered_over_all_paths(kit):
    own = over_all_paths(kit)
    words = sl.discover(own.clip, own.lens, picture(99), top=4, texts=world_vocabulary())
    return {
        "weights": torch.tensor([word.weight for word in words]),
        "patches": torch.stack([word.patches for word in words]),
    }


def ablated(kit, effect, **more):
    classifier = kit.words.embed(kit.clip)
    found = sl.ablate(
        *(kit.clip, kit.lens, PICTURES, LABELS, classifier),
        effect=effect,
        layers=[LAYER],
        reference=PICTURES[:8],
        **more,
    )
    return {str(key): ranks for key, ranks in found.ranks.items()}


def audited(kit):
    return sl.audit(kit.clip, kit.lens, WORDS[:4], PICTURES, WORDS[4:], chance=1.0)


def labelled(name):
    return Labelled(
        name=name,
        source=as_source(PICTURES),
        labels=tuple(label % 4 for label in LABELS),
        classes=sl.vocabulary(WORDS[:4]),
    )


def defended(kit):
    found = audited(kit)
    # random weights push nothing for sure
    found = type(found)(**vars(found) | {"spread": torch.zeros_like(found.spread)})
    return sl.defend(kit.clip, kit.lens, found, labelled("usual"), labelled("unusual"))


def edited(kit, changes):
    return unit(sl.edit(kit.clip, kit.lens, changes, X).clip.encode_image(X))


def differing(kit):
    # the other one has no neuron 3, so that its change is its effect
    other = sl.edit(kit.clip, kit.lens, sl.Edit(neurons=((LAYER, 3),))).clip
    found = sl.diff(kit.clip, other, X, [LAYER], classes=sl.vocabulary(WORDS[:3]))
    return {"square": found.square[LAYER][[3]], "pulls": found.pulls[LAYER][[3]]}


def shifting(kit):
    found = sl.shift(kit.clip, kit.lens, PICTURES[:8], PICTURES[8:16])
    return {str(layer): each for layer, each in found.shift.items()}


def attacked(kit):
    report = sl.attack(
        *(kit.clip, kit.lens, "cow", "lion", kit.folder / f"attack-{kit.clip.device.type}"),
        classes=object_names(),
        texts=world_vocabulary(),
        too_close=Taxonomy(),
        image_generator=Noise(),
        judge=ExactJudge(),
        captions=2,
        images=2,
    )
    return {
        "scores": torch.tensor([word.score for word in report.words]),
        "margins": torch.tensor([each.margin for each in report.samples]),
    }


def coded(codes):
    return {f"cosine {layer}": each for layer, each in codes.cosine.items()} | {
        f"curve {layer}": each for layer, each in codes.curve.items()
    }


def scored(kit, referee, **more):
    lens = replace(kit.lens, scores={})  # of the same images once more would be told
    found = sl.score(kit.clip, lens, kit.words, OTHERS, referee, **more)
    return {str(layer): auc.nan_to_num(0.5) for layer, auc in found.auc.items()}


@cache
def firing():
    """Of each unseen picture, the words of the first neurons, where these act strongly."""
    lens = cpu_lens("fp32")
    effects = sl.second_order(tiny_clip(), UNSEEN.pictures, LAYER)
    effects = torch.einsum("bnd,nd->nb", effects, lens[LAYER].directions)
    strong = [set(row.topk(15).indices.tolist()) for row in effects[:4]]
    return [{WORDS[n] for n in range(4) if i in strong[n]} for i in range(len(UNSEEN.ids))]


def named(kit, referee, **more):
    lens = replace(kit.lens, names={})  # replacing earlier ones would be told
    names = sl.name(kit.clip, lens, UNSEEN, kit.words, referee, **more)
    return {f"auc {layer}": auc.nan_to_num(0.5) for layer, auc in names.auc.items()}


def confirmed(kit):
    """Each word is that of a neuron, which the first picture of a pair moves much and the second
    little."""
    lens = cpu_lens("fp32")
    effects = sl.second_order(tiny_clip(), UNSEEN.pictures, LAYER)
    order = torch.einsum("bnd,nd->nb", effects, lens[LAYER].directions).argsort(1)

    def pair(text, seed):
        own = order[WORDS.index(text)]
        return UNSEEN.pictures[own[-1 - seed]], UNSEEN.pictures[own[seed]]

    lens = replace(kit.lens, names={})
    sl.name(kit.clip, lens, UNSEEN, kit.words, firing())
    names = sl.confirm(kit.clip, lens, pair, pairs=6)
    texts = names.texts[LAYER][:4]
    own = (texts == torch.arange(4)[:, None]).any(1)
    return {"rose": torch.where(own, names.rose[LAYER][:4, 0], 0).float()}


def discovered(kit, **more):
    # not one of the fit: the threshold may be its own effect, and rounding would decide
    words = sl.discover(kit.clip, kit.lens, picture(99), top=4, **more)
    return {
        "weights": torch.tensor([word.weight for word in words]),
        "heads": torch.stack([word.heads for word in words]),
        "patches": torch.stack([word.patches for word in words]),
    }


def matches(found):
    return {"matches": torch.tensor([match.cosine for match in found[:8]])}


def both_halves(kit):
    def half(some, name):
        source = as_source(PICTURES[some])
        ids = [f"{name}-{i}" for i in range(len(source.ids))]
        return sl.fit(kit.clip, type(source)(PICTURES[some], ids), LAYERS, keep_coordinates=True)

    merged = half(slice(0, 12), "a").merge(half(slice(12, 24), "b"))
    return {"energy": merged[LAYER].energy, "directions": merged[LAYER].directions}


def sparse(kit):
    generator = torch.Generator().manual_seed(0)
    targets, atoms = (torch.randn(n, 12, generator=generator).to(kit.clip.device) for n in (5, 40))
    return {
        "omp": sl.sparse.omp(targets, atoms, 4)[1],
        "nonnegative": sl.sparse.omp(targets, atoms, 4, nonnegative=True)[1],
        "path": sl.sparse.omp_path(targets, atoms, 3).cosines,
        "paths": next(sl.sparse.omp_paths(targets, atoms, 3)).residual_norms,
        "lasso": sl.sparse.lasso(targets, torch.eye(12, device=kit.clip.device), 0.5)[1],
    }


# scikit-learn cannot reach its tolerance in float32
pytestmark = pytest.mark.filterwarnings("ignore:Objective did not converge")

CASES = {
    "AblatedClip": lambda kit: sl.AblatedClip(kit.clip, kit.lens, {LAYER: [3, 5]}).encode_image(X),
    "Audit": lambda kit: {"effect": audited(kit).effect.nan_to_num(0.0)},
    "Clip": lambda kit: {
        "images": unit(kit.clip.encode_image(X)),
        "pictures": unit(kit.clip.encode_image(PICTURES[:3])),
        "texts": kit.clip.encode_text(WORDS),
    },
    "Codes": lambda kit: torch.tensor(
        [weight for _, weight in kit.lens.codes["world"].words(LAYER, 3)]
    ),
    "Defence": lambda kit: defended(kit).cut(kit.clip, kit.lens).encode_image(X),
    "Lens": both_halves,
    "Vocabulary": lambda kit: kit.words.embed(kit.clip),
    "ablate": partial(ablated, effect="second-order"),
    "accuracy_by_group": lambda kit: torch.tensor(
        [each.accuracy for each in sl.accuracy_by_group(kit.clip, labelled("usual"), ["class"])]
    ),
    "ablate all paths": lambda kit: ablated(over_all_paths(kit), effect="second-order"),
    "ablate direct": partial(ablated, effect="direct", neurons=[1, 2, 7]),
    "ablate indirect": partial(ablated, effect="indirect", neurons=[1, 2, 7]),
    "ablate together": partial(ablated, effect="together"),
    "ablate_paths": lambda kit: {
        str(key): ranks
        for key, ranks in sl.ablate_paths(
            *(kit.clip, kit.lens, PICTURES, LABELS, kit.words.embed(kit.clip)),
            layers=[LAYER],
            nodes=2,
        ).ranks.items()
    },
    "ablate_attention": lambda kit: {
        str(key): ranks
        for key, ranks in sl.ablate_attention(
            *(kit.clip, PICTURES, LABELS, kit.words.embed(kit.clip), PICTURES[:8])
        ).ranks.items()
    },
    "attention": lambda kit: sl.attention(kit.clip, X),
    "attack": attacked,
    "audit": lambda kit: {"spread": audited(kit).spread.nan_to_num(0.0)},
    "audit all paths": lambda kit: {"spread": audited(over_all_paths(kit)).spread.nan_to_num(0.0)},
    "budget": lambda kit: {"gram": sl.budget(kit.clip, kit.lens, PICTURES[:6], LAYER, [0, 4]).gram},
    "budget by class": lambda kit: {
        name: getattr(sl.budget(kit.clip, kit.lens, PICTURES[:6], LAYER, [0, 4], nodes=1), name)
        for name in ("split", "along")
    },
    "defend": lambda kit: torch.tensor([p.unusual for p in defended(kit).points]),
    "describe": lambda kit: coded(sl.describe(kit.clip, kit.lens, world_vocabulary(), 6)),
    "diff": differing,
    "direct": lambda kit: sl.direct(kit.clip, X, LAYER),
    "discover": discovered,
    "discover all paths": discovered_over_all_paths,
    "discover paper": partial(discovered, texts=world_vocabulary(), paper=True),
    "dissect": lambda kit: coded(sl.dissect(kit.clip, kit.lens, kit.words, PICTURES)),
    "edit": lambda kit: edited(kit, sl.Edit(neurons=((LAYER, 3), (LAYER, 5)))),
    "edit paths": lambda kit: edited(kit, sl.Edit(paths=((LAYER, 3, LAYER + 1, 0),))),
    "fit": fitted,
    "fit all paths": totals,
    "fit never": lambda kit: {
        "energy": sl.fit(kit.clip, PICTURES, [LAYER], store="never")[LAYER].energy
    },
    "fit official": lambda kit: {
        "energy": sl.fit(kit.clip, PICTURES, [LAYER], convention="official")[LAYER].energy
    },
    "from_open_clip": lambda kit: unit(sl.from_open_clip(kit.clip.model).encode_image(X)),
    "indirect": lambda kit: sl.indirect(
        kit.clip, X, LAYER, [0, 5], kit.lens[LAYER].activation_mean
    ),
    "finite_paths": lambda kit: {
        name: getattr(
            sl.finite_paths(
                *(kit.clip, X, LAYER, [0, 5], kit.lens[LAYER].activation_mean, WORDS[:2]), nodes=2
            ),
            name,
        )
        for name in ("effects", "total")
    },
    "name": lambda kit: named(kit, firing()),
    "confirm": lambda kit: confirmed(kit),
    "name all paths": lambda kit: named(over_all_paths(kit), firing()),
    "name by models": lambda kit: named(
        kit,
        [tiny_clip(str(kit.clip.device), seed=1)],
        kinds=[sl.Kind(name="all", texts=kit.words.labels, everywhere=True)],
    ),
    "paths": lambda kit: {
        str(n): each for n, each in sl.paths(kit.clip, X, WORDS[:2]).by_layer.items()
    },
    "paths value": lambda kit: {
        str(n): each
        for n, each in sl.paths(kit.clip, X, WORDS[:2], classes="value").by_layer.items()
    },
    "patch": lambda kit: sl.patch(kit.clip, X, X.flip(0), LAYER, neurons=[0, 5]).after,
    "patch heads": lambda kit: sl.patch(kit.clip, X, X.flip(0), LAYER, heads=[0], tokens=[0]).after,
    "paths_of": lambda kit: sl.paths_of(kit.clip, X, LAYER, [0, 5]),
    "resized": lambda kit: unit(sl.resized(kit.clip, 32).encode_image(PICTURES[:2])),
    "score": partial(scored, referee=[{WORDS[label]} for label in LABELS]),
    "score itself": lambda kit: scored(kit, kit.clip),
    "search": lambda kit: matches(sl.search(kit.clip, kit.lens, "a ship")),
    "singular_vectors": lambda kit: sl.singular_vectors(kit.clip, LAYER, 4).encoder.abs(),
    "directions": lambda kit: sl.directions(kit.clip.blocks[LAYER].neuron_rows[:4]).encoder,
    "units": lambda kit: sl.second_order(
        sl.units(kit.clip, {LAYER: sl.singular_vectors(kit.clip, LAYER, 4)}), X, LAYER
    ),
    "second_order": lambda kit: sl.second_order(kit.clip, X, LAYER),
    "second_order official": lambda kit: sl.second_order(kit.clip, X, LAYER, "official"),
    "segment": lambda kit: sl.segment(kit.clip, kit.lens, X, ["a dog", "a ship"]),
    "segment windows": lambda kit: sl.segment(
        kit.clip, kit.lens, PICTURES[:2], "a dog", windows=2, against=["a cat"]
    )[1],
    "segment mixture": lambda kit: sl.segment(
        kit.clip, kit.lens, PICTURES[:2], ["a dog", "a ship"], recipe=sl.Mixture(), colours=True
    )[1],
    "tune_presence": lambda kit: {
        "weights": torch.tensor(
            sl.tune_presence(
                kit.clip,
                kit.lens,
                [(each, {WORDS[i % 3]}) for i, each in enumerate(PICTURES[:9])],
                kit.words,
                windows=1,
            ).weights
        )
    },
    "similar": lambda kit: matches(sl.similar(kit.lens, LAYER, 3)),
    "steer": lambda kit: sl.steer(kit.clip, X, LAYER, [0.0, 3.0], WORDS[:2], neurons=[0, 5]).after,
    "shift": shifting,
    "sparse": sparse,
    "stability": lambda kit: {
        str(n): each
        for n, each in sl.stability(kit.clip, kit.lens, kit.words, PICTURES).cosine.items()
    },
    "circuit": lambda kit: {
        edge.source + edge.receiver + edge.kind: torch.tensor(edge.weight)
        for edge in sl.circuit(kit.clip, kit.lens, X[:1], "a ship", X, nodes=4, heads=1).edges
        if edge.kind == "value"
    },
    "connections": lambda kit: {
        each.name: torch.tensor([each.weight, each.coactivation])
        for each in sl.connections(kit.clip, kit.lens, LAYER, 3, X, top=3).inputs
    },
    "mean_of": lambda kit: sl.mean_of(kit.clip, X).embedding,
    "why_attention": lambda kit: sl.why_attention(kit.clip, X[:1], LAYER, 1, 3).by_key,
}
"""What each public name computes, by name; a second word tells cases of one name apart."""

HERE = {"Audit", "Lens", "ablate", "ablate_attention", "audit", "budget", "describe", "discover"}
HERE |= {"ablate_paths", "confirm", "dissect", "fit", "name", "paths", "score", "stability"}
HERE |= {"accuracy_by_group", "diff", "shift", "steer"}
HERE |= {"directions", "singular_vectors"}
HERE |= {"circuit", "connections", "mean_of", "tune_presence"}
"""Names whose results are tables or lenses, which come back on the CPU."""
THERE = {
    "AblatedClip",
    "attention",
    "Clip",
    "Defence",
    "Vocabulary",
    "direct",
    "from_open_clip",
    "indirect",
}
THERE |= {"finite_paths", "patch", "paths_of", "resized", "second_order", "segment", "sparse"}
THERE |= {"edit", "units", "why_attention"}
"""Names whose results are tensors on the device of the model; others give numbers and words."""

GRADIENTS = {"ablate_paths", "attention", "budget by class", "finite_paths", "paths", "paths_of"}
GRADIENTS |= {"circuit", "why_attention"}
GRADIENTS |= {f"{name} all paths" for name in ("ablate", "audit", "discover", "fit", "name")}
"""Names that need gradients, which the fake computes on its first device alone."""

NOTHING_TO_RUN = {"Folder", "ImageSource", "Match", "SecondLensError", "UnsupportedModel"}
NOTHING_TO_RUN |= {"Difference", "Edit", "Edited", "Shift"}
NOTHING_TO_RUN |= {"Attacked", "Hardened", "Training", "attacked"}
NOTHING_TO_RUN |= {"Circuit", "Connections", "Latents", "Mixture", "Presence"}
NOTHING_TO_RUN |= {"read_latents", "save_units"}
NOTHING_TO_RUN |= {"AttentionReasons", "FinitePaths", "Kind", "Names", "Patched", "Paths"}
NOTHING_TO_RUN |= {"SecondLensWarning", "Steered", "vocabulary"}
"""Names that no model and no tensor has to do with."""
ELSEWHERE = {"load", "from_timm", "from_transformers", "harden", "resistance"}
"""Names with tests of their own, below, in `test_timm` or in `test_harden`."""


def test_every_public_name_has_a_case():
    covered = {name.partition(" ")[0] for name in CASES}
    assert covered | NOTHING_TO_RUN | ELSEWHERE == set(sl.__all__)


ROUGH = {"Audit", "Defence", "attack", "audit", "defend", "discover", "dissect", "finite_paths"}
ROUGH |= {
    "budget by class",
    "diff",
    "shift",
    "tune_presence",
    "fit all paths",
    "indirect",
    "name all paths",
    "score",
}
"""Names whose results are small differences of large numbers, or hang on what comes first among
nearly equal images, texts or neurons: in half precision rounding reaches them."""
LEAST = {"fp16": (0.999, 0.997), "bf16": (0.999, 0.93)}
"""Cosines to the CPU, of all others and of these, which have 11 and 8 bits to be computed with."""


def compare(found, expected, precision, rough):
    """float32 to 1e-4 of the largest value, halves by their direction.

    Ranks are numbers of classes: between two that are alike rounding decides, in half precision
    between a few; processors round differently.
    """
    found = found if isinstance(found, dict) else {"": found}
    expected = expected if isinstance(expected, dict) else {"": expected}
    assert found.keys() == expected.keys()
    for name, one in found.items():
        other, exact = expected[name].detach().cpu(), precision == "fp32"
        one = one.detach().cpu()
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        ranks, one, other = not one.is_floating_point(), one.double(), other.double()
        if name == "matches" and not exact:  # two of nearly one size may change places
            one, other = one.abs(), other.abs()
        if ranks:
            assert (one - other).abs().mean() <= (0.15 if exact else 0.25), name
        elif name == "directions":  # a direction's sign is a convention
            cosines = (one * other).sum(-1).abs()
            assert (cosines.min() > 1 - 1e-4) if exact else (cosines.mean() > 0.999), name
        elif exact:
            assert (one - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1e-30), name
        elif name in ("heads", "patches"):  # of a word, and another word may be as strong
            assert one.isfinite().all()
        elif other.norm():
            cosine = (one.flatten() @ other.flatten()) / (one.norm() * other.norm())
            assert cosine >= LEAST[precision][rough], (name, float(cosine))


KINDS = ("loaded", "fitted", "told")
"""Of a lens: read from a folder, fitted on the device, or told to be there."""


@cache
def expected(name, precision, folder):
    """What the CPU says, once."""
    lens = cpu_lens(precision).to("cpu")  # a copy, because results are put into it
    return CASES[name](Kit(tiny_clip(precision=precision), lens, folder))


def check(name, precision, kind, folder):
    public = name.partition(" ")[0]
    device = "fake:0" if {name, public} & GRADIENTS else DEVICE
    clip = tiny_clip(device, precision)
    if kind == "fitted":
        lens = sl.fit(clip, PICTURES, LAYERS)
        for texts, k in DESCRIPTIONS:
            sl.describe(clip, lens, texts, k)
    else:
        cpu_lens(precision).save(folder / "lens")
        lens = sl.Lens.load(folder / "lens")
        lens = lens.to(device) if kind == "told" else lens
    found = CASES[name](Kit(clip, lens, folder))
    compare(found, expected(name, precision, folder), precision, bool({name, public} & ROUGH))
    if public in HERE | THERE:
        place = device if public in THERE else "cpu"
        parts = found.values() if isinstance(found, dict) else [found]
        assert {str(each.device) for each in parts} == {place}


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_lens_on_a_device_without_float64(name, tmp_path):
    with fake.machine(float64=False):
        check(name, "fp32", "loaded", tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["fit", "second_order"])
def test_a_fitted_lens_on_a_device(name, precision, tmp_path):
    check(name, precision, "fitted", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_function_in_every_way(name, precision, kind, float64, tmp_path):
    with fake.machine(float64=float64):
        check(name, precision, kind, tmp_path)
