"""Readers of labelled pictures, on small folders laid out like the real ones."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

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


def cifar(root, labels, monkeypatch):
    """The files of CIFAR-10, with the checksums that torchvision would find in them."""
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    names = ["airplane", "automobile", "bird"]

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    data = np.zeros((len(labels), 3072), np.uint8)
    test = write("test_batch", {"data": data, "labels": labels})
    train = write("data_batch_1", {"data": data[:2], "labels": labels[:2]})
    key, checksum = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "train_list", [train])
    meta = {"filename": key, "key": "label_names", "md5": checksum}
    monkeypatch.setattr(CIFAR10, "meta", meta)
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


def test_cifar(tmp_path, monkeypatch):
    root = cifar(tmp_path, [2, 0, 1, 1], monkeypatch)
    found = labelled(root)
    assert found.labels == (2, 0, 1, 1) and found.classes.labels[1] == "automobile"
    assert found.source.load(0).size == (32, 32)
    assert len(training_pictures(root).ids) == 2
    (root / CIFAR10.base_folder / "test_batch").write_bytes(b"other")
    with pytest.raises(SecondLensError, match="not the CIFAR-10 that torchvision knows"):
        labelled(root)


def test_cifar_without_pictures_of_a_class(tmp_path, monkeypatch):
    root = cifar(tmp_path, [0, 1, 1], monkeypatch)
    with pytest.raises(SecondLensError, match="no pictures of bird"):
        labelled(root)


def test_what_is_missing(tmp_path, imagenet):
    structure = "val/n01440764/ILSVRC2012_val_00000293.JPEG"
    with pytest.raises(SecondLensError, match=structure):
        labelled(tmp_path / "nowhere")
    picture(tmp_path / "half" / "val" / "n01440764" / "a.png")
    with pytest.raises(
        SecondLensError, match=r"no pictures of n01443537 \(goldfish\), nor of 998 other classes"
    ):
        labelled(tmp_path / "half")
    with pytest.raises(SecondLensError, match="to fit a lens on"):
        training_pictures(tmp_path / "half")
    picture(tmp_path / "only" / "train" / "n01440764" / "a.png")
    with pytest.raises(SecondLensError, match=f"no folder val: .*{structure}"):
        labelled(tmp_path / "only")
    picture(tmp_path / "odd" / "n01440764" / "a.png")
    picture(tmp_path / "odd" / "n99999999" / "a.png")
    with pytest.raises(SecondLensError, match=r"n99999999 .* is no wordnet id"):
        labelled(tmp_path / "odd")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SecondLensError, match="no pictures in"):
        labelled(tmp_path / "empty")


def test_one_class_that_is_missing_is_named_alone(tmp_path, imagenet):
    for folder in sorted((imagenet / "val").iterdir())[1:]:
        picture(tmp_path / "val" / folder.name / "1.png")
    with pytest.raises(SecondLensError, match=r"no pictures of n01440764 \(tench\): it needs"):
        labelled(tmp_path)


def test_lists_are_for_class_folders(tmp_path, imagenet, monkeypatch):
    own = tmp_path / "classes.txt"
    own.write_text("n01440764\n")
    for root in (imagenet, cifar(tmp_path, [0, 1, 2], monkeypatch)):
        with pytest.raises(SecondLensError, match="whose classes are known: drop the list"):
            labelled(root, own)


def test_labels():
    check_labels([0, 1], 2, 2)
    with pytest.raises(SecondLensError, match="3 images and 2 labels"):
        check_labels([0, 1], 3, 2)
    with pytest.raises(SecondLensError, match=r"between 0 and 1, .* one is 7"):
        check_labels([0, 7], 2, 2)
