"""The multi-class protocol against independent computations of each step."""

import json
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchvision.transforms.functional import to_tensor

import secondlens as sl
from secondlens.applications.segmentation.baselines.similarity import patch_similarity
from secondlens.applications.segmentation.multiclass import (
    PUBLISHED,
    ClassMethod,
    OwnLabels,
    Texts,
    check_scale,
    class_methods,
    counts,
    own_labels,
    paired_difference,
    score,
    scores,
    text_maps,
    tune,
    tuned_labels,
    windows_of,
)
from secondlens.applications.segmentation.presence import PresenceReader
from secondlens.commands import main
from secondlens.data.label_maps import Labelled, Queries, label_maps, named
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip
from secondlens.paper import multiclass as reproduction
from secondlens.paper.multiclass import compare_labels, data_labels


def some_labels(seed, images=4, classes=6, side=7):
    """Predictions and labels, some unknown; the last class is nowhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, side, side)
    predicted = torch.randint(0, classes - 1, shape, generator=generator)
    labels = torch.randint(-1, classes - 1, shape, generator=generator)
    labels = torch.where(torch.rand(shape, generator=generator) < 0.5, predicted, labels)
    return predicted, labels.masked_fill(torch.rand(shape, generator=generator) < 0.1, -1)


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_torchmetrics(seed):
    predicted, labels = some_labels(seed)
    found = torch.stack([counts(p, t, 6) for p, t in zip(predicted, labels, strict=True)])
    there = [k for k in range(6) if (labels == k).any() or (predicted == k)[labels >= 0].any()]
    by_class = multiclass_jaccard_index(predicted, labels, 6, average="none", ignore_index=-1)
    assert score(found).miou == pytest.approx(float(by_class[there].mean()), abs=1e-6)
    options = {"num_classes": 6, "ignore_index": -1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracy = multiclass_accuracy(predicted, labels, average="micro", **options)
        of_classes = multiclass_accuracy(predicted, labels, average="none", **options)
    labelled = [k for k in range(6) if (labels == k).any()]
    assert score(found).accuracy == pytest.approx(float(accuracy), abs=1e-6)
    assert score(found).class_accuracy == pytest.approx(
        float(of_classes[labelled].mean()), abs=1e-6
    )


def test_scores_are_mmsegmentation_s():
    """Its `intersect_and_union`: histograms of what is right, of predictions and of labels."""
    predicted, labels = some_labels(9)
    right, said, true = (torch.zeros(6) for _ in range(3))
    for p, t in zip(predicted, labels, strict=True):
        p, t = p[t != -1], t[t != -1]
        right += torch.histc(p[p == t].float(), bins=6, min=0, max=5)
        said += torch.histc(p.float(), bins=6, min=0, max=5)
        true += torch.histc(t.float(), bins=6, min=0, max=5)
    expected = np.nanmean((right / (said + true - right)).numpy())
    found = torch.stack([counts(p, t, 6) for p, t in zip(predicted, labels, strict=True)])
    assert score(found).miou == pytest.approx(float(expected), abs=1e-6)


def test_paired_difference_equals_a_loop_over_draws():
    pairs = [some_labels(seed, images=5) for seed in (0, 1)]
    ours, theirs = (
        torch.stack([counts(p, t, 6) for p, t in zip(*pair, strict=True)]) for pair in pairs
    )
    drawn = torch.randint(5, (50, 5), generator=torch.Generator().manual_seed(3))
    differences = [
        float(scores(ours[each].sum(0))[0] - scores(theirs[each].sum(0))[0]) for each in drawn
    ]
    expected = np.quantile(differences, [0.025, 0.975])
    found = paired_difference(ours, theirs, samples=50, seed=3)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(24, 24), (24, 36), (36, 24), (25, 61), (16, 16)])
def test_windows_are_those_of_the_published_scripts(size):
    height, width = size
    crop, stride = 16, 8
    expected = []
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            lower, right = min(row * stride + crop, height), min(column * stride + crop, width)
            upper, left = max(lower - crop, 0), max(right - crop, 0)
            expected.append((left, upper, right, lower))
    assert windows_of(height, width, (crop, crop)) == expected


# Maps, classes and labels: the tiny tokenizer cuts the ends of long prompts off
pytestmark = pytest.mark.filterwarnings("ignore:.*longer than the context:UserWarning")


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(layers=4)
    return from_open_clip(model, to_tensor, tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, tiny_images(clip, 30, seed=9), top=4)


def noise_picture(seed, width=40, height=30):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def similarity_of(clip):
    def maps(pixels, texts):
        return patch_similarity(clip, pixels, texts.expand(len(pixels), -1, -1))

    return ClassMethod(name="Patch similarity", variants={PUBLISHED: maps})


def slid(clip, picture, texts, scale=1.5):
    """Logits of a picture by the published scripts' loop over windows."""
    ratio = scale * 16 / min(picture.size)
    width, height = (round(ratio * side) for side in picture.size)
    resized = to_tensor(picture.resize((width, height), Image.Resampling.BICUBIC))
    total, count = torch.zeros(len(texts), height, width), torch.zeros(height, width)
    for left, upper, right, lower in windows_of(height, width, (16, 16)):
        crop = resized[None, :, upper:lower, left:right]
        logits = patch_similarity(clip, crop, texts[None])[0]
        logits = F.interpolate(logits[None], crop.shape[-2:], mode="bilinear")[0]
        total[:, upper:lower, left:right] += logits
        count[upper:lower, left:right] += 1
    size = picture.size[::-1]
    return F.interpolate((total / count)[None], size, mode="bilinear")[0]


