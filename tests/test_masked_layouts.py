"""Sets with masks, recognised from whatever folder of them, and COCO's two kinds of masks."""

import json
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from secondlens.data.coco import CocoInstances, CocoPanoptic
from secondlens.data.masked import iterate, masked
from secondlens.errors import SecondLensError

# of pycocotools, which numpy has outgrown
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def picture(path, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def voc(root):
    year = root / "VOCdevkit" / "VOC2012"
    (year / "ImageSets" / "Segmentation").mkdir(parents=True)
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    picture(year / "JPEGImages" / "a.jpg")
    mask(year / "SegmentationClass" / "a.png", [[0, 12, 255, 0]] * 3)
    return year


def imagenet_s(root):
    for wnid in ("n01440764", "n02102040"):
        picture(root / "ImageNetS50" / "validation" / wnid / "x.JPEG")
        coded = np.zeros((3, 4, 3), np.uint8)
        coded[0, 0, 0] = 1 if wnid == "n01440764" else 2
        mask(root / "ImageNetS50" / "validation-segmentation" / wnid / "x.png", coded)


def mat(root):
    root.mkdir(exist_ok=True)
    with h5py.File(root / "gtsegs_ijcv.mat", "w") as file:
        for name in ("img", "gt"):
            file.create_dataset(f"value/{name}", (1, 1), dtype=h5py.ref_dtype)


def mask_folder(root):
    picture(root / "images" / "dog" / "1.png")
    mask(root / "masks" / "dog" / "1.png", [[0, 1, 1, 0]] * 3)
    mask(root / "masks" / "dog" / "._1.png", [[0]])


SQUARE = [[1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0]]
"""A polygon of two pixels by two."""


def coco(root):
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 18, "iscrowd": 0, "segmentation": SQUARE},
        {
            # runs down the columns: the last pixel
            "id": 2,
            "image_id": 7,
            "category_id": 18,
            "iscrowd": 0,
            "segmentation": {"size": [3, 4], "counts": [11, 1]},
        },
        {
            # compressed runs of the first column
            "id": 3,
            "image_id": 7,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": {"size": [3, 4], "counts": "039"},
        },
        {
            "id": 4,
            "image_id": 7,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [3, 4], "counts": [9, 2, 1]},
        },
    ]
    write_json(root, "instances", annotations)
    picture(root / "val2017" / "000007.jpg")
    picture(root / "val2017" / "000009.jpg")


def write_json(root, kind, annotations):
    images = [
        {"id": number, "file_name": f"{number:06}.jpg", "height": 3, "width": 4}
        for number in (9, 7)
    ]
    categories = [
        {"id": 18, "name": "dog"},
        {"id": 1, "name": "person"},
        {"id": 184, "name": "tree"},
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(content))


def panoptic(root):
    segments = [
        {"id": 70_000, "category_id": 18, "iscrowd": 0},
        {"id": 300, "category_id": 184, "iscrowd": 0},
        {"id": 5, "category_id": 18, "iscrowd": 0},
        {"id": 6, "category_id": 1, "iscrowd": 1},
    ]
    numbers = np.array([[70_000, 300, 0, 6], [70_000, 300, 300, 6], [5, 0, 0, 0]])
    coded = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], axis=-1)
    mask(root / "annotations" / "panoptic_val2017" / "000007.png", coded)
    mask(root / "annotations" / "panoptic_val2017" / "000009.png", np.zeros((3, 4, 3)))
    annotations = [
        {"image_id": 7, "file_name": "000007.png", "segments_info": segments},
        {"image_id": 9, "file_name": "000009.png", "segments_info": []},
    ]
    write_json(root, "panoptic", annotations)
    for number in (7, 9):
        picture(root / "val2017" / f"{number:06}.jpg")


