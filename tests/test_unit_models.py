"""A model with units goes through the whole library, and from a folder, as any other model."""

import json

import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer

import secondlens as sl
from secondlens.commands.list import registry
from secondlens.effects.value_paths import second_order

TEXTS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
WIDTH = 24


def tiny(name="tiny", dtype=torch.float32, **_):
    model = tiny_model(dtype=dtype, layers=4)
    return sl.from_open_clip(model, tokenizer=tiny_tokenizer, name=name)


def some_latents():
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(WIDTH, 16, generator=generator)
    return sl.Latents(encoder=encoder, decoder=encoder.T / WIDTH, kind="topk", k=4, name="latents")


@pytest.fixture
def tiny_is_known(monkeypatch):
    members = registry("models")
    monkeypatch.setattr(members, "_members", dict(members._members))
    members.register("tiny", tiny, help="random weights")


@pytest.fixture
def folder(tmp_path, tiny_is_known):
    """The name of a model whose units are in a folder."""
    return sl.save_units(tmp_path / "units", {1: some_latents()}, "tiny")


def test_lenses_and_applications_take_units(folder, tmp_path):
    clip, images = sl.load(folder), tiny_images(tiny(), 40)
    unseen = tiny_images(clip, 40, seed=7)
    lens = sl.fit(clip, images, top=6)
    assert lens.layers == [1]
    assert lens.model["neurons"] == 16 + WIDTH
    effects = second_order(clip, images, 1)
    assert torch.allclose(lens[1].mean, effects.mean(0), atol=1e-5)
    lens.save(tmp_path / "lens")
    lens = sl.Lens.load(tmp_path / "lens")
    lens.check_model(sl.load(folder))
    with pytest.raises(sl.SecondLensError, match="load that model, or fit again"):
        lens.check_model(tiny())
    codes = sl.describe(clip, lens, TEXTS, 3)
    assert codes.indices[1].shape[0] == 16 + WIDTH
    assert len(sl.search(clip, lens, "ant", 5)) == 5
    other = sl.from_open_clip(tiny_model(seed=3, layers=4), tokenizer=tiny_tokenizer, name="other")
    scores = sl.score(clip, lens, next(iter(lens.codes)), unseen, other)
    assert scores.auc[1].shape[0] == 16 + WIDTH
    assert len(sl.discover(clip, lens, unseen[:1], 3)) > 0
    assert sl.segment(clip, lens, unseen[:1], "ant", against=TEXTS[1:]).isfinite().all()
    classifier = clip.encode_text(TEXTS[:3]).T
    labels = [n % 3 for n in range(40)]
    assert sl.ablate(clip, lens, unseen, labels, classifier.T) is not None
    table = sl.audit(clip, lens, TEXTS[:3], unseen, TEXTS[3:], referee=other, chance=1.0)
    assert table is not None


def test_a_folder_gives_the_model_that_was_saved(folder):
    again, made = sl.load(folder), sl.units(tiny(), {1: some_latents()})
    assert again.weights_hash == made.weights_hash
    assert again.name == made.name
    assert registry("models")["units"].help.startswith("units:FOLDER")


def test_what_fails_leaves_no_folder(tmp_path, tiny_is_known, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secondlens.models.units.folders.save_json", full)
    with pytest.raises(sl.SecondLensError, match="No space left"):
        sl.save_units(tmp_path / "units", {1: some_latents()}, "tiny")
    assert not list(tmp_path.iterdir())


def test_damaged_folders_are_refused_in_a_sentence(folder, tmp_path):
    place = tmp_path / "units" / "units.json"
    with pytest.raises(sl.SecondLensError, match="holds units already"):
        sl.save_units(tmp_path / "units", {1: some_latents()}, "tiny")
    with pytest.raises(sl.SecondLensError, match="drop pretrained"):
        sl.load(folder, "openai")
    manifest = json.loads(place.read_text())
    for change, said in (
        ({"weights": "0"}, "are of other weights than tiny has now"),
        ({"format": 9}, "have format 9"),
        ({"model": folder}, "name units as their model"),
        ({"layers": {"1": {}}}, "are damaged"),
        ({"layers": {"../1": {}}}, "are damaged"),
    ):
        place.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(sl.SecondLensError, match=said):
            sl.load(folder)
    place.unlink()
    with pytest.raises(sl.SecondLensError, match="holds no units"):
        sl.load(folder)
