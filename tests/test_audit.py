import csv
import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import Unreadable, tiny_images, tiny_model, tiny_tokenizer

import secondlens as sl
from secondlens.applications.auditing.ablated_clip import AblatedClip, GroupEffects
from secondlens.applications.auditing.audits import (
    ALIKE,
    SHARE_OF_NEURONS,
    Audit,
    audit,
    cue_neurons,
)
from secondlens.applications.auditing.counterfactuals import drawn
from secondlens.commands.group import main
from secondlens.data.labelled import labelled
from secondlens.data.sources import as_source
from secondlens.data.vocabularies import Vocabulary, object_names, prompts, vocabulary
from secondlens.demo.scenes import Scenes, World, object_on, truth
from secondlens.demo.world import BACKGROUNDS, NAMES, PLACES, PREFERENCE
from secondlens.effects.capture import Capture
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.scoring import area_under_roc

CLASSES = ["ant", "bee", "cat", "dog", "eel"]
CUES = ["sea", "sky", "ant", "ice"]


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    return fit(clip, tiny_images(clip, 60, seed=9), top=6)


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 50, seed=5)


def centred_effects(clip, lens, images):
    """(layer, neuron) -> [images, dim], materialised."""
    return {
        (layer, n): away[:, n]
        for layer in lens.layers
        for away in [second_order(clip, images, layer) - lens[layer].mean]
        for n in range(clip.neurons)
    }


def test_groups_and_cuts_are_sums_of_materialised_effects(clip, lens, images):
    effects = centred_effects(clip, lens, images[:5])
    groups = [[(0, 3), (2, 1), (2, 40)], [(2, 1)], [], [(layer, n) for layer, n in effects]]
    with Capture(clip, lens.layers) as capture:
        representation = clip.encode_image(images[:5])
        pooled = capture.pool(representation)
    found = GroupEffects(clip, lens, groups)(pooled)
    for i, group in enumerate(groups):
        expected = sum((effects[each] for each in group), torch.zeros(5, 12, dtype=torch.float64))
        assert torch.allclose(found[:, i], expected, atol=1e-12)
        by_layer = {layer: [n for own, n in group if own == layer] for layer, _ in group}
        for strength in (0.0, 1.0, 1.5):
            cut = AblatedClip(clip, lens, by_layer, strength).encode_image(images[:5])
            whole = F.normalize(representation, dim=1)
            assert torch.allclose(cut, whole - strength * expected, atol=1e-12)


def test_a_cut_leaves_the_model_alone(clip, lens, images):
    before = clip.encode_image(images[:2])
    AblatedClip(clip, lens, {1: [0, 5, 5]}).encode_image(images[:2])
    assert torch.equal(clip.encode_image(images[:2]), before)
    with pytest.raises(SecondLensError, match="layer 1 has no neuron 48"):
        AblatedClip(clip, lens, {1: [48]})
    with pytest.raises(SecondLensError, match="tiny has no layer 9"):
        AblatedClip(clip, lens, {9: [1]})


def literally(clip, lens, images, shown):
    """The audit by its definition, one cue, class and image at a time."""
    classifier, cues = clip.encode_text(CLASSES), clip.encode_text(CUES)
    mean = torch.cat([classifier, cues]).mean(0)
    effects = centred_effects(clip, lens, images)
    embedding = F.normalize(clip.encode_image(images), dim=1)
    count = round(SHARE_OF_NEURONS * len(effects))
    found = {}
    for w, cue in enumerate(F.normalize(cues - mean, dim=1)):

        def writes(each, cue=cue):
            layer, n = each
            return float((lens[layer].directions[n] @ cue).abs() * lens[layer].energy[n].sqrt())

        chosen = sorted(effects, key=writes, reverse=True)[:count]
        removed = sum(effects[each] for each in chosen)
        top = (embedding @ cues[w]).argsort(descending=True)[:2]
        for c, name in enumerate(CLASSES):
            others = [i for i in range(len(CLASSES)) if i != c]
            against = classifier[c] - classifier[others].mean(0)
            falls = [float(removed[i] @ against) for i in top if name not in shown[i]]
            found[name, CUES[w]] = np.mean(falls) if falls else math.nan
    return found