def test_maps_equal_the_published_loop(clip):
    texts = clip.encode_text(["a cat", "a dog", "sky"])
    found = text_maps(clip, similarity_of(clip).variants[PUBLISHED], noise_picture(0), texts, 1.5)
    torch.testing.assert_close(found, slid(clip, noise_picture(0), texts), rtol=1e-4, atol=1e-6)
    squeezed = noise_picture(0).resize((16, 16), Image.Resampling.BICUBIC)
    whole = patch_similarity(clip, to_tensor(squeezed)[None], texts[None])
    expected = F.interpolate(whole, (30, 40), mode="bilinear")[0]
    found = text_maps(clip, similarity_of(clip).variants[PUBLISHED], noise_picture(0), texts, None)
    torch.testing.assert_close(found, expected)
    with pytest.raises(SecondLensError, match=r"at a scale of 0.5 .* give 1 or more"):
        check_scale(0.5)


def voc(root, count=20):
    """A miniature of Pascal VOC: random pictures, and label maps with outlines."""
    year = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    names = [f"2007_{number:06}" for number in range(count)]
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names))
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        width, height = (int(side) for side in rng.integers(20, 40, 2))
        noise_picture(number, width, height).save(year / "JPEGImages" / f"{name}.jpg")
        blocks = rng.choice([0, 0, 1, 2, 5, 20], (height // 5 + 1, width // 5 + 1))
        labels = blocks.repeat(5, 0).repeat(5, 1)[:height, :width].astype(np.uint8)
        labels[rng.random(labels.shape) < 0.1] = 255
        Image.fromarray(labels).save(year / "SegmentationClass" / f"{name}.png")
    return root


@pytest.mark.parametrize("name", ["voc20", "voc21"])
def test_twenty_pictures_equal_an_independent_computation(clip, tmp_path, name):
    found = label_maps(voc(tmp_path), name)
    texts = Texts(clip, named(found.classes), found.classes)
    method = similarity_of(clip)
    dev = [found[i] for i in range(6)]
    choice = tune(clip, method, dev, texts, scale=1.5)["all"]
    of = texts.plain if choice.form == "plain" else texts.centred
    total = torch.zeros(len(found.classes), 3, dtype=torch.float64)
    right, said, true = Counter(), Counter(), Counter()
    for index in range(20):
        example = found[index]
        labels = torch.from_numpy(example.labels)
        maps = text_maps(clip, method.variants[choice.variant], example.image, of, 1.5)
        mine = tuned_labels(maps, texts, choice)
        total += counts(mine, labels, len(found.classes))

        rows = named(found.classes).vocabulary.embed(clip)
        if choice.form != "plain":
            rows = F.normalize(rows - rows.mean(0), dim=1)
        logits = slid(clip, example.image, rows)
        if choice.form == "standard":
            logits = (logits - choice.mean[:, None, None]) / choice.deviation[:, None, None]
        for y in range(labels.shape[0]):
            for x in range(labels.shape[1]):
                if labels[y, x] < 0:
                    continue
                top, best = logits[:, y, x].max(0)
                best = 0 if name == "voc21" and top < choice.level else int(best)
                said[best] += 1
                true[int(labels[y, x])] += 1
                right[best] += best == labels[y, x]
    shares = [
        right[k] / (said[k] + true[k] - right[k])
        for k in range(len(found.classes))
        if said[k] + true[k]
    ]
    assert float(scores(total)[0]) == pytest.approx(np.mean(shares), abs=1e-4)
    if name == "voc20":
        assert choice.level == -torch.inf


def test_a_picture_keeps_the_texts_that_it_speaks_for(clip, lens):
    """All others are faint: their maps keep their order among themselves."""
    pixels = clip.prepare([noise_picture(seed, 16, 16) for seed in range(3)])
    texts = clip.encode_text([f"a {word}" for word in ("cat", "dog", "ship", "owl", "tree", "fox")])
    variants = class_methods(clip, lens)[1].variants
    plain, spoken = (variants[name](pixels, texts) for name in variants)
    there = PresenceReader(clip, lens).spoken(pixels, texts)
    assert there.any() and not there.all()
    for image in range(3):
        for text in range(6):
            share = 1 if there[image, text] else 1e-3
            torch.testing.assert_close(spoken[image, text], share * plain[image, text])


def test_tuning_takes_the_best_variant(clip, tmp_path):
    """Maps of noise beside maps that hold the truth."""
    found = label_maps(voc(tmp_path, 4), "voc20")
    texts = Texts(clip, named(found.classes), found.classes)
    dev = [found[i] for i in range(3)]
    left = [torch.from_numpy(each.labels) for each in dev]

    def truth(pixels, rows):
        labels = left.pop(0)
        left.append(labels)
        maps = torch.stack([(labels == k).float() for k in range(len(rows))])[None]
        return F.interpolate(maps, (16, 16), mode="nearest")

    def noise(pixels, rows):
        generator = torch.Generator().manual_seed(3)
        return torch.randn(len(pixels), len(rows), 4, 4, generator=generator)

    method = ClassMethod(name="two", variants={"noise": noise, "truth": truth})
    assert {each.variant for each in tune(clip, method, dev, texts, scale=None).values()} == {
        "truth"
    }


def test_tuning_takes_the_best(clip, tmp_path):
    found = label_maps(voc(tmp_path, 8), "voc21")
    texts = Texts(clip, named(found.classes), found.classes)
    method, dev = similarity_of(clip), [found[i] for i in range(4)]
    for among in ("all", "present"):
        choice = tune(clip, method, dev, texts, scale=None)[among]
        rows = texts.plain if choice.form == "plain" else texts.centred
        maps = [
            text_maps(clip, method.variants[choice.variant], each.image, rows, None) for each in dev
        ]

        def miou(choice, among=among, maps=maps):
            total = 0
            for each, read in zip(dev, maps, strict=True):
                true = torch.from_numpy(each.labels)
                said = tuned_labels(read, texts, choice, true if among == "present" else None)
                total = total + counts(said, true, 21)
            return float(scores(total)[0])

        assert miou(choice) == pytest.approx(choice.miou, abs=1e-9)
        assert choice.miou >= miou(replace(choice, level=-torch.inf))
    with pytest.raises(SecondLensError, match="no development images with label maps"):
        tune(clip, method, [], texts, scale=None)


def test_a_class_is_as_good_as_its_best_text(clip):
    texts = ["sky", "wall", "a cat", "a dog"]
    queries = Queries(vocabulary=vocabulary(texts), classes=(0, 0, 2, 1))
    of = Texts(clip, queries, ("background", "dog", "cat"))
    maps = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.maximum(maps[0], maps[1]), maps[3], maps[2]])
    assert torch.equal(of.by_class(maps), expected)
    assert of.background
    with pytest.raises(SecondLensError, match="every text needs the number of its class"):
        Queries(vocabulary=vocabulary(texts), classes=(0, 1))


