"""Labelled sets as people have them, in miniature: every layout, from every folder of it."""

import csv
import io
import json
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image

from secondlens.data.labelled import imagenet_names, labelled, training_pictures
from secondlens.data.sources import as_source
from secondlens.errors import SecondLensError


def encoded(number):
    """A picture whose colour is its number."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def number_of(source, index):
    red, green, _ = source.load(index).getpixel((0, 0))
    return red + 256 * green


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


WNIDS = tuple(imagenet_names())
COUNT = len(WNIDS) + 3
TRUE = np.random.default_rng(0).permutation([*range(len(WNIDS)), 5, 5, 900]).tolist()
"""The class of each picture."""
TRAIN = 4


def class_folders(root):
    for number, label in enumerate(TRUE):
        write(root / "val" / WNIDS[label] / f"ILSVRC2012_val_{number + 1:08}.png", encoded(number))
    train(root / "train")


def train(root):
    for number in range(TRAIN):
        write(root / WNIDS[number] / f"{number}.png", encoded(number))


def flat(root):
    for number in range(COUNT):
        write(root / "val" / f"ILSVRC2012_val_{number + 1:08}.png", encoded(number))
    train(root / "train")


def devkit(root):
    flat(root)
    # the devkit counts classes in an order of its own, and knows more than the 1,000
    order = np.random.default_rng(1).permutation(len(WNIDS))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.zeros(len(WNIDS) + 1, dtype=fields)
    for label, wnid in enumerate(WNIDS):
        synsets[order[label]] = (order[label] + 1, wnid, "x")
    synsets[-1] = (len(WNIDS) + 1, "n00001740", "entity")
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets})
    numbers = "".join(f"{order[label] + 1}\n" for label in TRUE)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)


def kaggle(root):
    flat(root / "ILSVRC" / "Data" / "CLS-LOC")
    (root / "ILSVRC" / "Annotations" / "CLS-LOC").mkdir(parents=True)
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "test").mkdir()
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for number, label in reversed([*enumerate(TRUE)]):
            boxes = f"{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8 "
            table.writerow([f"ILSVRC2012_val_{number + 1:08}", boxes])


def hub_table(path, numbers, labels, names):
    cells = [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]
    table = pa.table({"image": cells, "label": pa.array(labels, pa.int64())})
    if names is not None:
        label = {"names": names, "_type": "ClassLabel"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def parquet(root):
    names = ["tench, Tinca tinca", *imagenet_names().values()][: len(WNIDS)]
    write(root / "README.md", b"# a data set")
    write(root / "preview.png", encoded(0))
    half = COUNT // 2
    data = root / "data"
    first, second = (data / f"validation-0000{n}-of-00002.parquet" for n in (0, 1))
    hub_table(first, range(half), TRUE[:half], names)
    hub_table(second, range(half, COUNT), TRUE[half:], names)
    hub_table(data / "test-00000-of-00001.parquet", range(2), [-1, -1], names)
    hub_table(data / "train-00000-of-00001.parquet", range(TRAIN), range(TRAIN), names)


def shard(path, samples):
    """An archive of (key, number, label or None, label in .json or None)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, number, label, in_json in samples:
            parts = {"png": encoded(number)}
            if label is not None:
                parts["cls"] = str(label).encode()
            if in_json is not None:
                parts["json"] = json.dumps({"label": in_json}).encode()
            for kind, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def webdataset(root):
    half = COUNT // 2
    # the second shard counts from 0 again, and keeps its labels in another way
    shard(root / "imagenet1k-validation-00.tar", [(n, n, TRUE[n], 0) for n in range(half)])
    rest = range(half, COUNT)
    shard(root / "imagenet1k-validation-01.tar", [(n - half, n, None, TRUE[n]) for n in rest])
    shard(root / "imagenet1k-train-0000.tar", [(n, n, n, None) for n in range(TRAIN)])


