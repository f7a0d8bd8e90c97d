"""Metrics, data sets and the protocol that compares methods."""

import csv
import json
import sys
from dataclasses import replace
from itertools import product

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from rich.console import Console
from scale import TIMES
from sklearn.metrics import average_precision_score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAveragePrecision,
    MulticlassJaccardIndex,
)
from torchvision.transforms.functional import to_tensor

from secondlens.applications.segmentation.baselines.first_order import textspan
from secondlens.applications.segmentation.metrics import (
    average_precision,
    paired_differences,
    score,
    scores,
    statistics,
)
from secondlens.applications.segmentation.protocol import (
    BINS,
    CEILING,
    OURS,
    BaselineMaps,
    CeilingMaps,
    Classes,
    Own,
    batches,
    counts_by_threshold,
    measure,
    measure_batch,
    own_mask,
    table4_methods,
    tune,
)
from secondlens.data.masked import (
    VOC,
    Example,
    ImageNetS,
    ImageNetSegmentation,
    MaskFolder,
    Part,
    WorldMasks,
    iterate,
    split,
)
from secondlens.data.vocabularies import vocabulary
from secondlens.demo.scenes import World
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip
from secondlens.paper import table4 as reproduction
from secondlens.paper.results import publish
from secondlens.paper.table4 import METRICS, Task, check_sources, compare, data_work, rows


def maps_and_masks(seed, maps=4, side=6, ignored=True):
    """Heat in coarse steps, so that scores tie, and masks with all three values."""
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randint(0, 11, (maps, side, side), generator=generator) / 10
    low = -1 if ignored else 0
    masks = torch.randint(low, 2, (maps, side, side), generator=generator).to(torch.int8)
    return heat, masks


def by_torchmetrics(heat, predicted, masks):
    known = masks != -1
    truth, said = masks[known].long(), predicted[known].long()
    precisions = []
    for each, mask in zip(heat, masks, strict=True):
        if (mask == -1).all():
            continue
        kept, true = each[mask != -1], mask[mask != -1].long()
        precisions.append(
            BinaryAveragePrecision()(torch.cat([kept, 1 - kept]), torch.cat([true, 1 - true]))
        )
    return (
        float(BinaryAccuracy()(said, truth)),
        float(MulticlassJaccardIndex(num_classes=2, average="macro")(said, truth)),
        float(torch.stack(precisions).mean()),
    )


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=15 * TIMES, deadline=None)
def test_metrics_equal_torchmetrics(seed, ignored):
    heat, masks = maps_and_masks(seed, ignored=ignored)
    predicted = heat >= 0.6
    found = score(statistics(heat, predicted, masks))
    expected = by_torchmetrics(heat, predicted, masks)
    assert (found.pixel_accuracy, found.miou, found.map) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0, 1])
def test_all_background_and_all_foreground(value):
    heat, masks = maps_and_masks(1, ignored=False)
    masks[:] = value
    for predicted in (heat >= 0.5, torch.zeros_like(heat, dtype=torch.bool)):
        found = score(statistics(heat, predicted, masks))
        expected = by_torchmetrics(heat, predicted, masks)
        assert (found.pixel_accuracy, found.miou, found.map) == pytest.approx(expected, abs=1e-6)
    nothing = score(statistics(heat, torch.zeros_like(heat, dtype=torch.bool), 0 * masks))
    assert (nothing.pixel_accuracy, nothing.miou) == (1, 1)


def test_average_precision_equals_scikit_learn_with_ties_and_ignored_pixels():
    heat, masks = maps_and_masks(3, maps=6)
    masks[5] = 1
    for each, mask, found in zip(heat, masks, average_precision(heat, masks), strict=True):
        kept, true = each[mask != -1], mask[mask != -1]
        expected = average_precision_score(
            torch.cat([true, 1 - true]), torch.cat([kept, 1 - kept]).double()
        )
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_a_map_without_labels_counts_in_nothing():
    heat, masks = maps_and_masks(4)
    masks[2] = -1
    found = statistics(heat, heat >= 0.5, masks)
    assert found[2].tolist() == [0] * 6
    assert score(found) == score(found[[0, 1, 3]])
    assert torch.isnan(scores(found[2:3].sum(0))[[0, 1, 2]]).all()