@pytest.mark.parametrize("own", [OwnLabels(), OwnLabels(area=0.3, least=0.3), OwnLabels(scale=3.0)])
def test_own_labels_are_those_of_the_published_scripts(clip, own):
    queries = Queries(
        vocabulary=vocabulary(["sky", "wall", "a cat", "a dog", "cow"]), classes=(0, 0, 1, 2, 3)
    )
    texts = Texts(clip, queries, ("background", "cat", "dog", "cow"))
    generator = torch.Generator().manual_seed(1)
    maps = 0.05 * torch.randn(5, 9, 9, generator=generator)
    likely = (maps * own.scale).softmax(0)
    classes = F.one_hot(torch.tensor(queries.classes)).T.view(4, 5, 1, 1)
    values = (likely[None] * classes).max(1)[0]
    if own.area:
        predictions = F.one_hot(values.argmax(0), 4).to(values.dtype)
        sizes = predictions[:, :, 1:].sum((0, 1), keepdim=True)
        sizes = (sizes > own.area * sizes.sum()).to(values.dtype)
        values[1:] *= sizes.transpose(0, -1)
    expected = values.argmax(0, keepdim=True)
    expected[values.max(0, keepdim=True)[0] < own.least] = 0
    found = own_labels(maps, maps[:3], texts, own)
    assert torch.equal(found, expected[0])
    there = torch.full((9, 9), 2)
    there[0] = -1
    among = own_labels(maps, maps[:3], texts, own, there)
    assert set(among.unique().tolist()) <= {0, 2}