@pytest.mark.parametrize("labelled", [True, False])
def test_audit_is_its_definition(clip, lens, images, labelled):
    classifier = clip.encode_text(CLASSES)
    best = (clip.encode_image(images) @ classifier.T).argmax(1).tolist()
    shown = [{CLASSES[i]} for i in best]
    if labelled:
        shown = [{CLASSES[i % 5]} for i in range(50)]
    found = audit(
        clip,
        lens,
        CLASSES,
        images,
        CUES,
        shown=shown if labelled else None,
        batch_size=7,
        chance=1.0,
    )
    expected = literally(clip, lens, images, shown)
    rows = torch.cat([classifier, clip.encode_text(CUES)])
    centred = F.normalize(rows - rows.mean(0), dim=1)
    same = centred[:5] @ centred[5:].T > ALIKE
    assert same[0, 2]
    for c, name in enumerate(CLASSES):
        for w, cue in enumerate(CUES):
            value = float(found.effect[c, w])
            if same[c, w] or math.isnan(expected[name, cue]):
                assert math.isnan(value)
            else:
                assert value == pytest.approx(expected[name, cue], abs=1e-9)


def test_batches_do_not_matter_and_seeds_do(clip, lens, images):
    one, other = (
        audit(clip, lens, CLASSES, images, CUES, batch_size=b, chance=1.0) for b in (3, 50)
    )
    assert torch.allclose(one.effect, other.effect, equal_nan=True)
    assert one.images == other.images
    seeds = [audit(clip, lens, CLASSES, images, CUES, random=s, chance=1.0) for s in (0, 0, 1)]
    assert seeds[0].neurons == seeds[1].neurons != seeds[2].neurons
    assert len(seeds[0].neurons[0]) == len(one.neurons[0])


def test_cue_neurons_are_the_largest(lens):
    cue = F.normalize(torch.ones(1, 12, dtype=torch.float64), dim=1)
    (chosen,) = cue_neurons(lens, cue)
    sizes = {
        (layer, n): float((lens[layer].directions[n] @ cue[0]).abs() * lens[layer].energy[n] ** 0.5)
        for layer in lens.layers
        for n in range(48)
    }
    assert list(chosen) == sorted(sizes, key=lambda each: -sizes[each])[: len(chosen)]


def test_save_and_load(clip, lens, images, tmp_path):
    found = audit(clip, lens, CLASSES, images, CUES, chance=1.0)
    found.save(tmp_path)
    assert Audit.load(tmp_path).drawn is None
    found = replace(found, drawn=torch.rand(found.effect.shape))
    found.save(tmp_path)
    loaded = Audit.load(tmp_path)
    assert torch.equal(loaded.drawn, found.drawn)
    assert torch.allclose(loaded.effect.double(), found.effect, equal_nan=True)
    assert (loaded.neurons, loaded.images, loaded.cues) == (found.neurons, found.images, found.cues)
    assert loaded.ties(3)[0][:2] == found.ties(3)[0][:2]
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == int(found.effect.isfinite().sum())
    assert [row["class"] for row in rows] == [tie[0] for tie in found.ties()]
    best = found.classes.index(rows[0]["class"]), found.cues.index(rows[0]["cue"])
    assert float(rows[0]["drawn"]) == pytest.approx(float(found.drawn[best]))
    assert float(rows[0]["low"]) <= float(rows[0]["effect"]) <= float(rows[0]["high"])
    name = found.ties(1)[0][0]
    assert found.first_cue(name) == found.ties(1)[0][1]
    with pytest.raises(SecondLensError, match="holds no audit"):
        Audit.load(tmp_path / "none")
    (tmp_path / "audit.json").write_text(json.dumps({"classes": []}))
    with pytest.raises(SecondLensError, match="is damaged"):
        Audit.load(tmp_path)