def test_masks_are_checked():
    heat, masks = maps_and_masks(5)
    with pytest.raises(SecondLensError, match="resize one of them"):
        statistics(heat, heat > 0.5, masks[:, :3])
    with pytest.raises(SecondLensError, match="masks hold 1"):
        statistics(heat, heat > 0.5, masks + 1)


def test_counts_by_threshold_equal_a_loop():
    heat, masks = maps_and_masks(6)
    heat = (heat + 0.013).clamp(max=1)
    heat[0, 0, 0], heat[1, 1, 1] = 0, 1
    found = counts_by_threshold(heat, masks)
    for level in range(BINS):
        expected = statistics(heat, heat >= level / BINS, masks).sum(0)[:4]
        assert torch.equal(found[level], expected)


def test_paired_differences_equal_a_loop_over_draws():
    images = ["a", "b", "b", "c", "d", "d"]
    ours = statistics(*with_prediction(7, 0.4))
    theirs = statistics(*with_prediction(7, 0.7))
    found = paired_differences(ours, theirs, images, samples=50, seed=3)
    drawn = torch.randint(4, (50, 4), generator=torch.Generator().manual_seed(3))
    differences = []
    for draw in drawn.tolist():
        kept = [m for i in draw for m, name in enumerate(images) if name == "abcd"[i]]
        differences.append(scores(ours[kept].sum(0)) - scores(theirs[kept].sum(0)))
    expected = torch.stack(differences).quantile(torch.tensor([0.025, 0.975]).double(), dim=0).T
    torch.testing.assert_close(found, expected)
    same = paired_differences(ours, ours, images)
    assert same.abs().max() == 0


def with_prediction(seed, threshold):
    heat, masks = maps_and_masks(seed, maps=6)
    return heat, heat >= threshold, masks


def test_own_masks_are_those_of_the_papers():
    grid = torch.tensor([[[-4.0, 0.0], [1.0, 2.0]]])
    heat, mask = own_mask(grid, (2, 2), Own())
    assert mask.tolist() == [[[False, True], [True, True]]]
    assert heat.flatten().tolist() == pytest.approx([0, 4 / 6, 5 / 6, 1])
    clipped, mask = own_mask(grid, (2, 2), Own(positive=True))
    assert clipped.flatten().tolist() == pytest.approx([0, 0, 0.5, 1])
    assert mask.tolist() == [[[False, False], [True, True]]]
    assert own_mask(grid, (2, 2), Own(threshold="half"))[1].tolist() == mask_at_half(grid)
    assert not own_mask(torch.zeros(1, 2, 2), (4, 4), Own())[1].any()


def mask_at_half(grid):
    return ((grid + 4) / 6 >= 0.5).tolist()


# Data sets


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def picture(path, size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def test_world_masks_label_what_is_visible():
    world, source = World(), WorldMasks(World(), 9, 30)
    for index in range(len(source)):
        scene, example = world.scene(9, index), source[index]
        assert set(example.labels) <= set(scene.objects)
        for label, mask in zip(example.labels, example.masks, strict=True):
            assert np.array_equal(mask == 1, scene.masks[scene.objects.index(label)])
            assert mask.any()
    assert {len(example.labels) for example in iterate(source)} >= {1, 2}


def test_imagenet_segmentation_reads_matlab_cells(tmp_path, monkeypatch):
    path = tmp_path / "gtsegs_ijcv.mat"
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mask = np.array([[0, 1, 1, 0], [0, 0, 2, 1]], dtype=np.uint8)
    cell = h5py.ref_dtype
    with h5py.File(path, "w") as file:
        file["pixels"] = pixels.transpose(2, 1, 0)
        file["mask"] = mask.T
        file.create_dataset("cell", (1, 1), dtype=cell)[0, 0] = file["mask"].ref
        for name, target in (("img", "pixels"), ("gt", "cell")):
            file.create_dataset(f"value/{name}", (1, 1), dtype=cell)[0, 0] = file[target].ref
    source = ImageNetSegmentation(path)
    assert len(source) == 1
    assert source[0].labels == (None,)
    assert np.array_equal(np.asarray(source[0].image), pixels)
    assert source[0].masks.tolist() == [[[0, 1, 1, 0], [0, 0, -1, 1]]]
    for wrong in (tmp_path / "none.mat", __file__):
        with pytest.raises(SecondLensError, match="name that file"):
            ImageNetSegmentation(wrong)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SecondLensError, match="needs h5py: pip install"):
        ImageNetSegmentation(path)


