"""The world of 128 pixels: what is drawn is what is said, letters too, and a seed says it all."""

import re
import sys
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secondlens.demo.sprites import all_sprites as first_sprites
from secondlens.demo.world import BACKGROUNDS, COLOURS, NAMES, PLACES, PREFERENCE
from secondlens.errors import SecondLensError

sys.path.append(str(Path(__file__).parents[1] / "training"))

from world import scenes
from world.captions import where
from world.companions import COMPANIONS, LOOSE, OF
from world.letters import UNWRITTEN, WRITTEN, Fonts, all_faces, draw_sign
from world.scenes import Scenes, World, object_on
from world.sprites import Sprite, Wardrobe, all_sprites


@pytest.fixture(scope="module")
def drawn():
    """Scenes as training sees them."""
    world = World(augment=0.5)
    return [world.scene(7, i) for i in range(400)]


@pytest.fixture
def on_black(monkeypatch):
    """Every background is black and nothing throws a shadow, so that light adds up."""
    monkeypatch.setattr(scenes, "_cast_shadow", lambda *_: None)
    monkeypatch.setattr(scenes, "paint", lambda name, size, rng: _even(size, 0))


def _even(size, level):
    return np.full((size, size, 3), level, dtype=np.uint8)


def _disc(name, colour):
    """A disc with a soft edge in one colour."""
    large = Image.new("L", (400, 400))
    ImageDraw.Draw(large).ellipse((0, 0, 399, 399), fill=255)
    image = Image.new("RGBA", (100, 100), colour)
    image.putalpha(large.resize((100, 100), Image.Resampling.BICUBIC))
    sprite = Sprite(name=name, style="disc", split="train", silhouette=False, encoded=b"")
    sprite.__dict__["image"] = image
    return sprite


def test_a_seed_says_it_all():
    one, other = World(augment=0.5), World(augment=0.5)
    other.scene(1, 1)  # what was drawn before does not matter
    for i in range(12):
        a, b = one.scene(3, i), other.scene(3, i)
        assert a.image.tobytes() == b.image.tobytes()
        assert (a.caption, a.objects, a.background) == (b.caption, b.objects, b.background)
        assert np.array_equal(a.masks, b.masks)
    assert one.scene(3, 0).image.tobytes() != one.scene(3, 1).image.tobytes()


def test_masks_are_what_one_sees(on_black):
    """Discs in red, green and blue on black: a channel is the visible share of its object."""
    paints = {"ship": (255, 0, 0), "dog": (0, 255, 0), "cat": (0, 0, 255)}
    world = World(words=0)
    world.wardrobe = Wardrobe("train", [_disc(n, c) for n, c in paints.items()])
    covered = 0
    for seed in range(30):
        scene = world.scene(seed, objects=list(paints))
        seen = np.asarray(scene.image).astype(int).transpose(2, 0, 1)
        off = np.abs(seen - 127.5)[scene.masks != (seen >= 128)]
        assert off.max(initial=0) < 5  # of 255: each layer rounds
        covered += scene.masks[0].sum() < 0.8 * scene.masks[2].sum()
    assert covered


def test_a_sign_hides_what_its_mask_says(monkeypatch):
    """On white and on black: where the pictures agree, the sign is what one sees."""
    world, pictures = World(), []
    for level in (0, 255):
        monkeypatch.setattr(
            scenes, "paint", lambda name, size, rng, level=level: _even(size, level)
        )
        pictures.append([world.scene(5, i, objects=[], word="ship") for i in range(40)])
    for black, white in zip(*pictures, strict=True):
        dark, light = (np.asarray(s.image).astype(int).mean(2) for s in (black, white))
        opacity = 255 - (light - dark)
        sign, letters = black.written.sign, black.written.letters
        assert (sign == (opacity >= 128))[np.abs(opacity - 127.5) > 3].all()
        assert letters.any() and (letters <= sign).all()


def test_letters_have_the_colour_of_their_ink():
    for seed in range(40):
        rng = Random(seed)
        sign = draw_sign("umbrella", Fonts("train").choose(rng), 110, 40, rng)
        ink, shown = np.asarray(sign.ink), np.asarray(sign.opacity) == 255
        off = np.abs(np.asarray(sign.picture).astype(int) - COLOURS[sign.ink_colour]).sum(2)
        assert (off[(ink == 255) & shown] == 0).all()
        if sign.board:
            assert off[ink >= 128].mean() < 0.6 * off[(ink == 0) & shown].mean()


def test_a_word_changes_nothing_but_its_sign(drawn):
    world, quiet = World(augment=0.5), World(augment=0.5, words=0)
    for i in range(30):
        what = drawn[i].objects or ("dog",)
        with_word = world.scene(7, i, objects=what, background="red", word="ship")
        without = quiet.scene(7, i, objects=what, background="red")
        a, b = (np.asarray(s.image).astype(int) for s in (with_word, without))
        written = with_word.written
        # What is less than half covered by the sign is changed by less than half.
        assert np.abs(a - b)[~written.sign].max() <= 128
        assert written.sign[(a != b).any(2)].mean() > 0.7
        assert (a != b).any(2)[written.letters].mean() > 0.9
        assert np.array_equal(with_word.masks, without.masks & ~written.sign)