def an_audit(effect, spread, **others):
    """Of two classes and two cues."""
    return Audit(
        model={},
        classes=("ant", "bee"),
        cues=("sea", "sky"),
        prompts=(("sea",), ("sky",)),
        effect=torch.tensor(effect),
        spread=torch.tensor(spread),
        neurons=((), ()),
        images=((), ()),
        **others,
    )


def test_ties_that_are_not_chance_come_first():
    nan = math.nan
    found = an_audit([[0.9, 0.2], [0.1, nan]], [[1.0, 0.1], [0.05, nan]])
    assert [tie[:2] for tie in found.ties()] == [("ant", "sky"), ("bee", "sea"), ("ant", "sea")]
    assert found.first_cue("ant") == "sky"
    assert [tie[:2] for tie in found.ties(1)] == [("ant", "sky")]
    alone = an_audit([[0.9, 0.2], [0.1, nan]], [[nan, 0.1], [0.05, nan]])
    assert [tie[:2] for tie in alone.ties()] == [("ant", "sky"), ("bee", "sea"), ("ant", "sea")]
    with pytest.raises(SecondLensError, match="knows of no cue of bee"):
        an_audit([[0.9, 0.2], [nan, nan]], [[1.0, 0.1], [nan, nan]]).first_cue("bee")


def test_a_single_picture_has_no_interval(clip, lens, images, tmp_path):
    """Of the two pictures of each cue, one shows the class."""
    two = images[:2]
    shown = [{"ant"}, {"bee"}]
    found = audit(clip, lens, ["ant", "bee", "cat"], two, ["sea"], shown=shown, chance=1.0)
    assert found.effect.isfinite().all()
    assert found.spread.isnan().tolist() == [[True], [True], [False]]
    assert "2 of 2 pictures" in found.chosen
    assert "by their labels" in found.chosen
    found.save(tmp_path)
    assert "nan" not in (tmp_path / "audit.csv").read_text()
    unlabelled = audit(clip, lens, ["ant", "bee"], two, ["sea"], chance=1.0)
    assert "by the model's own prediction" in unlabelled.chosen


def test_cues_that_no_picture_shows_are_left_out(clip, lens, images, monkeypatch, tmp_path):
    module = importlib.import_module("secondlens.applications.auditing.presence")
    shares = torch.tensor([0.5, 0.001, 0.06, 0.0])
    monkeypatch.setattr(module, "shares_of_null", lambda *_: shares)
    with pytest.warns(SecondLensWarning, match="no picture shows them beyond chance: sea, ant"):
        found = audit(clip, lens, CLASSES, images, CUES)
    assert found.unshown == ("sea", "ant")
    assert found.chosen.endswith(
        "Of 4 cues, 2 were left out, judged by tiny itself against texts between two words."
    )
    assert found.effect[:, [0, 2]].isnan().all()
    assert not found.effect[:, [1, 3]].isnan().all()
    found.save(tmp_path)
    loaded = Audit.load(tmp_path)
    assert (loaded.unshown, loaded.chosen) == (found.unshown, found.chosen)
    shares += 0.5
    with pytest.raises(SecondLensError, match="no picture shows any of the cues beyond chance"):
        audit(clip, lens, CLASSES, images, CUES)
    with pytest.raises(SecondLensError, match="chance must lie above 0"):
        audit(clip, lens, CLASSES, images, CUES, chance=0.0)


def test_mistakes(clip, lens, images):
    with pytest.raises(SecondLensError, match="at least two classes"):
        audit(clip, lens, ["ant"], images, CUES)
    with pytest.raises(SecondLensError, match="50 images and labels of 2"):
        audit(clip, lens, CLASSES, images, CUES, shown=[{"ant"}, set()])
    with pytest.raises(SecondLensError, match="shown of audit must be a list"):
        audit(clip, lens, CLASSES, images, CUES, shown=["ant"] * 50)
    with pytest.raises(SecondLensError, match="none of the pictures could be read"):
        audit(clip, lens, CLASSES, Unreadable(), CUES)
    official = fit(clip, images, top=3, convention="official")
    with pytest.raises(SecondLensError, match="convention exact"):
        audit(clip, official, CLASSES, images, CUES)


