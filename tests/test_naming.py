from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer
from scipy import stats
from sklearn.metrics import roc_auc_score

import secondlens as sl
from secondlens.data.embedding import normalise
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary, world_vocabulary
from secondlens.demo.scenes import FIT_SEED, NAME_SEED, Scenes, World, truth
from secondlens.demo.world import BACKGROUNDS, NAMES
from secondlens.effects.projections import embed
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.hub import lens_card
from secondlens.lens.names import NO_NAME
from secondlens.lens.published import published
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words import judging
from secondlens.words.judging import Holdings, Kind, agreed, alike, by_labels, by_model, kinds_of
from secondlens.words.naming import (
    LEAST_AREA,
    NameSearch,
    Ranks,
    benjamini_hochberg,
    binomial_tail,
    mann_whitney,
)
from secondlens.words.scoring import score

COUNT = 400
WORDS = ("dog", "ship", "sea", "snow", "wheel", "never")
LAYER, ONE, TWO = 1, 3, 5
"""Neurons whose images have planted labels: one label for the first, two for the second."""


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def other():
    return from_open_clip(tiny_model(seed=9, dim=10), tokenizer=tiny_tokenizer, name="other")


@pytest.fixture(scope="module")
def fitted(clip):
    return sl.fit(clip, tiny_images(clip, 30), [0, LAYER], top=5)


@pytest.fixture(scope="module")
def images(clip):
    return InMemory(tiny_images(clip, COUNT, seed=5), ids=[f"new-{i}" for i in range(COUNT)])


@pytest.fixture(scope="module")
def effects(clip, fitted, images):
    """Of all images along the direction of each neuron of the layer; [neurons, images]."""
    found = second_order(clip, images.pictures, LAYER)
    return torch.einsum("bnd,nd->nb", found, fitted[LAYER].directions)


@pytest.fixture(scope="module")
def labels(effects):
    """Of each image: "dog" where neuron ONE is strong, "ship" or "sea" where TWO is, at random
    "snow" and "wheel"."""
    rng = np.random.default_rng(0)
    held = [set() for _ in range(COUNT)]
    for i in effects[ONE].topk(40).indices.tolist():
        held[i].add("dog")
    for place, i in enumerate(effects[TWO].topk(60).indices.tolist()):
        held[i].add(("ship", "sea")[place % 2])
    for each in held:
        each |= {word for word in ("snow", "wheel") if rng.random() < 0.1}
    return held


@pytest.fixture(scope="module")
def named(clip, fitted, images, labels):
    lens = replace(fitted, names={})
    return lens, sl.name(clip, lens, images, WORDS, labels)


@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_the_test_of_a_name_is_scipys(levels):
    rng = np.random.default_rng(levels)
    values = rng.integers(0, levels, (3, 60)).astype(float)
    chosen = rng.random(60) < 0.2
    auc, p = mann_whitney(Ranks.of(torch.from_numpy(values)), torch.from_numpy(chosen))
    for i in range(3):
        expected = stats.mannwhitneyu(
            values[i][chosen],
            values[i][~chosen],
            use_continuity=False,
            alternative="greater",
            method="asymptotic",
        )
        assert p[i] == pytest.approx(expected.pvalue)
        assert auc[i] == pytest.approx(roc_auc_score(chosen, values[i]))


def test_a_neuron_that_never_differs_is_no_discovery():
    auc, p = mann_whitney(Ranks.of(torch.zeros(1, 20)), torch.arange(20) < 5)
    assert (auc.item(), p.item()) == (0.5, 0.5)


def test_tails_and_corrections_are_scipys():
    rng = np.random.default_rng(1)
    counts, share = rng.integers(0, 31, 50), rng.random(50)
    found = binomial_tail(torch.from_numpy(counts), 30, torch.from_numpy(share))
    np.testing.assert_allclose(found, stats.binom.sf(counts - 1, 30, share), rtol=1e-9)
    p = rng.random(200) ** 3
    corrected = benjamini_hochberg(torch.from_numpy(p))
    np.testing.assert_allclose(corrected, stats.false_discovery_control(p))
    assert len(benjamini_hochberg(torch.zeros(0))) == 0


def test_planted_labels_are_found_and_random_ones_are_not(named):
    _, names = named
    assert [each.text for each in names.of(LAYER, ONE)][:1] == ["dog"]
    assert {each.text for each in names.of(LAYER, TWO)} >= {"ship", "sea"}
    used = {each.text for n in range(names.texts[LAYER].shape[0]) for each in names.of(LAYER, n)}
    assert not used & {"snow", "wheel", "never"}
    assert names.shuffled == 0
    assert names.rare == 1  # "never"
    assert names.title(LAYER, ONE).startswith("dog")


