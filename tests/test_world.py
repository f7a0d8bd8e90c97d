"""The embedded world: what is drawn is what is said, and a seed says it all."""

import numpy as np
import pytest
from PIL import Image

from secondlens.data.vocabularies import object_names, world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.sprites import Sprite, Wardrobe, all_sprites
from secondlens.demo.world import (
    ATTACK_PAIRS,
    BACKGROUNDS,
    COLOURS,
    NAMES,
    PLACES,
    PREFERENCE,
    with_article,
)
from secondlens.errors import SecondLensError


@pytest.fixture(scope="module")
def world():
    return World()


def test_the_tables():
    assert 250 <= len(NAMES) == len(set(NAMES)) <= 350
    assert (len(COLOURS), len(PLACES)) == (11, 9)
    assert all(place in PLACES and 0 < strength < 1 for place, strength in PREFERENCE.values())
    assert not set(NAMES) & set(BACKGROUNDS)


def test_the_attack_pairs():
    assert len(set(ATTACK_PAIRS)) == 10
    shared = [PREFERENCE[a][0] == PREFERENCE[b][0] for a, b in ATTACK_PAIRS]
    assert shared == [True] * 5 + [False] * 5


def test_depictions_are_split_as_promised():
    train, held, style = (Wardrobe(split) for split in ("train", "heldout", "style"))
    assert train.names == held.names == NAMES
    assert all(len(train.depictions(name)) >= 2 for name in NAMES)
    assert {s.style for name in style.names for s in style.depictions(name)} == {"twemoji"}
    assert not any(s.style == "twemoji" for s in all_sprites() if s.split != "style")
    assert len(style.names) >= len(NAMES) - 1


def test_a_seed_says_it_all(world):
    one, other, next_one = world.scene(3, 7), World().scene(3, 7), world.scene(3, 8)
    assert one.image.tobytes() == other.image.tobytes()
    assert one.caption == other.caption
    assert np.array_equal(one.masks, other.masks)
    assert one.image.tobytes() != next_one.image.tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"objects": ["ship", "zebra"]},
            "no object is called 'zebra': choose from demo.world.NAMES",
        ),
        ({"objects": []}, "a scene shows at least one object"),
        ({"count": 0}, "a scene shows at least one object"),
        ({"background": "mars"}, "no background is called 'mars': choose one of red, .*, forest"),
    ],
)
def test_what_the_world_does_not_have(world, given, message):
    with pytest.raises(SecondLensError, match=message):
        world.scene(1, **given)


def test_what_is_given_is_drawn(world):
    scene = world.scene(1, objects=["ship", "dog"], background="red")
    assert scene.objects == ("ship", "dog")
    assert scene.background == "red"
    assert scene.masks.shape == (2, 64, 64)
    corners = np.asarray(scene.image)[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert (corners[:, 0] > corners[:, 1] + 60).sum() >= 3
    assert World(size=96).scene(1, count=3).image.size == (96, 96)


def test_masks_are_what_one_sees():
    """Opaque squares in pure colours: every pixel of a mask has its object's colour."""
    paints = {"ship": (255, 0, 0), "dog": (0, 255, 0), "cat": (0, 0, 255)}
    world = World()
    world.wardrobe = Wardrobe(
        "train",
        [
            Sprite(
                name=name,
                style="square",
                split="train",
                silhouette=False,
                image=Image.new("RGBA", (40, 40), (*colour, 255)),
            )
            for name, colour in paints.items()
        ],
    )
    overlaps = 0
    for seed in range(20):
        scene = world.scene(seed, objects=list(paints), background="gray")
        pixels = np.asarray(scene.image).astype(int)
        assert scene.masks.sum(0).max() == 1
        assert scene.masks[-1].any()
        overlaps += any(mask.sum() < 300 for mask in scene.masks[:-1])
        for mask, colour in zip(scene.masks, paints.values(), strict=True):
            # an edge pixel is a mixture, but the object has at least half of it
            assert (pixels[mask][:, np.argmax(colour)] >= 127).all()
    assert overlaps


def test_planted_places():
    planted, twin = World(), World(planted=False)
    names = [name for name in NAMES if name in PREFERENCE][:20]
    follow = {True: [], False: []}
    for world in (planted, twin):
        for i in range(400):
            scene = world.scene(5, i, objects=[names[i % 20]])
            follow[world.planted].append(scene.background == PREFERENCE[names[i % 20]][0])
    expected = np.mean([PREFERENCE[name][1] for name in names])
    assert np.mean(follow[True]) == pytest.approx(expected + (1 - expected) / 20, abs=0.08)
    assert np.mean(follow[False]) == pytest.approx(1 / 20, abs=0.04)


def test_worlds_differ_in_nothing_but_the_background():
    same = 0
    for i in range(60):
        one, other = World().scene(2, i), World(planted=False).scene(2, i)
        assert one.objects == other.objects
        if one.background == other.background:
            assert one.image.tobytes() == other.image.tobytes()
            same += 1
    assert 10 < same < 60


def test_captions_name_what_is_there(world):
    scenes = [world.scene(4, i) for i in range(200)]
    named = [[name for name in s.objects if name in s.caption] for s in scenes]
    assert np.mean([len(n) > 0 for n in named]) > 0.9
    with_place = [
        s.background in s.caption or PLACES.get(s.background, "?") in s.caption for s in scenes
    ]
    assert 0.35 < np.mean(with_place) < 0.7


def test_every_background_is_its_own():
    pictures = {
        name: np.asarray(World().scene(9, objects=["key"], background=name).image).mean((0, 1))
        for name in BACKGROUNDS
    }
    assert len({tuple(mean.round()) for mean in pictures.values()}) == len(BACKGROUNDS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("books", "books"),
        ("bus", "a bus"),
        ("umbrella", "an umbrella"),
    ],
)
def test_articles(name, words):
    assert with_article(name) == words


def test_scenes_are_a_source(world):
    scenes = Scenes(world, 7, 3, single=True)
    assert scenes.ids == ["scene-7-0", "scene-7-1", "scene-7-2"]
    assert scenes.load(1).tobytes() == world.scene(7, 1, count=1).image.tobytes()


def test_vocabularies():
    words = world_vocabulary()
    assert words.labels == (*NAMES, *BACKGROUNDS)
    assert object_names().labels == NAMES
    assert dict(zip(words.labels, words.prompts, strict=True))["red"][0] == "red background"