def tar_of(path, files):
    """An archive of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def archives(root):
    """As they are downloaded: the training part is an archive of archives."""
    classes = []
    for number in range(TRAIN):
        inner = [(f"{WNIDS[number]}_{number}.png", encoded(number))]
        classes.append((f"{WNIDS[number]}.tar", tar_of(root / "inner.tar", inner).read_bytes()))
    (root / "inner.tar").unlink()
    tar_of(root / "ILSVRC2012_img_train.tar", classes)
    pictures = [(f"ILSVRC2012_val_{n + 1:08}.png", encoded(n)) for n in range(COUNT)]
    tar_of(root / "ILSVRC2012_img_val.tar", pictures)
    devkit(root / "unpacked")
    data = root / "unpacked" / "ILSVRC2012_devkit_t12" / "data"
    files = [
        (f"ILSVRC2012_devkit_t12/data/{each.name}", each.read_bytes()) for each in data.iterdir()
    ]
    tar_of(root / "ILSVRC2012_devkit_t12.tar.gz", files)
    shutil.rmtree(root / "unpacked")


IMAGENETS = {
    archives: ("", "ILSVRC2012_img_val.tar"),
    class_folders: ("", "val"),
    devkit: ("", "val"),
    kaggle: ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"),
    parquet: ("", "data", "data/validation-*.parquet"),
    webdataset: ("", "imagenet1k-validation-*.tar"),
}
"""Layout -> places in it that a user may point to."""


@pytest.fixture(scope="module", params=IMAGENETS, ids=lambda layout: layout.__name__)
def layout(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("sets") / "in"
    request.param(root)
    return root, IMAGENETS[request.param]


def test_every_place_in_every_layout_of_imagenet_gives_its_classes(layout):
    root, places = layout
    for place in places:
        found = labelled(root / place)
        assert found.name == "ImageNet validation", place
        assert len(found) == COUNT and found.classes.labels == tuple(imagenet_names().values())
        for index in (0, 1, COUNT // 2, COUNT - 1):
            assert found.labels[index] == TRUE[number_of(found.source, index)], (place, index)
        by_number = sorted((number_of(found.source, i), found.labels[i]) for i in range(COUNT))
        assert by_number == [*enumerate(TRUE)], place


def test_imagenets_archives_are_read_as_they_come(tmp_path):
    archives(tmp_path)
    train_tar, val = (tmp_path / f"ILSVRC2012_img_{part}.tar" for part in ("train", "val"))
    ids = [f"{WNIDS[number]}/{WNIDS[number]}_{number}" for number in range(TRAIN)]
    assert training_pictures(tmp_path).ids == as_source(train_tar).ids == ids
    found = labelled(train_tar)
    assert found.classes.labels == tuple(imagenet_names()[WNIDS[n]] for n in range(TRAIN))
    assert [number_of(found.source, i) for i in range(TRAIN)] == list(found.labels) == [*range(4)]
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kept.gz")
    with pytest.raises(SecondLensError, match="holds pictures and no class folders, and there are"):
        labelled(val)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(SecondLensError, match="are not those of ILSVRC2012_devkit_t12"):
        labelled(val)
    val.unlink()
    with pytest.raises(SecondLensError, match=r"has no ILSVRC2012_img_val\.tar to measure on"):
        labelled(tmp_path)


@pytest.mark.parametrize("cut", [520, 1024, 1600])
def test_a_damaged_archive_in_an_archive_is_left_out_alone(tmp_path, cut):
    one = tar_of(tmp_path / "one.tar", [(f"{n}.png", encoded(n)) for n in range(2)]).read_bytes()
    two = tar_of(tmp_path / "two.tar", [("9.png", encoded(9))]).read_bytes()
    source = as_source(tar_of(tmp_path / "all.tar", [("a.tar", one[:cut]), ("b.tar", two)]))
    assert source.ids == (["b/9"] if cut == 520 else ["a/0", "b/9"])
    assert number_of(source, len(source.ids) - 1) == 9
    assert (
        "a.tar: only the pictures before the damage are used" in source.damaged["damaged archives"]
    )


def test_a_lens_is_fitted_on_the_training_part_and_the_others_are_named(layout):
    root, places = layout
    for place in places:
        if "*" in place:
            with pytest.raises(SecondLensError, match="has no training pictures"):
                training_pictures(root / place)
            continue
        assert len(training_pictures(root / place).ids) == TRAIN
        source = as_source(root / place)
        if place.endswith(("val", "val.tar")):
            assert len(source.ids) == COUNT and not source.damaged
        else:
            assert len(source.ids) == TRAIN
            assert any("val" in name for name in source.damaged)
            assert all("not for training" in reason for reason in source.damaged.values())


def test_labels_that_are_missing_or_damaged(tmp_path):
    flat(tmp_path / "bare")
    for place in ("bare", "bare/val"):
        with pytest.raises(SecondLensError, match=r"put Kaggle's LOC_val_solution\.csv, or"):
            labelled(tmp_path / place)
    assert len(as_source(tmp_path / "bare").ids) == TRAIN
    (tmp_path / "bare" / "LOC_val_solution.csv").write_text("ImageId\nx_1\n")
    with pytest.raises(SecondLensError, match="is not Kaggle's table of labels"):
        labelled(tmp_path / "bare")
    text = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n"
    (tmp_path / "bare" / "LOC_val_solution.csv").write_text(text)
    with pytest.raises(SecondLensError, match="have none for picture"):
        labelled(tmp_path / "bare")


def folders(root, *names, pictures=1):
    for name in names:
        for number in range(pictures):
            write(root / name / f"{number}.png", encoded(number))
    return root


def test_a_subset_of_wordnet_ids_chooses_among_its_own_classes_and_says_so(tmp_path):
    root = folders(tmp_path / "imagenette2", "train/n01440764", "val/n01440764", "val/n02102040")
    found = labelled(root)
    assert found.name == "imagenette2 validation (2 of ImageNet's 1,000 classes)"
    assert found.classes.labels == ("tench", "English Springer Spaniel") and found.labels == (0, 1)
    assert len(labelled(root, all_classes=True).classes) == 1000
    assert len(training_pictures(root).ids) == 1


def test_imagenet_r_with_its_readme(tmp_path):
    folders(tmp_path, "n01443537", "n01484850")
    (tmp_path / "README.txt").write_text("renditions")
    found = labelled(tmp_path)
    assert found.labels == (0, 1) and found.classes.labels == ("goldfish", "great white shark")
    assert found.source.damaged == {"*.txt": "left out: README.txt: not a picture by its name"}


def test_what_systems_and_editors_leave_behind_is_no_class_and_no_picture(tmp_path):
    folders(tmp_path, "cat", "dog", "cat/.ipynb_checkpoints", "__MACOSX/cat", ".ipynb_checkpoints")
    for name in (".DS_Store", "cat/._0.png", "dog/Thumbs.db", "montage.png"):
        write(tmp_path / name, encoded(1))
    found = labelled(tmp_path)
    assert found.classes.labels == ("cat", "dog") and list(found.source.ids) == [
        "cat/0.png",
        "dog/0.png",
    ]
    assert found.source.damaged == {
        "*.db": "left out: dog/Thumbs.db: not a picture by its name",
        "._*": "left out: cat/._0.png: not part of the set",
        "hidden folders": "left out: 3, such as .ipynb_checkpoints: not part of the set",
        "montage.png": "left out: it lies in no class folder",
        "no suffix": "left out: .DS_Store: not a picture by its name",
    }


def test_png_trees_of_cifar_by_split(tmp_path):
    root = folders(tmp_path / "c", "train/cat", "train/dog", "test/cat", "test/dog", pictures=2)
    for place, name in (("", "c test"), ("test", "c test"), ("train", "c train")):
        found = labelled(root / place)
        assert (found.name, len(found), found.classes.labels) == (name, 4, ("cat", "dog"))
    assert as_source(root).ids == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert as_source(root).damaged.keys() == {"test"}


def test_a_class_may_be_called_train(tmp_path):
    folders(tmp_path, "bird", "train", "boat")
    assert labelled(tmp_path).classes.labels == ("bird", "boat", "train")
    assert len(as_source(tmp_path).ids) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog"], "one class only, dog"),
        (["sets/cat", "sets/dog"], "has one folder only, which holds others: name .*sets"),
        (["train", "val", "test"], "in test and train and val, which are not classes"),
        (["train/a", "train/b", "val/a", "val/b", "more/a"], "name the folder that has one folder"),
        (["train/a", "train/b"], "has no folder val: .*; or name .*train"),
        ([""], "has no folders for classes"),
    ],
)
def test_what_would_be_a_silent_hundred_percent_is_asked_back(tmp_path, names, message):
    folders(tmp_path, *names)
    with pytest.raises(SecondLensError, match=message):
        labelled(tmp_path)


def test_an_empty_class_or_no_layout_at_all(tmp_path):
    folders(tmp_path / "a", "cat", "dog")
    (tmp_path / "a" / "owl").mkdir()
    with pytest.raises(SecondLensError, match=r"no pictures in .*owl"):
        labelled(tmp_path / "a")
    with pytest.raises(
        SecondLensError, match=r"no folder .*nowhere with labelled pictures: name a"
    ):
        labelled(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(SecondLensError, match="is not a set with labels"):
        labelled(tmp_path / "x.txt")
    folders(tmp_path / "voc", "JPEGImages", "SegmentationClass")
    with pytest.raises(SecondLensError, match=r"is a set with masks.*table4"):
        labelled(tmp_path / "voc")
    folders(tmp_path / "odd", "n01440764", "n99999999")
    with pytest.raises(SecondLensError, match="n99999999 of odd is not a wordnet id"):
        labelled(tmp_path / "odd")


# CIFAR's pickles


def batches(folder, keys=str, extra=()):
    folder.mkdir(parents=True, exist_ok=True)

    def rows(numbers):
        data = np.zeros((len(numbers), 3, 32, 32), np.uint8)
        data[:, 0] = np.array(numbers)[:, None, None]
        return data.reshape(len(numbers), -1)

    def save(name, **content):
        raw = pickle.dumps({keys(key): value for key, value in content.items()})
        (folder / name).write_bytes(raw)

    names = ["airplane", "automobile", "bird"]
    save("batches.meta", label_names=[each if keys is str else each.encode() for each in names])
    save("test_batch", data=rows([9, 8, 7, 6]), labels=[2, 0, 1, 1])
    for batch in range(1, 6):
        save(f"data_batch_{batch}", data=rows([batch, 10 * batch]), labels=[0, 1])
    for name, content in extra:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("keys", [str, str.encode])
def test_pickles_of_cifar(tmp_path, keys):
    batches(tmp_path / "cifar-10-batches-py", keys)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        found = labelled(root)
        assert (found.name, found.labels) == ("CIFAR-10 test", (2, 0, 1, 1))
        assert found.classes.labels == ("airplane", "automobile", "bird")
        assert [found.source.load(i).getpixel((3, 3)) for i in (0, 3)] == [(9, 0, 0), (6, 0, 0)]
        training = as_source(root)
        assert [training.load(i).getpixel((0, 0))[0] for i in (0, 1, 9)] == [1, 10, 50]
        assert training.damaged.keys() == {"test_batch"}


class Harm:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_asks_for_more_than_pixels_is_refused(tmp_path, capsys):
    batches(tmp_path, extra=[("test_batch", pickle.dumps({"data": Harm(), "labels": []}))])
    with pytest.raises(SecondLensError, match=r"is not CIFAR-10 .*asks for builtins\.print"):
        labelled(tmp_path)
    assert "run" not in capsys.readouterr().out
    batches(tmp_path, extra=[("test_batch", b"other")])
    with pytest.raises(SecondLensError, match="is not CIFAR-10 as its authors give it"):
        labelled(tmp_path)


def test_cifar_without_pictures_of_a_class(tmp_path):
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    batches(tmp_path, extra=[("test_batch", pickle.dumps(content))])
    with pytest.raises(SecondLensError, match="no pictures of bird"):
        labelled(tmp_path)


# Labels in archives


def test_names_of_numbers(tmp_path):
    hub_table(tmp_path / "a" / "data" / "test-0.parquet", range(3), [1, 0, -1], ["cat", "dog"])
    found = labelled(tmp_path / "a")
    assert (found.name, found.labels, found.classes.labels) == ("a test", (1, 0), ("cat", "dog"))
    assert found.source.damaged == {"without a label": "left out: 1 pictures"}
    # the class without pictures is one to choose from
    hub_table(tmp_path / "b" / "test.parquet", range(2), [1, 0], ["cat", "dog", "owl"])
    assert len(labelled(tmp_path / "b").classes) == 3
    hub_table(tmp_path / "c" / "test.parquet", range(2), [-1, -1], ["cat", "dog"])
    with pytest.raises(SecondLensError, match="has no labels: name another split"):
        labelled(tmp_path / "c")
    hub_table(tmp_path / "d" / "test.parquet", range(2), [0, 5], ["cat", "dog"])
    with pytest.raises(SecondLensError, match="has the label 5 and 2 classes"):
        labelled(tmp_path / "d")


def test_numbers_without_names_need_a_list(tmp_path):
    shard(
        tmp_path / "w" / "test" / "0.tar", [(n, n, label, None) for n, label in enumerate([1, 0])]
    )
    with pytest.raises(SecondLensError, match="numbers without names: name them with --classes"):
        labelled(tmp_path / "w")
    listing = tmp_path / "classes.json"
    listing.write_text('["cat", "dog", "owl"]')
    found = labelled(tmp_path / "w", listing)
    assert found.labels == (1, 0) and found.classes.labels == ("cat", "dog", "owl")
    listing.write_text('["cat"]')
    with pytest.raises(
        SecondLensError, match="names 1 classes, and there are pictures of number 1"
    ):
        labelled(tmp_path / "w", listing)
    (tmp_path / "w" / "classnames.txt").write_text("cat\ndog\n")
    assert labelled(tmp_path / "w").classes.labels == ("cat", "dog")


def test_wordnet_ids_as_names_or_labels(tmp_path):
    hub_table(tmp_path / "a" / "val.parquet", range(2), [1, 0], ["n01440764", "n02102040"])
    shard(tmp_path / "b" / "val.tar", [(0, 0, "n02102040", None), (1, 1, "n01440764", None)])
    for name in "ab":
        found = labelled(tmp_path / name)
        assert found.labels == (1, 0) and found.classes.labels == (
            "tench",
            "English Springer Spaniel",
        )
        assert found.name == f"{name} validation (2 of ImageNet's 1,000 classes)"


def test_a_list_of_classes_names_any_layout(tmp_path):
    folders(tmp_path / "set", "train/x", "val/n01440764", "val/n02102040")
    listing = tmp_path / "classes.txt"
    listing.write_text("n02102040\ta dog\nn01440764\ta fish\n")
    found = labelled(tmp_path / "set", listing)
    assert found.labels == (1, 0) and found.classes.labels == ("a dog", "a fish")