def test_only_the_background_differs():
    world = World()
    mask = world.scene(5, objects=["ship"], background="gray").masks[0]
    pictures = [np.asarray(object_on(world, "ship", b, 5)) for b in (None, "sea", "forest")]
    for one in pictures[1:]:
        assert np.array_equal(one[mask], pictures[0][mask])
        assert not np.array_equal(one[~mask], pictures[0][~mask])


def test_drawn_effects_are_differences_of_margins():
    clip, world = sl.load("demo"), World()
    classes = Vocabulary(name="two", labels=("ship", "cow"), prompts=(("a ship",), ("a cow",)))
    cues = Vocabulary(name="cue", labels=("sea",), prompts=(("in the sea",),))
    gained = drawn(clip, classes, cues, lambda *a: object_on(world, *a), seeds=[3, 4])
    rows = clip.encode_text(["a ship", "a cow"])
    pair = [object_on(world, "cow", cue, 4) for cue in (None, "sea")]
    margin = F.normalize(clip.encode_image(pair), dim=1) @ (rows[1] - rows[0])
    assert float(gained[1, 0, 1]) == pytest.approx(float(margin[1] - margin[0]), abs=1e-5)


@pytest.mark.long
def test_the_audit_finds_planted_places():
    clip = sl.load("demo")
    lens = sl.fit(clip, Scenes(World(), 84, 80), layers=[4, 5, 6])
    scenes = Scenes(World(planted=False), 85, 200)
    places = Vocabulary(name="p", labels=tuple(PLACES), prompts=tuple(map(prompts, PLACES)))
    found = audit(clip, lens, object_names(), scenes, places, shown=truth(scenes)).effect
    planted = torch.tensor([[PREFERENCE.get(n, ("",))[0] == p for p in PLACES] for n in NAMES])
    area = area_under_roc(found[planted][None].double(), found[~planted][None].double())
    assert float(area.low) > 0.6


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    clip = sl.load("demo")
    sl.fit(clip, Scenes(World(), 86, 60), layers=[5]).save(folder / "lens")
    (folder / "pictures").mkdir()
    for i in range(40):
        World(planted=False).scene(87, i).image.save(folder / "pictures" / f"{i:02}.png")
    (folder / "classes.txt").write_text("ship\ncow\n<b>bus\nowl\n")
    (folder / "one.txt").write_text("ship\n")
    (folder / "cues.txt").write_text("sea\nroad\nowl\n")
    (folder / "many.txt").write_text("\n".join([*NAMES, *BACKGROUNDS]))
    return folder


def arguments_of(folder, **changes):
    given = {
        "--classes": folder / "classes.txt",
        "--cues": folder / "cues.txt",
        "--images": folder / "pictures",
        **changes,
    }
    return [str(x) for pair in given.items() for x in pair]


def test_command(on_disk, tmp_path):
    out = tmp_path / "out"
    more = ("--out", out, "--top", 3, "--chance", 1)
    result = run("audit", on_disk / "lens", *arguments_of(on_disk), *more)
    assert result.exit_code == 0
    assert sorted(each.name for each in out.iterdir()) == ["audit.csv", "audit.html", "audit.json"]
    page = (out / "audit.html").read_text()
    assert "&lt;b&gt;bus" in page
    assert "<b>bus" not in page
    kept = Audit.load(out)
    assert kept.cues == ("sea", "road", "owl")
    assert math.isnan(float(kept.effect[3, 2]))
    assert kept.ties(1)[0][1] in result.output
    again = run("audit", on_disk / "lens", *arguments_of(on_disk), "--out", out)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_a_referee_on_the_command_line(on_disk, tmp_path):
    given = arguments_of(on_disk, **{"--cues": on_disk / "classes.txt"})
    for more, message in (
        (["--referee", "demo"], "demo cannot judge itself"),
        (["--referee-pretrained", "openai"], "--referee-pretrained is of a referee"),
    ):
        refused = run("audit", on_disk / "lens", *given, *more, "--out", tmp_path / "out")
        assert refused.exit_code == 2
        assert message in refused.stderr
    given = arguments_of(on_disk, **{"--cues": on_disk / "many.txt"})
    result = run(
        *("audit", on_disk / "lens", *given, "--referee", "demo-twin", "--out", tmp_path / "out")
    )
    assert result.exit_code == 0, result.output
    assert "judged by demo-twin." in Audit.load(tmp_path / "out").chosen