LAYOUTS = {
    "voc": (
        voc,
        *("", "VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/JPEGImages"),
        "VOCdevkit/VOC2012/ImageSets/Segmentation",
    ),
    "imagenet-s": (imagenet_s, "", "ImageNetS50", "ImageNetS50/validation-segmentation"),
    "imagenet-segmentation": (mat, "", "gtsegs_ijcv.mat"),
    "folder": (mask_folder, "", "images", "masks"),
    "coco": (coco, "", "val2017", "annotations", "annotations/instances_val2017.json"),
    "coco-panoptic": (panoptic, "", "annotations", "annotations/panoptic_val2017.json"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_path_is_enough_and_the_layout_may_be_said(layout, tmp_path):
    make, *places = LAYOUTS[layout]
    root = tmp_path / "set"
    make(root)
    for place in places:
        for said in (None, layout):
            name, found = masked(root / place, said)
            assert (name, len(found)) == (layout, len(masked(root)[1])), place


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_option_that_means_nothing_is_refused(layout, tmp_path):
    root = tmp_path / "set"
    LAYOUTS[layout][0](root)
    (tmp_path / "names.txt").write_text("n01440764 tench\nn02102040 springer\n")
    meanings = {"imagenet-s": "names", "folder": "ignore"}
    for option, value in (("names", tmp_path / "names.txt"), ("ignore", 255)):
        if meanings.get(layout) == option:
            assert len(masked(root, **{option: value})[1])
        else:
            with pytest.raises(SecondLensError, match=f"--{option} means nothing for {layout}"):
                masked(root, **{option: value})


def test_what_is_not_there_or_not_clear(tmp_path):
    with pytest.raises(SecondLensError, match=r"there is no file or folder .*nowhere"):
        masked(tmp_path / "nowhere")
    with pytest.raises(SecondLensError, match="is not a set of images with masks: name the folder"):
        masked(tmp_path)
    mask_folder(tmp_path / "set")
    with pytest.raises(SecondLensError, match=r"not laid out as voc \(Pascal VOC: 20 classes"):
        masked(tmp_path / "set", "voc")
    with pytest.raises(SecondLensError, match=r"no masked set 'vox' \(did you mean voc\?\)"):
        masked(tmp_path / "set", "vox")
    year = voc(tmp_path / "two")
    year.rename(year.parent / "VOC2007")
    voc(tmp_path / "two")
    with pytest.raises(SecondLensError, match=r"holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012"):
        masked(tmp_path / "two")


def test_coco_instances(tmp_path):
    coco(tmp_path)
    found = CocoInstances(tmp_path / "annotations" / "instances_val2017.json")
    assert list(found.classes) == ["person", "dog", "tree"] and len(found) == 2
    (example,) = iterate(found)  # the other image has nothing in it
    assert (example.id, example.labels) == ("000007.jpg", ("person", "dog"))
    # the crowd, of two pixels in the last column, counts nowhere but where the dog is
    assert example.masks.tolist() == [
        [[1, 0, 0, -1], [1, 0, 0, -1], [1, 0, 0, 0]],
        [[0, 1, 1, -1], [0, 1, 1, -1], [0, 0, 0, 1]],
    ]


def test_coco_panoptic(tmp_path):
    panoptic(tmp_path)
    found = CocoPanoptic(tmp_path / "annotations" / "panoptic_val2017.json")
    (example,) = iterate(found)
    assert example.labels == ("dog", "tree")
    assert example.masks.tolist() == [
        [[1, 0, -1, -1], [1, 0, 0, -1], [1, -1, -1, -1]],
        [[0, 1, -1, -1], [0, 1, 1, -1], [0, -1, -1, -1]],
    ]


def test_coco_with_parts_missing_or_damaged(tmp_path, monkeypatch):
    coco(tmp_path / "a")
    file = tmp_path / "a" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for wrong in ({"size": [3, 4], "counts": {}}, {"size": [9, 9], "counts": [81]}, None):
        content["annotations"] = [
            {"id": 1, "image_id": 7, "category_id": 18, "segmentation": wrong}
        ]
        file.write_text(json.dumps(content))
        with pytest.raises(SecondLensError, match=r"has a (damaged )?mask, 1"):
            CocoInstances(file)[0]
    (tmp_path / "a" / "val2017" / "000007.jpg").unlink()
    with pytest.raises(SecondLensError, match=r"needs its pictures, such as .*000007\.jpg"):
        CocoInstances(file)
    file.write_text('{"images": []}')
    with pytest.raises(SecondLensError, match="is not a file of COCO's annotations"):
        CocoInstances(file)
    panoptic(tmp_path / "b")
    segments = tmp_path / "b" / "annotations" / "panoptic_val2017"
    segments.rename(tmp_path / "elsewhere")
    with pytest.raises(SecondLensError, match=r"unpack panoptic_val2017\.zip there"):
        masked(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SecondLensError, match=r"need pycocotools: pip install 'secondlens\[segm"):
        CocoInstances(file)
