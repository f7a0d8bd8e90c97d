"""Labelled pictures: their classes and positions. Layouts are in `test_layouts`."""

import pytest
import torch
from PIL import Image

from secondlens.data.labelled import (
    TEMPLATE,
    check_labels,
    evenly,
    imagenet_names,
    labelled,
    training_pictures,
)
from secondlens.data.sources import InMemory
from secondlens.errors import SecondLensError


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for wnid in imagenet_names():
        picture(root / "val" / wnid / f"{wnid}_1.png")
    picture(root / "val" / "n01443537" / "another.png")
    for i in range(7):
        picture(root / "train" / "n01440764" / f"{i}.png")
    return root


def test_imagenet(imagenet):
    found = labelled(imagenet)
    assert len(found) == 1001 and len(found.classes) == 1000
    assert found.labels[:4] == (0, 1, 1, 2)
    assert found.classes.labels[:2] == ("tench", "goldfish")
    assert len(found.classes.prompts[0]) == 80
    ids = [found.source.ids[i] for i in range(3)]
    assert ids[0] == "n01440764/n01440764_1.png" and ids[1].startswith("n01443537/")
    assert found.prompted([TEMPLATE]).classes.prompts[1] == ("A photo of a goldfish",)
    assert len(training_pictures(imagenet).ids) == 7


def test_every_and_evenly(imagenet):
    found = labelled(imagenet)
    tenth = found.every(10)
    assert len(tenth) == 101 == len(tenth.source.ids)
    assert tenth.labels == found.labels[::10] and tenth.source.ids[3] == found.source.ids[30]
    assert found.every(1) is found
    assert evenly(InMemory(torch.zeros(10, 3, 2, 2)), 4).positions == [0, 2, 5, 7]
    source = InMemory(torch.zeros(3, 3, 2, 2))
    assert evenly(source, 3) is source


def test_wordnet_folders_choose_among_their_own_classes_or_all(tmp_path):
    wnids = list(imagenet_names())
    for wnid in (wnids[7], wnids[2]):
        picture(tmp_path / wnid / "a.png")
    few, every = labelled(tmp_path), labelled(tmp_path, all_classes=True)
    assert few.labels == (0, 1) and few.classes.labels == ("great white shark", "rooster")
    assert every.labels == (2, 7) and len(every.classes) == 1000


def test_class_folders_and_lists(tmp_path):
    root = tmp_path / "animals"
    for name in ("cat", "big dog"):
        picture(root / name / "1.png")
    found = labelled(root)
    assert found.classes.labels == ("big dog", "cat") and found.labels == (0, 1)
    own = tmp_path / "classes.txt"
    own.write_text("cat\tdomestic cat\nbig dog\n")
    found = labelled(root, own)
    assert found.classes.labels == ("domestic cat", "big dog") and found.labels == (1, 0)
    for text, message in (
        ("cat\n", "does not list big dog"),
        ("cat\nbig dog\nowl\n", "lists owl, and there are no pictures of it"),
        ("cat\ncat\nbig dog\n", "lists a class twice"),
    ):
        own.write_text(text)
        with pytest.raises(SecondLensError, match=message):
            labelled(root, own)
    (root / "owl").mkdir()
    with pytest.raises(SecondLensError, match=r"no pictures in .*owl"):
        labelled(root)


def test_labels():
    check_labels([0, 1], 2, 2)
    with pytest.raises(SecondLensError, match="3 images and 2 labels"):
        check_labels([0, 1], 3, 2)
    with pytest.raises(SecondLensError, match=r"between 0 and 1, .* one is 7"):
        check_labels([0, 7], 2, 2)