def test_the_embedded_world_is_drawn(on_disk, tmp_path, monkeypatch):
    module = importlib.import_module("secondlens.commands.audit")
    monkeypatch.setattr(module, "UNSEEN_SCENES", 60)
    monkeypatch.setattr(
        "secondlens.data.vocabularies.object_names", lambda: vocabulary(["bus", "owl"])
    )
    monkeypatch.setattr(
        "secondlens.data.vocabularies.backgrounds", lambda: vocabulary(["sea", "road"])
    )
    result = run("audit", on_disk / "lens", "--out", tmp_path / "out", "--drawings", 2)
    assert result.exit_code == 0
    kept, clip = Audit.load(tmp_path / "out"), sl.load("demo")
    rows = F.normalize(clip.encode_text(["bus", "owl"]), dim=-1)
    seen = {
        (cue, seed): F.normalize(
            clip.encode_image([object_on(World(planted=False), "bus", cue, seed)]), dim=-1
        )
        for cue in (None, "road")
        for seed in (0, 1)
    }
    gains = [(seen["road", s] - seen[None, s]) @ (rows[0] - rows[1]) for s in (0, 1)]
    assert float(kept.drawn[0, 1]) == pytest.approx(float(sum(gains)) / 2, abs=1e-5)
    assert "when drawn" in (tmp_path / "out" / "audit.html").read_text()


def test_labels_of_class_folders_count(on_disk, tmp_path):
    """With them, an image of a class counts for no cue of that class, whatever is predicted."""
    for i, picture in enumerate(sorted((on_disk / "pictures").iterdir())):
        place = tmp_path / "set" / ("ship", "cow")[i % 2] / picture.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture.read_bytes())
    out = tmp_path / "out"
    arguments = [*("--cues", on_disk / "cues.txt"), *("--images", tmp_path / "set"), "--labelled"]
    result = run("audit", on_disk / "lens", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert "nan" not in result.output
    assert "that do not show it by their labels" in " ".join(result.output.split())
    assert "by their labels" in (out / "audit.html").read_text()
    clip, lens = sl.load("demo"), sl.Lens.load(on_disk / "lens")
    source = as_source(tmp_path / "set")
    shown = [{each.partition("/")[0]} for each in source.ids]
    names = labelled(tmp_path / "set").classes
    with pytest.warns(SecondLensWarning, match="no picture shows them beyond chance: road, owl"):
        expected = audit(clip, lens, names, source, on_disk / "cues.txt", shown=shown)
    assert "left out, since no picture shows them beyond chance: road, owl" in result.stderr
    kept = Audit.load(out)
    assert kept.classes == ("cow", "ship")
    assert torch.allclose(kept.effect, expected.effect.float(), equal_nan=True)
    alone = run("audit", on_disk / "lens", "--labelled", "--out", tmp_path / "other")
    assert alone.exit_code == 2
    assert "--labelled says what --images are" in alone.stderr


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"--classes": "one.txt"}, [], "at least two classes"),
        ({"--classes": "none.txt"}, [], "there is no file"),
        ({"--images": "none"}, [], "no folder"),
        ({}, ["--template", "no braces"], "has no {}"),
        ({}, ["--model", "demo-twin"], "other weights"),
    ],
)
def test_mistakes_are_one_sentence(on_disk, tmp_path, changes, extra, message):
    changes = {key: on_disk / value for key, value in changes.items()}
    arguments = arguments_of(on_disk, **changes)
    result = run("audit", on_disk / "lens", *arguments, *extra, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_other_models_need_everything(on_disk, tmp_path):
    result = run("audit", on_disk / "lens", "--model", "ViT-B-32", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "needs --classes, --cues, --images" in result.stderr
    assert vocabulary(str(on_disk / "cues.txt")).labels == ("sea", "road", "owl")