def test_a_neuron_that_never_changes_gets_no_name_and_is_counted(images):
    """Its effect still varies, with scales and lengths, so that a word may find it."""
    model = tiny_model()
    with torch.no_grad():
        reads = model.visual.transformer.resblocks[LAYER].mlp.c_fc
        reads.weight[5] = 0
        reads.bias[5] = 3
    clip = from_open_clip(model, name="tiny")
    lens = sl.fit(clip, InMemory(tiny_images(clip, 60, seed=2)), [LAYER], top=5)
    found = second_order(clip, images.pictures, LAYER)[:, 5] @ lens[LAYER].directions[5]
    held = [set() for _ in range(COUNT)]
    for image in found.topk(60).indices.tolist():
        held[image].add("dog")
    names = sl.name(clip, lens, images, WORDS, held)
    assert names.of(LAYER, 5) == [] and names.constant == 1


def test_names_are_scored_as_descriptions_are(clip, named):
    lens, names = named
    fresh = InMemory(tiny_images(clip, 300, seed=6), ids=[f"fresh-{i}" for i in range(300)])
    found = torch.einsum(
        "bnd,nd->nb", second_order(clip, fresh.pictures, LAYER), lens[LAYER].directions
    )
    rng = np.random.default_rng(1)
    labels = [{word for word in WORDS if rng.random() < 0.2} for _ in range(300)]
    for image in found[TWO].topk(40).indices.tolist():
        labels[image].add("sea")
    scores = score(clip, lens, names.name, fresh, labels)
    assert (scores.vocabulary, scores.top) == (names.name, 6)
    atoms = torch.nn.functional.normalize(normalise(vocabulary(WORDS).embed(clip)), dim=1)
    for neuron in (ONE, TWO):
        own = names.of(LAYER, neuron)
        predicted = [sum(n.auc - 0.5 for n in own if n.text in held) for held in labels]
        strong = torch.zeros(300)
        strong[found[neuron].topk(6).indices] = 1
        area = roc_auc_score(strong, predicted)
        assert float(scores.auc[LAYER][neuron, 0]) == pytest.approx(area, abs=1e-5)
        nearest = WORDS[int((atoms @ lens[LAYER].directions[neuron].to(atoms)).argmax())]
        area = roc_auc_score(strong, [nearest in held for held in labels])
        assert float(scores.controls[LAYER][neuron, 0, 3]) == pytest.approx(area, abs=1e-5)
    assert scores.auc[LAYER][:, 1].isnan().all(), "names say nothing of the other side"
    nameless = (names.texts[LAYER] < 0).all(1)
    assert scores.auc[LAYER][nameless].isnan().all()


def test_names_are_not_scored_on_what_they_were_chosen_on(clip, named, images, labels):
    lens, names = named
    with pytest.raises(SecondLensError, match="named on 400 of these pictures, 'new-0' first"):
        score(clip, lens, names.name, images, labels)