def test_voc_has_a_mask_for_each_class(tmp_path):
    listing = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("first\nempty\n")
    for name, values in (("first", [[0, 12, 255], [8, 12, 0]]), ("empty", [[0, 255, 0]] * 2)):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        png(tmp_path / "SegmentationClass" / f"{name}.png", values)
    source = VOC(tmp_path)
    assert source[0].labels == ("cat", "dog")
    assert source[0].masks.tolist() == [[[0, 0, -1], [1, 0, 0]], [[0, 1, -1], [0, 1, 0]]]
    assert [example.id for example in iterate(source)] == ["first"]
    with pytest.raises(SecondLensError, match="name a VOC folder"):
        VOC(tmp_path / "JPEGImages")


def test_imagenet_s_reads_classes_from_red_and_green(tmp_path):
    for wnid in ("n01", "n02"):
        picture(tmp_path / "validation" / wnid / "x.JPEG")
        red_green = [[0, 2, 1000], [2, 1, 0]]
        values = [[(v % 256, v // 256, 0) for v in row] for row in red_green]
        png(tmp_path / "validation-segmentation" / wnid / "x.png", values)
    names = tmp_path / "names.txt"
    names.write_text("n01 tench, Tinca tinca\nn02 goldfish\n")
    source = ImageNetS(tmp_path, names)
    assert [example.labels for example in iterate(source)] == [("tench",), ("goldfish",)]
    assert source[0].masks.tolist() == [[[0, 0, -1], [0, 1, 0]]]
    assert source[1].masks.tolist() == [[[0, 1, -1], [1, 0, 0]]]
    assert ImageNetS(tmp_path)[1].labels == (None,)
    names.write_text("n01 tench\n")
    with pytest.raises(SecondLensError, match="no name for n02"):
        ImageNetS(tmp_path, names)
    with pytest.raises(SecondLensError, match=r"nowhere\.txt cannot be read"):
        ImageNetS(tmp_path, tmp_path / "nowhere.txt")
    with pytest.raises(SecondLensError, match="name an ImageNet-S folder"):
        ImageNetS(tmp_path / "validation")
    (tmp_path / "validation" / "n01" / "x.JPEG").unlink()
    with pytest.raises(SecondLensError, match=r"x\.JPEG cannot be read as a picture"):
        source[0]
    (tmp_path / "validation-segmentation" / "n02" / "x.png").write_text("no mask")
    with pytest.raises(SecondLensError, match=r"x\.png cannot be read as a mask"):
        source[1]


def test_mask_folder_takes_classes_from_folders(tmp_path):
    picture(tmp_path / "images" / "dog" / "1.png")
    picture(tmp_path / "images" / "2.jpg")
    png(tmp_path / "masks" / "dog" / "1.png", [[0, 255, 7], [0, 0, 1]])
    png(tmp_path / "masks" / "2.png", [[0, 255, 0], [0, 0, 0]])
    source = MaskFolder(tmp_path)
    assert [example.labels for example in iterate(source)] == [(None,), ("dog",)]
    assert source[1].masks.tolist() == [[[0, 1, 1], [0, 0, 1]]]
    assert source.classes == ["dog"]
    assert MaskFolder(tmp_path, ignore=7)[1].masks.tolist() == [[[0, 1, -1], [0, 0, 1]]]
    picture(tmp_path / "masks" / "2.png")
    assert MaskFolder(tmp_path)[0].masks.all()
    with pytest.raises(SecondLensError, match=r"2\.png is a mask in colours"):
        MaskFolder(tmp_path, ignore=7)[0]
    picture(tmp_path / "images" / "2.png")
    with pytest.raises(SecondLensError, match="has 2 pictures"):
        MaskFolder(tmp_path)
    with pytest.raises(SecondLensError, match="no masks"):
        MaskFolder(tmp_path / "images")


def test_a_mask_of_another_size_is_refused():
    image = Image.new("RGB", (4, 3))
    with pytest.raises(SecondLensError, match=r"x is 4 x 3 pixels and its mask 3 x 4"):
        Example(id="x", image=image, labels=("dog",), masks=np.zeros((1, 4, 3), np.int8))
    with pytest.raises(SecondLensError, match="2 labels and 1 masks"):
        Example(id="x", image=image, labels=("a", "b"), masks=np.zeros((1, 3, 4), np.int8))


def test_masks_are_resized_without_mixing_values():
    masks = np.array([[[1, 1, 0, -1]] * 2], dtype=np.int8)
    example = Example(id="x", image=Image.new("RGB", (4, 2)), labels=(None,), masks=masks)
    assert example.masks_at((1, 8)).tolist() == [[[1, 1, 1, 1, 0, 0, -1, -1]]]
    assert example.masks_at((2, 2)).unique().tolist() in ([-1, 1], [0, 1], [-1, 0, 1])


def test_split_is_disjoint_complete_and_repeatable():
    source = WorldMasks(World(), 1, 20)
    tuning, rest = split(source, 6)
    assert sorted([*tuning.positions, *rest.positions]) == list(range(20))
    assert (len(tuning), len(rest)) == (6, 14)
    assert split(source, 6)[0].positions == tuning.positions
    assert rest[0].id == source[rest.positions[0]].id
    with pytest.raises(SecondLensError, match="leave none"):
        split(source, 20)


# The protocol


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(layers=4)
    return from_open_clip(model, to_tensor, tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    return fit(clip, tiny_images(clip, 30, seed=9), top=4)


class Toys:
    """Noise with one or two rectangles as objects."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        labels = ("dog", "cat")[: 1 + index % 2]
        masks = np.zeros((len(labels), 24, 32), np.int8)
        for mask in masks:
            top, left = rng.integers(0, 12, 2)
            mask[top : top + 12, left : left + 16] = 1
            mask[0, 0] = -1
        pixels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        return Example(id=f"{index}", image=Image.fromarray(pixels), labels=labels, masks=masks)


@pytest.fixture(scope="module")
def classes(clip):
    return Classes(clip, vocabulary(["cat", "dog", "sea"]))


def test_batches_pair_each_object_with_its_text(clip, classes):
    found = list(batches(clip, Toys(5, 0), classes, size=2))
    assert [batch.images for batch in found] == [["0", "1", "1"], ["2", "3", "3"], ["4"]]
    assert found[0].objects == [1, 2, 2]
    cat, dog, _ = clip.encode_text(["cat", "dog", "sea"])
    torch.testing.assert_close(found[0].texts["plain"], torch.stack([dog, dog, cat]))
    mean = clip.encode_text(["cat", "dog", "sea"]).mean(0)
    expected = F.normalize(torch.stack([dog, dog, cat]) - mean, dim=1)
    torch.testing.assert_close(found[0].texts["centred"], expected)
    squeezed = Toys(5, 0)[1].image.resize((16, 16), Image.Resampling.BICUBIC)
    torch.testing.assert_close(found[0].pixels[2], to_tensor(squeezed))
    assert found[0].masks.shape == (3, 16, 16)


def test_unnamed_and_predicted_classes_are_what_clip_says(clip):
    names = vocabulary(["cat", "dog", "sea"])
    pixels = tiny_images(clip, 6)
    best = (F.normalize(clip.encode_image(pixels), dim=1) @ names.embed(clip).T).argmax(1)
    expected = names.embed(clip)[best]
    labels = ["dog", None, "sea", "cat", None, "dog"]
    predicted = Classes(clip, names, predicted=True).of(labels, pixels)
    torch.testing.assert_close(predicted, expected)
    mixed = Classes(clip, names).of(labels, pixels)
    torch.testing.assert_close(mixed[[1, 4]], expected[[1, 4]])
    torch.testing.assert_close(mixed[0], names.embed(clip)[1])
    with pytest.raises(SecondLensError, match="no text for the class 'owl'"):
        Classes(clip, names).of(["owl"], pixels[:1])


def test_tuning_takes_the_best_of_all_variants_forms_and_thresholds(clip, classes):
    method = BaselineMaps(
        name="TextSpan",
        clip=clip,
        heat_maps=textspan,
        options={"as published": {}, "last": {"layers": 1}},
    )
    work = list(batches(clip, Toys(6, 1), classes))
    choice = tune([method], work)["TextSpan"]
    best = 0
    for variant, form, positive, relative, level in product(
        method.variants, ("plain", "centred"), (False, True), (False, True), range(BINS)
    ):
        found = []
        for batch in work:
            grid = method.grids(batch, form, [variant])[variant]
            heat, _ = own_mask(grid, (16, 16), Own(positive=positive))
            cut = 4 * heat.mean((1, 2), keepdim=True).clamp(min=1e-7) if relative else 1
            found.append(statistics(heat, heat >= cut * level / BINS, batch.masks))
        best = max(best, score(torch.cat(found)).miou)
    assert choice.miou == pytest.approx(best, abs=1e-9)
    measured = measure([method], {"TextSpan": choice}, work).methods[0]
    assert score(measured.same).miou == pytest.approx(best, abs=1e-9)


def test_there_must_be_something_to_measure(clip):
    method = BaselineMaps(name="TextSpan", clip=clip, heat_maps=textspan)
    with pytest.raises(SecondLensError, match="no development images with masks"):
        tune([method], [])
    with pytest.raises(SecondLensError, match="no test images with masks"):
        measure([method], {}, [])


def test_the_ceiling_is_perfect_where_objects_fill_patches(clip, classes):
    batch = next(batches(clip, Toys(2, 2), classes))
    masks = torch.zeros(3, 16, 16, dtype=torch.int8)
    masks[:, :8] = 1
    share = CeilingMaps(grid=(2, 2)).grids(replaced(batch, masks), "plain", ["share"])["share"]
    assert share.tolist() == [[[1, 1], [0, 0]]] * 3
    heat, predicted = own_mask(share, (16, 16), Own(threshold="half"))
    assert torch.equal(predicted, masks == 1)
    assert heat.max() == 1


def replaced(batch, masks):
    from dataclasses import replace

    return replace(batch, masks=masks)


def test_the_whole_table(clip, lens, tmp_path):
    work = Task(
        name="toys",
        dev=Toys(4, 1),
        test=Toys(6, 2),
        classes=vocabulary(["cat", "dog", "sea"]),
    )
    out = tmp_path / "table"
    result = compare(clip, lens, work, model="demo", predicted=False)
    with (tmp_path / "said.txt").open("w") as said:
        publish(result, out, Console(file=said, width=80))
    methods = [method.name for method in table4_methods(clip, lens)]
    assert len(methods) == 18 and {OURS, CEILING} <= set(methods)
    found = json.loads((out / "table4.json").read_text())
    for place in (found["facts"], found):  # where they are, and were
        assert (place["test images"], place["maps"]) == (6, 9)
        assert set(place["choices"]) == set(methods)
    with (out / "table4.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert len(flat) == len(found["rows"]) == 3 * 3 * len(methods)
    ours = next(row for row in found["rows"] if row["method"] == OURS)
    assert ours["ahead"] is None and ours["paper"] == [78.1, 59.0, 84.9]
    for row, cells in zip(found["rows"], flat, strict=True):
        assert 0 <= row["miou"] <= 100
        assert float(cells["miou"]) == pytest.approx(row["miou"])
        if row["ahead"]:
            mine = next(
                other
                for other in found["rows"]
                if (other["group"], other["protocol"], other["method"])
                == (row["group"], row["protocol"], OURS)
            )
            low, high = row["ahead"][METRICS.index("mIoU")]
            assert low - 1e-9 <= high
            assert low - 15 <= mine["miou"] - row["miou"] <= high + 15
    with Image.open(out / "table4.png") as grid:
        assert grid.width == (2 + len(methods)) * 116
    text = (tmp_path / "said.txt").read_text()
    assert "several objects" in text and "78.1 59.0" in text and "…" in text
    assert text.count("│ Neurons ") == 3 * 3
    assert not list(out.glob("*.partial"))


def test_groups_add_up(clip, lens, classes):
    methods = [m for m in table4_methods(clip, lens) if m.name in (OURS, CEILING)]
    work = list(batches(clip, Toys(6, 3), classes))
    comparison = measure(methods, tune(methods, work), work)
    ours = comparison.methods[0].same
    single = [i for i, count in enumerate(comparison.objects) if count == 1]
    found = {(r.group, r.protocol, r.method): r for r in rows(comparison)}
    expected = score(ours[single]).miou
    assert found["one object", "same", OURS].miou == pytest.approx(100 * expected)
    assert found["all images", "same", OURS].miou == pytest.approx(100 * score(ours).miou)


def test_a_comparison_that_was_stopped_goes_on(clip, lens, tmp_path, monkeypatch):
    few = [m for m in table4_methods(clip, lens) if m.name in (OURS, "TextSpan", CEILING)]
    monkeypatch.setattr(reproduction, "table4_methods", lambda *_: few)
    monkeypatch.setattr(reproduction, "FEW_IMAGES", 2)
    work = Task(name="toys", dev=Toys(3, 1), test=Toys(5, 2), classes=vocabulary(["dog", "cat"]))
    given, options = (clip, lens, work), {"model": "tiny", "predicted": False}
    whole = compare(*given, **options)
    measured = []

    def stopped(methods, choices, batch):
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(batch.images)
        return measure_batch(methods, choices, batch)

    monkeypatch.setattr(reproduction, "measure_batch", stopped)
    kept = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compare(*given, **options, kept=kept)
    more = replace(work, test=Toys(4, 2))
    with pytest.raises(SecondLensError, match="holds unfinished work with"):
        compare(clip, lens, more, **options, kept=kept)
    monkeypatch.setattr(reproduction, "tune", None)
    monkeypatch.setattr(reproduction, "measure_batch", measure_batch)
    again = compare(*given, **options, kept=kept)
    timed = ("maps_per_second", "maps per second", "maps/s")
    for row, expected in zip(again.rows, whole.rows, strict=True):
        for key, value in expected.items():
            assert key in timed or row[key] == value, key
    assert again.facts == whole.facts
    assert not kept.exists()


def test_work_from_files(tmp_path):
    for name in ("1", "2", "3"):
        picture(tmp_path / "images" / "dog" / f"{name}.png")
        png(tmp_path / "masks" / "dog" / f"{name}.png", [[0, 1, 1], [0, 0, 1]])
    common = {"names": None, "ignore": None, "images": 1, "dev": 1}
    work = data_work(tmp_path, "folder", classes=None, **common)
    assert (len(work.dev), len(work.test)) == (1, 1)
    assert isinstance(work.test, Part)
    assert work.classes.prompts == (("a photo of a dog",),)
    own = tmp_path / "classes.txt"
    own.write_text("dog\nwolf\n")
    work = data_work(tmp_path, "folder", classes=own, **common)
    assert work.classes.labels == ("dog", "wolf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"demo": True, "model": "ViT-B-32", "data": None, "lens": None}, "drop --model"),
        ({"demo": False, "model": "demo", "data": None, "lens": None}, "or take --demo"),
    ],
)
def test_sources_are_checked(given, message):
    with pytest.raises(SecondLensError, match=message):
        check_sources(**given)