def test_pictures_and_words_are_held_out():
    splits = defaultdict(set)
    for sprite in all_sprites():
        splits[sprite.encoded].add(sprite.split)
    assert all(len(found) == 1 for found in splits.values())
    train, held = Wardrobe("train"), Wardrobe("heldout")
    assert train.names == NAMES
    assert len(held.names) >= 0.95 * len(NAMES)
    for name in held.names:
        assert train.depictions(name)
        both = {s.style for s in train.depictions(name)} & {s.style for s in held.depictions(name)}
        assert not both
    assert {s.style for s in all_sprites() if s.split == "style"} == {"twemoji"}
    assert not any(s.style == "twemoji" for s in all_sprites() if s.split != "style")
    assert not set(Fonts("train").names) & set(Fonts("heldout").names)
    assert len(Fonts("heldout").names) >= 15
    assert not set(WRITTEN) & set(UNWRITTEN)
    assert sorted((*WRITTEN, *UNWRITTEN)) == list(NAMES)
    assert len(UNWRITTEN) >= 10


def test_what_the_first_world_held_out_stays_held_out():
    older = {(s.name, s.style) for s in first_sprites() if s.split == "heldout"}
    trained = {(s.name, s.style) for s in all_sprites() if s.split == "train"}
    assert not older & trained


def test_training_draws_from_what_it_may(drawn):
    written = [s.written for s in drawn if s.written]
    assert 0.1 < len(written) / len(drawn) < 0.25
    assert {w.word for w in written} <= set(WRITTEN)
    assert {w.font for w in written} <= set(Fonts("train").names)
    alone = [s for s in drawn if not s.objects]
    assert 0.2 < len(alone) / len(written) < 0.6
    named = [s.written.word in s.objects for s in drawn if s.written and s.objects]
    assert 0.2 < np.mean(named) < 0.6


def test_words_without_a_picture():
    assert not {*COMPANIONS, *LOOSE} & {*NAMES, *BACKGROUNDS}
    assert not set(COMPANIONS) & set(LOOSE)
    assert {name for names in COMPANIONS.values() for name in names} <= set(NAMES)
    assert OF["dog"] == ("leash", "vet")


def test_captions_are_true(drawn):
    unseen = named = told = 0
    for scene in drawn:
        words = set(re.findall("[a-z]+", scene.caption))
        spelled = {scene.written.word} if scene.written else set()
        assert words & set(NAMES) <= {*scene.objects, *spelled}, scene.caption
        phrases = {b for b in BACKGROUNDS if where(b) in scene.caption}
        assert phrases <= {scene.background}, scene.caption
        colours = set(re.findall("|".join(COLOURS), re.sub(r"\w+ background", "", scene.caption)))
        assert colours <= ({scene.written.colour} if spelled else set()), scene.caption
        tied = {w for name in scene.objects for w in OF.get(name, ())}
        assert words & set(COMPANIONS) <= tied, scene.caption
        unseen += bool(words & {*COMPANIONS, *LOOSE})
        named += bool(words & set(NAMES))
        told += (
            scene.background in scene.caption or PLACES.get(scene.background, "?") in scene.caption
        )
    assert named / len(drawn) > 0.85
    assert 0.12 < unseen / len(drawn) < 0.3
    assert 0.35 < told / len(drawn) < 0.6


def test_planted_places():
    planted, twin = World(words=0), World(words=0, planted=False)
    names = [name for name in NAMES if name in PREFERENCE][:20]
    follow = {True: [], False: []}
    for world in (planted, twin):
        for i in range(200):
            scene = world.scene(5, i, objects=[names[i % 20]])
            follow[world.planted].append(scene.background == PREFERENCE[names[i % 20]][0])
    expected = np.mean([PREFERENCE[name][1] for name in names])
    assert np.mean(follow[True]) == pytest.approx(expected + (1 - expected) / 20, abs=0.1)
    assert np.mean(follow[False]) == pytest.approx(1 / 20, abs=0.05)


def test_worlds_differ_in_nothing_but_the_background():
    same = 0
    for i in range(60):
        one, other = World().scene(2, i), World(planted=False).scene(2, i)
        assert one.objects == other.objects
        assert np.array_equal(one.masks, other.masks)
        if one.background == other.background:
            assert one.image.tobytes() == other.image.tobytes()
            same += 1
    assert 10 < same < 60


def test_every_background_is_its_own():
    pictures = {
        name: np.asarray(object_on(World(), "key", name, 9)).mean((0, 1)) for name in BACKGROUNDS
    }
    assert len({tuple(mean.round()) for mean in pictures.values()}) == len(BACKGROUNDS)


def test_every_face_writes_every_name():
    for face in all_faces():
        shapes = {face.write(word).tobytes() for word in ("dog", "Dog", "god", "umbrella")}
        assert len(shapes) >= 3
        assert all(face.write(letter).getbbox() for letter in face.cells)


def test_scenes_are_a_source():
    found = Scenes(World(), 7, 3, single=True)
    assert found.ids == ["scene-7-0", "scene-7-1", "scene-7-2"]
    assert found.load(1).tobytes() == World().scene(7, 1, count=1).image.tobytes()
    assert found.load(1).size == (128, 128)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objects": ["ship", "zebra"]}, "no object is called 'zebra'"),
        ({"objects": []}, "a scene shows an object or a written word"),
        ({"count": 0}, "a scene shows an object or a written word"),
        ({"background": "mars"}, "no background is called 'mars': choose one of red, .*, forest"),
        ({"word": "Zoë"}, "cannot write 'Zoë': a written word has letters a to z only"),
        ({"word": ""}, "cannot write '': a written word has letters a to z only"),
    ],
)
def test_what_the_world_does_not_have(given, message):
    with pytest.raises(SecondLensError, match=message):
        World(words=0).scene(1, **given)
