"""What changed between two models, and between two sets of pictures, against literal sums."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from scipy import stats

import secondlens as sl
from secondlens.applications.comparing.checkpoints import TOP_IMAGES
from secondlens.commands.group import main
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.words.naming import FALSE_DISCOVERIES

CLASSES = ["ant", "bee", "cat"]
IDS = [f"picture {i}" for i in range(30)]


@pytest.fixture(scope="module")
def clips():
    wrap = partial(sl.from_open_clip, tokenizer=tiny_tokenizer)
    one, other = (tiny_model(seed=seed, dtype=torch.float64, layers=4) for seed in (0, 1))
    return wrap(one, name="one"), wrap(other, name="other")


@pytest.fixture(scope="module")
def images(clips):
    return tiny_images(clips[0], 30, seed=3)


@pytest.fixture(scope="module")
def found(clips, images):
    source = InMemory(images, ids=IDS)
    return sl.diff(*clips, source, classes=vocabulary(CLASSES), batch_size=7)


def test_changes_are_those_of_materialised_effects(clips, images, found):
    rows = clips[0].encode_text(CLASSES)
    margins = torch.stack([rows[i] - (rows.sum(0) - rows[i]) / 2 for i in range(3)])
    assert list(found.square) == [0, 1, 2]
    for layer in (0, 1, 2):
        old, new = (sl.second_order(clip, images, layer) for clip in clips)
        size = (new - old).square().sum(-1)
        torch.testing.assert_close(found.square[layer], size.mean(0))
        torch.testing.assert_close(
            found.spread[layer], 1.959964 * size.std(0) / 30**0.5, rtol=1e-6, atol=1e-12
        )
        torch.testing.assert_close(found.energy[layer], old.square().sum(-1).mean(0))
        pulls = (new - old) @ margins.T
        torch.testing.assert_close(found.pulls[layer], pulls.mean(0))
        torch.testing.assert_close(
            found.pull_spread[layer], 1.959964 * pulls.std(0) / 30**0.5, rtol=1e-6, atol=1e-12
        )
        order = size.argsort(dim=0, descending=True)[:TOP_IMAGES].T
        assert torch.equal(found.top_images[layer], order)


def test_embeddings_and_predictions(clips, images, found):
    unit = [F.normalize(clip.encode_image(images), dim=-1) for clip in clips]
    assert found.agreement == pytest.approx(float((unit[0] * unit[1]).sum(-1).mean()))
    best = [
        (rows @ clip.encode_text(CLASSES).T).argmax(1)
        for rows, clip in zip(unit, clips, strict=True)
    ]
    assert found.flipped == pytest.approx(float((best[0] != best[1]).double().mean()))


def test_neurons_come_in_the_order_of_their_change(found):
    moved = found.moved()
    assert len(moved) == 3 * 48
    assert [each.change for each in moved] == sorted((e.change for e in moved), reverse=True)
    first = moved[0]
    assert first.low < first.change < first.high
    own = found.pulls[first.layer][first.neuron]
    (gained, most, _), (lost, least, _) = first.pulls
    assert (CLASSES.index(gained), CLASSES.index(lost)) == (int(own.argmax()), int(own.argmin()))
    assert (most, least) == (float(own.max()), float(own.min()))
    assert first.images[0] == IDS[int(found.top_images[first.layer][first.neuron][0])]
    assert found.moved(3) == moved[:3]


def test_an_edit_is_found(clips, images):
    """The neuron that was held is the one that moved, and earlier layers did not."""
    lens = sl.fit(clips[0], images, top=4)
    edited = sl.edit(clips[0], lens, sl.Edit(neurons=((2, 5),))).clip
    found = sl.diff(clips[0], edited, images, [2])
    (first,) = found.moved(1)
    assert (first.layer, first.neuron) == (2, 5)
    assert first.change == pytest.approx(first.before)  # all of its effect is gone
    same = sl.diff(clips[0], clips[0], images)
    assert same.agreement == pytest.approx(1) and all(
        not each.any() for each in same.square.values()
    )
    assert same.flipped != same.flipped and not same.moved(1)[0].pulls


def test_a_single_picture_has_no_interval(clips, images):
    found = sl.diff(*clips, images[:1], [2])
    assert found.spread[2].isnan().all()


def test_models_of_two_shapes(clips, images):
    other = sl.from_open_clip(tiny_model(layers=3, dtype=torch.float64), name="short")
    with pytest.raises(SecondLensError, match="one and short differ in their layers, 4 and 3"):
        sl.diff(clips[0], other, images)
    with pytest.raises(SecondLensError, match="at least two classes"):
        sl.diff(*clips, images, classes=vocabulary(["ant"]))


# -- two sets of pictures ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lens(clips, images):
    return sl.fit(clips[0], images, top=4)


def test_shifts_are_those_of_welch(clips, lens, images):
    other = tiny_images(clips[0], 20, seed=8) + 0.4
    found = sl.shift(clips[0], lens, images, other)
    ps, order = [], []
    for layer in lens.layers:
        along = [
            torch.einsum("bnd,nd->bn", sl.second_order(clips[0], x, layer), lens[layer].directions)
            for x in (images, other)
        ]
        torch.testing.assert_close(found.values[layer], along[1])
        one, two = (each.numpy() for each in along)
        t = stats.ttest_ind(two, one, equal_var=False)
        ps.append(2 * stats.norm.sf(np.abs(t.statistic)))
        within = np.sqrt((one.var(0) * 30 + two.var(0) * 20) / 50)
        wanted = (two.mean(0) - one.mean(0)) / within
        np.testing.assert_allclose(found.shift[layer], wanted)
        low = t.confidence_interval().low / within  # by Student's t, which is a little wider
        assert (low <= (found.shift[layer] - found.spread[layer]).numpy() + 1e-12).all()
        order += [(layer, n) for n in range(48)]
    q = stats.false_discovery_control(np.concatenate(ps))
    np.testing.assert_allclose(torch.cat([*found.q.values()]), q)
    assert 0 < found.certain == (q <= FALSE_DISCOVERIES).sum() < len(q)
    listed = found.shifted()
    assert len(listed) == found.certain
    sizes = [abs(each.shift) for each in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert all(each.low < each.shift < each.high and each.q <= 0.05 for each in listed)
    first = listed[0]
    own = found.values[first.layer][:, first.neuron] * (1 if first.shift > 0 else -1)
    assert first.images[0] == found.image_ids[int(own.argmax())]


def test_halves_of_one_set_do_not_differ(clips, lens):
    """The test holds its level: of equal sets, seldom anything is found."""
    certain = []
    for seed in range(6):
        images = tiny_images(clips[0], 120, seed=30 + seed)
        certain.append(sl.shift(clips[0], lens, images[::2], images[1::2]).certain)
    assert sum(each > 0 for each in certain) <= 1


def test_few_pictures_tell_nothing(clips, lens, images):
    with pytest.raises(SecondLensError, match="a set has 7 pictures that can be read"):
        sl.shift(clips[0], lens, images, images[:7])


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diff")
    rng = np.random.default_rng(0)
    for name, tint in (("usual", 0), ("red", 90)):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 160, (64, 64, 3))
            pixels[..., 0] += tint
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    demo = sl.load("demo")
    sl.fit(demo, folder / "usual", [5], top=3).save(folder / "lens")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def test_two_models_by_the_command(place):
    out = place / "compared"
    given = ("demo", "demo-twin", "--images", place / "usual", "--layers", 5, "--top", 3)
    result = run(*given, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    kept = json.loads((out / "diff.json").read_text())
    assert said == kept | {"report": str(out)}
    assert len(said["neurons"]) == 3 and said["images"] == 12
    page = (out / "diff.html").read_text()
    assert page.count("data:image/webp") == 12
    again = run(*given, "--out", out)
    assert again.exit_code == 2 and "finished comparison" in again.stderr
    table = run(*given, "--lens", place / "lens", "--after-lens", place / "lens")
    assert table.exit_code == 2 and "fitted on demo with other weights" in table.stderr
    table = run(*given)
    assert table.exit_code == 0 and f"L5 #{said['neurons'][0]['neuron']}" in table.stdout


def test_two_sets_by_the_command(place):
    given = (place / "usual", place / "red", "--through", place / "lens", "--top", 2)
    result = run(*given, "--json", "--out", place / "shifted")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["images"] == [12, 12] and 0 < len(said["neurons"]) <= 2 <= said["certain"]
    assert "standard deviations" in run(*given).stdout
    wrong = run(*given, "--layers", "5", "--classes", "world")
    assert wrong.exit_code == 2 and "--classes and --layers are of two models" in wrong.stderr
