"""Names that raise the effect when their thing is drawn in, and names that only go with it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer
from scipy import stats

import secondlens as sl
from secondlens.data.sources import InMemory
from secondlens.demo.scenes import World, object_on, with_and_without
from secondlens.demo.world import BACKGROUNDS
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.lens.lens import Lens
from secondlens.lens.names import NO_NAME
from secondlens.models.open_clip.views import from_open_clip

COUNT, LAYER, NEURON = 240, 1, 3
WORDS = ("dog", "sea", "wheel")


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return InMemory(tiny_images(clip, COUNT, seed=5), ids=[f"new-{i}" for i in range(COUNT)])


@pytest.fixture(scope="module")
def effects(clip, lens, images):
    found = second_order(clip, images.pictures, LAYER)
    return torch.einsum("bnd,nd->nb", found, lens[LAYER].directions)


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, tiny_images(clip, 30), [0, LAYER], top=5)


@pytest.fixture(scope="module")
def named(clip, lens, images, effects):
    """One neuron fires on two things by turns."""
    labels = [{"wheel"} if i % 3 == 0 else set() for i in range(COUNT)]
    for place, image in enumerate(effects[NEURON].topk(60).indices.tolist()):
        labels[image].add(("dog", "sea")[place % 2])
    names = sl.name(clip, replace(lens, names={}), images, WORDS, labels)
    assert {each.text for each in names.of(LAYER, NEURON)} == {"dog", "sea"}
    return names


@pytest.fixture
def own(lens, named):
    return replace(lens, names={named.name: named})


@pytest.fixture(scope="module")
def pair(images, effects):
    """A dog raises the effect of the neuron, the sea does to it what it likes."""
    order = effects[NEURON].argsort()
    rng = np.random.default_rng(0)
    random = torch.from_numpy(rng.permutation(COUNT))

    def draw(text, seed):
        one, other = (order[-1 - seed], order[seed]) if text == "dog" else random[[seed, seed + 99]]
        return images.pictures[one], images.pictures[other]

    return draw


def test_what_raises_the_effect_is_confirmed_by_the_sign_test(clip, own, named, pair, effects):
    names = sl.confirm(clip, own, pair, pairs=12, batch_size=7)
    assert own.names[names.name] is names
    p, expected = [], {}
    images = own.names[names.name].image_ids
    for layer in own.layers:
        rows = effects if layer == LAYER else None
        for neuron, texts in enumerate(named.texts[layer].tolist()):
            for rank, text in enumerate(texts):
                if text < 0:
                    assert not names.confirmed[layer][neuron, rank]
                    continue
                sides = [pair(WORDS[text], seed) for seed in range(12)]
                if rows is not None:
                    rose = sum(
                        _effect(clip, own, layer, neuron, one)
                        > _effect(clip, own, layer, neuron, other)
                        for one, other in sides
                    )
                    assert int(names.rose[layer][neuron, rank]) == rose
                rose = int(names.rose[layer][neuron, rank])
                p.append(stats.binomtest(rose, 12, alternative="greater").pvalue)
                expected[layer, neuron, rank] = len(p) - 1
    passed = stats.false_discovery_control(p) <= 0.05
    for (layer, neuron, rank), place in expected.items():
        assert bool(names.confirmed[layer][neuron, rank]) == passed[place]
    by_text = {each.text: each for each in names.of(LAYER, NEURON)}
    assert (by_text["dog"].rose, by_text["dog"].confirmed) == (12, True)
    assert by_text["sea"].confirmed is False
    assert names.title(LAYER, NEURON) == own.title(LAYER, NEURON) == "dog · goes with sea"
    assert len(images) == COUNT


def _effect(clip, lens, layer, neuron, picture):
    found = second_order(clip, picture[None], layer)[0, neuron]
    return float(found @ lens[layer].directions[neuron])


def test_a_name_alone_may_only_go_with_its_neuron(own, named, clip, pair):
    names = sl.confirm(clip, own, lambda text, seed: pair("sea", seed))
    assert names.title(LAYER, NEURON).startswith("goes with ")
    nameless = next(n for n, texts in enumerate(named.texts[LAYER].tolist()) if texts[0] < 0)
    assert names.title(LAYER, nameless) == NO_NAME


def test_causes_are_saved_with_the_lens(clip, own, pair, tmp_path):
    assert next(iter(own.names.values())).of(LAYER, NEURON)[0].rose is None
    own.save(tmp_path / "before")
    assert Lens.load(tmp_path / "before").first_names.pairs == 0
    names = sl.confirm(clip, own, pair)
    own.save(tmp_path / "after")
    again = Lens.load(tmp_path / "after").first_names
    assert again.pairs == names.pairs == 16
    assert again.of(LAYER, NEURON) == names.of(LAYER, NEURON)


def test_refusals(clip, lens, own, pair):
    with pytest.raises(SecondLensError, match="no names: run secondlens name first"):
        sl.confirm(clip, replace(lens, names={}), pair)
    with pytest.raises(SecondLensError, match="no names 'others'"):
        sl.confirm(clip, own, pair, names="others")
    with pytest.raises(SecondLensError, match="5 pairs tell too little: draw at least 6"):
        sl.confirm(clip, own, pair, pairs=5)

    def broken(text, seed):
        if seed == 2:
            raise OSError("no paint")
        return pair(text, seed)

    with pytest.raises(SecondLensError, match=r"2-with-.* was not drawn: OSError: no paint"):
        sl.confirm(clip, own, broken)


@pytest.mark.parametrize("text", ["dog", "sea", "red"])
def test_pairs_of_the_world_differ_in_the_thing_alone(text):
    world = World(planted=False)
    for seed in range(4):
        one, other = (np.asarray(each) for each in with_and_without(world, text, seed))
        changed = (one != other).any(2)
        assert changed.sum() > 0
        again = with_and_without(world, text, seed)
        assert np.array_equal(one, again[0]) and np.array_equal(other, again[1])
        if text in BACKGROUNDS:
            continue
        mask = world.scene(seed, 3, objects=[text], background="gray").masks[0]
        assert not changed[~mask].any(), "nothing but the thing is drawn"
    draw = partial(with_and_without, world)
    with pytest.raises(SecondLensError, match="no object is called"):
        draw("zeppelin", 0)
    assert object_on(world, "dog", "sea", 1).size == (world.size, world.size)
