"""Sets of label maps in the layouts that they are handed out in, in miniature."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from secondlens.commands import main
from secondlens.data import label_sets
from secondlens.data.label_maps import (
    BACKGROUND,
    COCO_CLASSES,
    Labelled,
    WorldLabels,
    label_maps,
    named,
    world_queries,
)
from secondlens.demo.scenes import World
from secondlens.demo.world import BACKGROUNDS, NAMES
from secondlens.errors import SecondLensError


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), "teal").save(path)


def values(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def listed(root, masks, lists):
    year = root / "VOCdevkit" / "VOC2012"
    (year / "ImageSets" / lists).mkdir(parents=True)
    (year / "ImageSets" / lists / "val.txt").write_text("2007_000033\n")
    (year / "ImageSets" / lists / "train.txt").write_text("2007_000032\n")
    picture(year / "JPEGImages" / "2007_000032.jpg")
    picture(year / "JPEGImages" / "2007_000033.jpg")
    values(year / masks / "2007_000033.png", [0, 1, 20, 255], [0, 0, 15, 59])


def voc(root):
    listed(root, "SegmentationClass", "Segmentation")


def context(root):
    listed(root, "SegmentationClassContext", "SegmentationContext")


def ade20k(root):
    top = root / "ADEChallengeData2016"
    picture(top / "images" / "validation" / "ADE_val_00000001.jpg")
    picture(top / "images" / "training" / "ADE_train_00000001.jpg")
    values(
        top / "annotations" / "validation" / "ADE_val_00000001.png", [0, 1, 150, 151], [3, 3, 3, 3]
    )


def cityscapes(root, ending="_gtFine_labelIds.png", rows=((7, 8, 33, 4), (0, 255, 26, 23))):
    place = ("val", "frankfurt")
    stem = "frankfurt_000000_000294"
    picture(root.joinpath("leftImg8bit", *place, f"{stem}_leftImg8bit.png"))
    values(root.joinpath("gtFine", *place, f"{stem}{ending}"), *rows)


def cityscapes_for_training(root):
    cityscapes(root)  # lies beside
    cityscapes(root, "_gtFine_labelTrainIds.png", ((0, 1, 18, 255), (255, 255, 13, 10)))


def coco(root, ending, *rows):
    picture(root / "images" / "val2017" / "000000000139.jpg")
    values(root / "annotations" / "val2017" / f"000000000139{ending}", *rows)


def coco_object(root):
    coco(root, "_instanceTrainIds.png", (0, 1, 80, 255), (81, 0, 2, 3))


def coco_stuff(root):
    coco(root, ".png", (0, 10, 11, 12), (181, 255, 89, 91))


def coco_stuff_for_training(root):
    coco(root, ".png", (5, 5, 5, 5), (5, 5, 5, 5))
    coco(root, "_labelTrainIds.png", (0, 10, 170, 171), (255, 79, 80, 81))


@pytest.mark.parametrize(
    ("name", "write", "classes", "expected"),
    [
        ("voc20", voc, 20, [[-1, 0, 19, -1], [-1, -1, 14, -1]]),
        ("voc21", voc, 21, [[0, 1, 20, -1], [0, 0, 15, -1]]),
        ("context59", context, 59, [[-1, 0, 19, -1], [-1, -1, 14, 58]]),
        ("context60", context, 60, [[0, 1, 20, -1], [0, 0, 15, 59]]),
        ("ade20k", ade20k, 150, [[-1, 0, 149, -1], [2, 2, 2, 2]]),
        ("cityscapes", cityscapes, 19, [[0, 1, 18, -1], [-1, -1, 13, 10]]),
        ("cityscapes", cityscapes_for_training, 19, [[0, 1, 18, -1], [-1, -1, 13, 10]]),
        ("coco-object", coco_object, 81, [[0, 1, 80, -1], [-1, 0, 2, 3]]),
        ("coco-stuff", coco_stuff, 171, [[0, 10, -1, 11], [170, -1, 79, 80]]),
        ("coco-stuff", coco_stuff_for_training, 171, [[0, 10, 170, -1], [-1, 79, 80, 81]]),
    ],
)
def test_layouts(name, write, classes, expected, tmp_path):
    write(tmp_path)
    found = label_maps(tmp_path, name)
    assert (found.name, len(found), len(found.classes)) == (name, 1, classes)
    assert found[0].labels.tolist() == expected
    assert found[0].image.size == (4, 2)
    assert (found.classes[0] == BACKGROUND) == (name in ("voc21", "context60", "coco-object"))
    below = next(each for each in tmp_path.iterdir() if each.is_dir())
    assert len(label_maps(below, name)) == 1


def test_what_classes_are_called():
    assert COCO_CLASSES[0] == "person" and COCO_CLASSES[80] == "banner"
    assert len(COCO_CLASSES) == 171 and COCO_CLASSES[-1] == "wood"


def test_every_set_is_tested():
    tested = {mark.args[1][i][0] for mark in test_layouts.pytestmark for i in range(10)}
    assert tested == set(label_sets.names)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SecondLensError, match=r"there is no folder .*nowhere"):
        label_maps(tmp_path / "nowhere", "voc21")
    with pytest.raises(SecondLensError, match=r"no label set 'voc22'.*did you mean voc2"):
        label_maps(tmp_path, "voc22")
    for name in label_sets.names:
        with pytest.raises(SecondLensError, match=f"is not laid out as {name}"):
            label_maps(tmp_path, name)
    voc(tmp_path)
    (listing,) = tmp_path.glob("*/*/ImageSets/*/val.txt")
    listing.unlink()
    with pytest.raises(SecondLensError, match=r"has no ImageSets.*val.txt: voc21 needs it"):
        label_maps(tmp_path, "voc21")


def test_one_label_map_is_missing(tmp_path):
    coco_object(tmp_path)
    picture(tmp_path / "images" / "val2017" / "000000000285.jpg")
    with pytest.raises(SecondLensError, match=r"no label map .*285_instanceTrainIds.png"):
        label_maps(tmp_path, "coco-object")


def test_label_maps_have_the_picture_s_size():
    with pytest.raises(SecondLensError, match="a is 4 x 2 pixels and its label map 2 x 4"):
        Labelled(id="a", image=Image.new("RGB", (4, 2)), labels=np.zeros((4, 2), np.int16))


def test_the_world_labels_every_pixel():
    world = World()
    whole, alone = (
        WorldLabels(world=world, seed=5, count=20, background=background)
        for background in (True, False)
    )
    for index in range(20):
        scene, labels = world.scene(5, index), whole[index].labels
        for name, mask in zip(scene.objects, scene.masks, strict=True):
            assert (labels[mask] == 1 + NAMES.index(name)).all()
        behind = ~scene.masks.any(0)
        assert (labels[behind] == 0).all()
        assert np.array_equal(alone[index].labels, labels - 1)
    single = WorldLabels(world=world, seed=5, count=20, single=True)
    assert all(len(np.unique(single[i].labels)) <= 2 for i in range(20))
    queries = world_queries(whole.classes)
    assert queries.vocabulary.labels == (*BACKGROUNDS, *NAMES)
    assert queries.classes[: len(BACKGROUNDS) + 2] == (0,) * len(BACKGROUNDS) + (1, 2)


def test_names_of_classes(tmp_path):
    queries = named(("background", "person"))
    assert queries.vocabulary.labels == ("background", "person") and queries.classes == (0, 1)
    assert len(queries.vocabulary.prompts[1]) == 80
    other = tmp_path / "names.txt"
    other.write_text("sky, wall,  tree\nperson,person in shirt\n")
    queries = named(("background", "person"), other)
    assert queries.vocabulary.labels == ("sky", "wall", "tree", "person", "person in shirt")
    assert queries.classes == (0, 0, 0, 1, 1)
    other.write_text("sky\n\n")
    with pytest.raises(SecondLensError, match="has 1 lines and the set 2 classes: give a line"):
        named(("background", "person"), other)


def test_list_names_them():
    said = CliRunner().invoke(main, ["list", "label-sets"])
    assert said.exit_code == 0 and all(name in said.output for name in label_sets.names)