# The whole table


@pytest.fixture
def task(tmp_path):
    return data_labels(
        *(voc(tmp_path / "data", 12), "voc21"), images=6, dev=3, expansions=None, scale=1.0
    )


def test_the_whole_table(clip, lens, task):
    found = compare_labels(clip, lens, task, model="tiny")
    methods = [method.name for method in class_methods(clip, lens)]
    own = [method.name for method in class_methods(clip, lens) if method.own]
    assert len(found.rows) == 2 * (len(methods) + len(own)) and len(own) == 6
    for row in found.rows:
        assert 0 <= row["mIoU"] <= 100 and row["accuracy"] <= 100
        published = row["method"] == "NACLIP" and row["labels"] == "the paper's own"
        assert row["published"] == (64.07 if published and row["among"] == "all classes" else None)
        if row["method"] != "Neurons":
            assert row["neurons minus this, low"] <= row["neurons minus this, high"]
        if row["method"] != "Neurons, patches, heads":
            assert row["mixture minus this, low"] <= row["mixture minus this, high"]
    by = {(row["among"], row["labels"], row["method"]): row["mIoU"] for row in found.rows}
    assert by["classes in the picture", "tuned alike", "Neurons"] > 0
    assert found.facts["dev images"] == 3 and found.facts["test images"] == 6


def test_a_run_that_was_stopped_goes_on(clip, lens, task, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "IMAGES_PER_PART", 2)
    few = class_methods(clip, lens)[:3]
    monkeypatch.setattr(reproduction, "class_methods", lambda *_: few)
    whole = compare_labels(clip, lens, task, model="tiny")
    done = []

    def stopped(*given):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(given[2]))
        return counted(*given)

    counted = reproduction._counted
    monkeypatch.setattr(reproduction, "_counted", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_labels(clip, lens, task, model="tiny", work=tmp_path / "work")
    done.clear()
    monkeypatch.setattr(reproduction, "tune", None)
    again = compare_labels(clip, lens, task, model="tiny", work=tmp_path / "work")
    assert done == [2]
    assert again.rows == whole.rows
    assert not (tmp_path / "work").exists()


def test_other_work_is_refused(clip, lens, task, tmp_path, monkeypatch):
    def stopped(*given):
        raise KeyboardInterrupt

    few = class_methods(clip, lens)[:1]
    monkeypatch.setattr(reproduction, "class_methods", lambda *_: few)
    monkeypatch.setattr(reproduction, "_counted", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_labels(clip, lens, task, model="tiny", work=tmp_path / "work")
    other = replace(task, scale=None)
    with pytest.raises(SecondLensError, match="holds unfinished work with"):
        compare_labels(clip, lens, other, model="tiny", work=tmp_path / "work")


def test_too_few_pictures(tmp_path):
    with pytest.raises(SecondLensError, match="12 development images of 12 leave none"):
        data_labels(voc(tmp_path, 12), "voc21", images=6, dev=12, expansions=None, scale=None)


def test_label_maps_go_through_the_command(tmp_path):
    demo = sl.load("demo")
    sl.fit(demo, tiny_images(demo, 12), [6], top=2).save(tmp_path / "lens")
    given = ["reproduce", "multiclass", "--lens", tmp_path / "lens", "--json", "--scale", 1]
    given += ["--images", voc(tmp_path / "data", 6), "--set", "voc20", "--out", tmp_path / "out"]
    given += ["--dev", 2, "--test-images", 2]
    said = CliRunner().invoke(main, [str(each) for each in given])
    assert said.exit_code == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["facts"]["classes"] == 20 and not found["facts"]["background"]
    assert json.loads((tmp_path / "out" / "multiclass.json").read_text()) == found


def test_examples_are_checked():
    with pytest.raises(SecondLensError, match="give a label map of the image's size"):
        Labelled(id="a", image=noise_picture(0), labels=np.zeros((2, 2), np.int16))