def test_the_evidence_is_what_it_says(named, effects, labels, images):
    _, names = named
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    choosing, testing = order[: COUNT // 2], order[COUNT // 2 :]
    (name, *_) = names.of(LAYER, ONE)
    holds = np.array(["dog" in each for each in labels])
    area = roc_auc_score(holds[testing], effects[ONE, testing])
    assert name.auc == pytest.approx(area)
    mine, others = effects[ONE, testing][holds[testing]], effects[ONE, testing][~holds[testing]]
    p = stats.mannwhitneyu(
        mine, others, use_continuity=False, alternative="greater", method="asymptotic"
    ).pvalue
    assert name.p == pytest.approx(p)
    assert name.p <= name.q <= 0.05
    strongest = choosing[effects[ONE, choosing].argsort(descending=True)][: names.shown].tolist()
    shown = [images.ids[i] for i in strongest if holds[i]]
    assert name.held == len(shown)
    assert list(name.pictures) == shown[:6]


def test_a_second_name_holds_on_images_without_the_first(named, effects, labels):
    _, names = named
    first, second = names.of(LAYER, TWO)[:2]
    testing = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[COUNT // 2 :]
    rest = [i for i in testing.tolist() if first.text not in labels[i]]
    holds = [second.text in labels[i] for i in rest]
    assert roc_auc_score(holds, effects[TWO, rest]) >= LEAST_AREA


def test_a_text_that_rides_on_another_is_no_second_name(clip, fitted, images, labels):
    doubled = [each | ({"wheel"} if "dog" in each else set()) - {"snow"} for each in labels]
    doubled = [each - ({"wheel"} if "dog" not in each else set()) for each in doubled]
    names = sl.name(clip, fitted, images, WORDS, doubled)
    assert len({"dog", "wheel"} & {each.text for each in names.of(LAYER, ONE)}) == 1


def test_what_images_hold_is_the_literal_formula(other, images, monkeypatch):
    monkeypatch.setattr(judging, "TEXTS_PER_CHUNK", 2)
    texts = vocabulary(WORDS)
    kinds = kinds_of(texts, [Kind(name="place", texts=("sea", "snow"), everywhere=True)])
    positions = list(range(0, COUNT, 2))
    first = torch.tensor([0, 1, 2, 3, 0, 5])  # "wheel" is no other than "dog"
    found = by_model(other, texts, kinds, first, images, positions, None, 0)
    rows = embed(other, images)[positions] @ normalise(texts.embed(other), "centred").T
    z = ((rows - rows.mean(0)) / rows.std(0)).numpy()
    for i in range(len(positions)):
        place, thing = (2, 3)[z[i, [2, 3]].argmax()], (0, 1, 5)[z[i, [0, 1, 5]].argmax()]
        assert found.texts[i].tolist() == [place, thing]
        assert found.strength[i, 0] == torch.inf
        assert found.strength[i, 1] == pytest.approx(z[i, thing], rel=1e-4)
    above = found.above(1.0)
    assert (above[:, 0] == found.texts[:, 0]).all()
    assert ((above[:, 1] >= 0) == (found.strength[:, 1] > 1)).all()


def test_judges_have_to_agree():
    one = Holdings(
        judge="one", texts=torch.tensor([[0, 3], [1, 2]]), strength=torch.tensor([[4.0, 5], [6, 7]])
    )
    two = Holdings(
        judge="two", texts=torch.tensor([[0, 2], [2, 1]]), strength=torch.tensor([[9.0, 1], [3, 8]])
    )
    both = agreed([one, two])
    assert both.judge == "one and two"
    assert both.above(3.5).tolist() == [[0, -1], [1, -1]]
    assert both.strength.tolist() == [[4, -torch.inf], [6, 3]]


def test_texts_that_a_referee_cannot_tell_apart_are_one(clip, fitted, images, other):
    texts = vocabulary(("dog", "ship", "hound", "sea"))
    texts = replace(texts, prompts=(("dog",), ("ship",), ("dog",), ("sea",)))
    assert alike([other], texts).tolist() == [0, 1, 0, 3]
    kinds = [Kind(name="all", texts=texts.labels, everywhere=True)]
    names = sl.name(clip, replace(fitted, names={}), images, texts, other, kinds=kinds)
    assert names.alike == (("dog", "hound"),)
    assert names.referee == "other"


def test_kinds():
    world = kinds_of(world_vocabulary(), None)
    assert [(each.name, each.everywhere) for each in world] == [
        ("background", True),
        ("thing", False),
    ]
    assert world[0].texts == BACKGROUNDS
    assert set(world[1].texts) == set(NAMES)
    assert [each.texts for each in kinds_of(vocabulary(WORDS), None)] == [WORDS]
    with pytest.raises(SecondLensError, match="lacks"):
        kinds_of(vocabulary(WORDS), [Kind(name="x", texts=("cat",))])
    with pytest.raises(SecondLensError, match="two kinds"):
        kinds_of(
            vocabulary(WORDS), [Kind(name="x", texts=("dog",)), Kind(name="y", texts=("dog",))]
        )


def test_names_are_kept_in_the_lens(named, tmp_path):
    lens, names = named
    assert lens.names == {"texts by true labels": names}
    lens.save(tmp_path / "lens")
    (read,) = sl.Lens.load(tmp_path / "lens").names.values()
    for layer in names.texts:
        assert read.title(layer, 0) == names.title(layer, 0)
        for neuron in range(len(names.texts[layer])):
            assert read.of(layer, neuron) == names.of(layer, neuron)
    assert repr(read) == repr(names)
    assert read.coverage() == names.coverage()
    lens_card(lens)
    replace(lens, names={}).save(tmp_path / "lens")
    assert not list((tmp_path / "lens").glob("names*"))
    assert sl.Lens.load(tmp_path / "lens").names == {}


def test_folders_of_this_machine_leave_no_name(named):
    lens, names = named
    there = replace(names, referee="/home/ann/model", image_ids=("/home/ann/1.png", "2.png"))
    (shared,) = published(replace(lens, names={"x": there})).names.values()
    assert shared.referee == "model"
    assert shared.image_ids == ("1.png", "2.png")


@pytest.mark.parametrize(
    ("field", "value"),
    [("texts", 99), ("texts", -2), ("held", 99), ("held", -1), ("pictures", COUNT)],
)
def test_names_that_cannot_be_are_refused(field, value, named, tmp_path):
    lens, names = named
    damaged = {n: each.clone() for n, each in getattr(names, field).items()}
    damaged[LAYER].view(-1)[0] = value
    bad = replace(names, **{field: damaged})
    replace(lens, names={bad.name: bad}).save(tmp_path / "lens")
    with pytest.raises(SecondLensError, match="damaged"):
        sl.Lens.load(tmp_path / "lens")


def test_a_neuron_without_a_name_says_so(named):
    _, names = named
    nameless = int((names.texts[LAYER][:, 0] < 0).nonzero()[0])
    assert names.of(LAYER, nameless) == []
    assert names.title(LAYER, nameless) == NO_NAME
    with pytest.raises(SecondLensError, match="no names"):
        names.of(7, 0)
    with pytest.raises(SecondLensError, match="no neuron"):
        names.of(LAYER, 10**6)


def test_mistakes_are_told(clip, fitted, images, other, labels):
    def refused(match, pictures=images, words=WORDS, referee=labels):
        with pytest.raises(SecondLensError, match=match) as error:
            sl.name(clip, fitted, pictures, words, referee)
        assert "\n" not in str(error.value)

    refused("cannot judge itself", referee=clip)
    refused("cannot judge itself", referee=[other, clip])
    refused("must be a Clip", referee=[other, {"dog"}])
    refused("on which the lens was fitted", tiny_images(clip, 30), referee=labels[:30])
    few = InMemory(images.pictures[:39], images.ids[:39])
    refused("39 readable images are too few .* at least 60", few, referee=labels[:39])
    refused("labels of 1", referee=labels[:1])
    refused("none of the labels", referee=[{"cat"}] * COUNT)
    refused(
        "none of the 6 texts is held", referee=[{"dog"} if i < 3 else set() for i in range(COUNT)]
    )
    refused("tells none of the 2 texts", words=replace(
        vocabulary(("dog", "hound")), prompts=(("dog",), ("dog",))
    ), referee=other)  # fmt: skip


def test_chance_gives_no_names():
    generator = torch.Generator().manual_seed(2)
    held = torch.randint(20, (1000, 1), generator=generator)
    noise = torch.randn(200, 1000, generator=generator)
    search = NameSearch(Holdings(judge="x", texts=held, strength=torch.full((1000, 1), 9.0)), 20, 0)
    found, tested = search(lambda _: noise, [0], "names", False)
    assert tested > 5
    assert found == {0: []}


@pytest.mark.long
def test_names_of_the_embedded_model_are_true():
    clip, twin = sl.load("demo"), sl.load("demo-twin")
    world = World()
    lens = sl.fit(clip, Scenes(world, FIT_SEED, 600), [5])
    pool = Scenes(world, NAME_SEED, 1500)
    names = sl.name(clip, lens, pool, "world", twin)
    held = dict(zip(pool.ids, truth(pool), strict=True))
    shown = [
        (each.text in BACKGROUNDS, each.text in held[picture])
        for neuron in range(clip.neurons)
        for each in names.of(5, neuron)
        for picture in each.pictures
    ]
    objects = [true for background, true in shown if not background]
    assert np.mean(objects) >= 0.9
    assert np.mean([true for background, true in shown if background]) >= 0.98
    assert names.coverage()[5] >= 0.4
    assert names.shuffled == 0


def test_by_labels_takes_what_the_texts_name():
    found = by_labels([{"dog", "cat"}, {"sea", "dog"}, set()], vocabulary(WORDS), [2, 1])
    assert found.texts.tolist() == [[-1, -1], [0, 2]]
    assert found.above(9.0).tolist() == [[-1, -1], [0, 2]]


def test_what_is_replaced_or_left_out_is_told(clip, fitted, images, labels):
    lens = replace(fitted, names={})
    sl.name(clip, lens, images, WORDS, labels)
    with pytest.warns(SecondLensWarning, match="earlier names of texts by true labels"):
        sl.name(clip, lens, images, WORDS, labels)
    more = [each | {"zebra", "yak"} for each in labels]
    with pytest.warns(SecondLensWarning, match="2 labels, 'yak' first, are none of the texts"):
        names = sl.name(clip, replace(fitted, names={}), images, WORDS, more)
    again = lens.first_names
    assert all(torch.equal(names.texts[n], again.texts[n]) for n in names.texts)
