"""Whether any picture shows a cue: literal formulas, and the truth of the embedded world."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from secondlens.applications.auditing.presence import (
    BAR,
    BEYOND,
    LEAST,
    RIVALS,
    _null_words,
    shares_of_null,
    unshown_cues,
)
from secondlens.data.embedding import normalise
from secondlens.data.sources import Subset
from secondlens.data.vocabularies import backgrounds, object_names, vocabulary
from secondlens.demo.scenes import World
from secondlens.demo.world import BACKGROUNDS, NAMES
from secondlens.models.loading import load

COUNT = 800
GROUNDS = BACKGROUNDS[::2]


class HalfOfTheWorld:
    """Scenes with every other object and background of the embedded world."""

    def __init__(self):
        self.ids = [f"scene-{i}" for i in range(COUNT)]
        self.world = World(planted=False)

    def scene(self, index):
        rng = np.random.default_rng((99, index))
        objects = rng.choice(NAMES[::2], rng.choice([1, 2, 3]), replace=False).tolist()
        return self.world.scene(98, index, objects=objects, background=str(rng.choice(GROUNDS)))

    def load(self, index):
        return self.scene(index).image


@pytest.fixture(scope="module")
def source():
    return HalfOfTheWorld()


@pytest.fixture(scope="module")
def clip():
    return load("demo")


@pytest.fixture(scope="module")
def embeddings(clip, source):
    with torch.no_grad():
        rows = [
            clip.encode_image([source.load(i) for i in range(start, start + 100)])
            for start in range(0, COUNT, 100)
        ]
    return F.normalize(torch.cat(rows), dim=1)


def judged(clip, source, embeddings, classes, cues, chance=0.05, **more):
    found, said = unshown_cues(
        *(clip, classes, cues, source, embeddings, list(range(COUNT))),
        **{"labels": None, "referee": None, "chance": chance, **more},
    )
    return set(cues.labels) - set(found), said


def test_the_level_holds_and_what_is_there_is_found(clip, source, embeddings):
    """Objects that no picture holds, with others like them in the pictures."""
    kept, said = judged(clip, source, embeddings, backgrounds(), object_names())
    level, power = (len(kept & set(NAMES[half::2])) / len(NAMES[half::2]) for half in (1, 0))
    assert level <= 0.05
    assert power >= 0.5
    assert f"Of {len(NAMES)} cues, {len(NAMES) - len(kept)} were left out" in said
    places, _ = judged(clip, source, embeddings, object_names(), backgrounds())
    assert len(places & set(GROUNDS)) >= 8
    assert len(places - set(GROUNDS)) <= 1


def test_few_cues_are_compared_with_the_words_of_a_description(clip, source, embeddings):
    """Two classes and two cues: with other words, what is there stays and what is not goes."""
    there, gone = NAMES[0], NAMES[1]
    found, _ = unshown_cues(
        *(clip, vocabulary(["sea", "road"]), vocabulary([there, gone]), source, embeddings),
        list(range(COUNT)),
        labels=None,
        referee=None,
        chance=0.1,
        others=object_names(),
    )
    assert found == (gone,)


@pytest.mark.long
def test_shares_are_their_definition():
    generator = torch.Generator().manual_seed(3)
    words = F.normalize(torch.randn(9, 6, generator=generator), dim=1)
    images = F.normalize(torch.randn(60, 6, generator=generator), dim=1)
    images[:5] += 3 * words[2]

    def standard(text):
        along = images @ text
        return (along - along.mean()) / along.std()

    def fit(text, rivals):
        total = 0.0
        for i, own in enumerate(standard(text).tolist()):
            if all(own > float(standard(each)[i]) for each in rivals):
                total += max(own - BEYOND, 0.0)
        return total

    low, high = RIVALS
    null = [
        fit(text, [word for word in words if text @ word > low])
        for text in _null_words(words, words @ words.T)
    ]
    expected = []
    for cue in (2, 5):
        rivals = [word for word in words if low < words[cue] @ word < high]
        expected.append(np.mean([each >= fit(words[cue], rivals) - 1e-6 for each in null]))
    found = shares_of_null(images, words, torch.tensor([2, 5]))
    assert found.tolist() == pytest.approx(expected, abs=5e-3)
    assert found[0] < found[1]


def test_null_words_lie_between_two():
    generator = torch.Generator().manual_seed(4)
    words = F.normalize(torch.randn(5, 9, generator=generator), dim=1)
    pairs = [(a, b) for a in range(5) for b in range(a)]
    for text in _null_words(words, words @ words.T)[:50]:
        fits = [torch.linalg.lstsq(words[[a, b]].T, text[:, None]).solution[:, 0] for a, b in pairs]
        apart = [
            float((words[[a, b]].T @ fit - text).norm())
            for (a, b), fit in zip(pairs, fits, strict=True)
        ]
        assert sorted(apart)[0] < 1e-5 < sorted(apart)[1]
        fit = fits[int(np.argmin(apart))]
        assert 1 / 3 - 1e-5 < float(fit[0] / fit.sum()) < 2 / 3 + 1e-5


def test_labels_and_referees_are_counted(clip, source, embeddings):
    labels = [{*(scene := source.scene(i)).objects, scene.background} for i in range(COUNT)]
    cues = vocabulary([*NAMES[:30], "a word that no label is"])
    number = {cue: sum(cue in each for each in labels) for cue in cues.labels}
    kept, said = judged(clip, source, embeddings, backgrounds(), cues, labels=labels)
    named = {cue for cue in cues.labels if number[cue]}
    assert kept & named == {cue for cue in named if number[cue] >= LEAST}
    assert "judged by their labels and demo itself" in said


@pytest.mark.long
def test_a_referee_is_counted(clip, source, embeddings):
    few, twin, cues = Subset(source, range(300)), load("demo-twin"), object_names()
    found, said = unshown_cues(
        *(clip, backgrounds(), cues, few, embeddings[:300], list(range(300))),
        labels=None,
        referee=twin,
        chance=0.05,
    )
    assert said.endswith("were left out, judged by demo-twin.")
    labels = [*NAMES, *BACKGROUNDS]
    texts = torch.cat([object_names().embed(twin), backgrounds().embed(twin)])
    with torch.no_grad():
        pixels = [few.load(i) for i in range(300)]
        seen = F.normalize(twin.encode_image(pixels), dim=1) @ normalise(texts, "centred").T
    standard = ((seen - seen.mean(0)) / seen.std(0))[:, : len(NAMES)]
    number = dict.fromkeys(labels, 0)
    for row in standard:
        number[labels[int(row.argmax())]] += float(row.max()) > BAR
    assert set(found) == {name for name in NAMES if number[name] < LEAST}
    assert set(NAMES) > set(found) >= {NAMES[1], NAMES[3]}
