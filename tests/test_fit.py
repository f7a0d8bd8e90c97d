import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image

from secondlens.data.folder import Folder
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.storage.files import whole, whole_folder


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 23)


def literal(effects, top):
    """Mean, direction, shares and top images of one layer from materialised effects, in numpy."""
    found = []
    mean = effects.mean(0)
    for n in range(effects.shape[1]):
        rows = effects[:, n] - mean[n]
        norms = np.linalg.norm(rows, axis=1)
        strongest = np.argsort(-norms, kind="stable")[:top]
        _, values, vectors = np.linalg.svd(rows[strongest], full_matrices=False)
        direction = vectors[0]
        votes = np.sign(rows[strongest] @ direction).sum() or (rows[strongest] @ direction).sum()
        all_values = np.linalg.svd(rows, compute_uv=False)
        found.append(
            {
                "direction": direction * np.sign(votes),
                "explained": values[0] ** 2 / (values**2).sum(),
                "explained_all": all_values[0] ** 2 / (all_values**2).sum(),
                "top_images": strongest,
                "top_norms": norms[strongest],
                "selectivity": (norms[strongest] ** 2).sum() / (norms**2).sum(),
                "energy": (norms**2).mean(),
            }
        )
    return mean, found


@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("layer", [0, 2])
def test_fit_equals_materialised_effects(clip, images, convention, layer):
    fitted = fit(clip, images, [layer], top=6, convention=convention, batch_size=5)[layer]
    effects = second_order(clip, images, layer, convention).numpy()
    mean, neurons = literal(effects, 6)
    np.testing.assert_allclose(fitted.mean, mean, atol=1e-9)
    for n, neuron in enumerate(neurons):
        np.testing.assert_array_equal(fitted.top_images[n], neuron["top_images"])
        np.testing.assert_allclose(fitted.directions[n], neuron["direction"], atol=1e-6)
        for name in ("explained", "explained_all", "top_norms", "selectivity", "energy"):
            np.testing.assert_allclose(getattr(fitted, name)[n], neuron[name], rtol=1e-7)
        assert fitted.threshold[n] == fitted.top_norms[n].min()
    assert fitted.histogram.sum(1).eq(len(images)).all()


def test_activation_mean(clip, images):
    seen = []
    with torch.no_grad():
        activation = clip.blocks[1].activation
        handle = activation.register_forward_hook(lambda module, inputs, out: seen.append(out))
        clip.encode_image(images)
        handle.remove()
    expected = clip.batch_major(seen[0]).mean(0)
    torch.testing.assert_close(fit(clip, images, [1], top=4)[1].activation_mean, expected)


def same(one, other, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-7, "atol": 1e-9}
    assert one.layers == other.layers
    assert one.image_ids == other.image_ids
    for layer in one.layers:
        for name, value in vars(one[layer]).items():
            torch.testing.assert_close(value, getattr(other[layer], name), **tolerance, msg=name)


def test_kept_coordinates_and_two_passes_agree(clip, images):
    twice = fit(clip, images, top=5, batch_size=7)
    assert twice.layers == [0, 1, 2]
    same(twice, fit(clip, images, top=5, batch_size=7, keep_coordinates=True), exactly=False)


class Named:
    """Rows of a tensor with names: some of a larger set."""

    def __init__(self, images, first, last):
        self.images = images
        self.ids = [f"image-{i}" for i in range(first, last)]

    def load(self, index):
        return self.images[int(self.ids[index].removeprefix("image-"))]


def test_merge_equals_one_fit(clip, images):
    parts = [(0, 9), (9, 17), (17, 23)]
    tops = [3, 2, 2]
    one, two, three = (
        fit(clip, Named(images, *part), [1, 2], top=top, keep_coordinates=True)
        for part, top in zip(parts, tops, strict=True)
    )
    whole = fit(clip, Named(images, 0, 23), [1, 2], top=7)
    same(one.merge(two).merge(three), whole, exactly=False)
    same(one.merge(two.merge(three)), whole, exactly=False)


def test_a_lens_is_a_row_of_layers(clip, images):
    lens = fit(clip, images, [0, 2], top=3)
    assert list(lens) == [0, 2] and len(lens) == 2
    assert 2 in lens and 1 not in lens
    assert [lens[layer].mean.shape[0] for layer in lens] == [clip.neurons] * 2


def test_files_are_as_readable_as_any_new_file(clip, images, tmp_path):
    fit(clip, images, [1], top=3).save(tmp_path / "lens")
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "lens").iterdir()} == {mode}


def test_folders_are_filled_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "new.partial").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), Path("../new"), Path("../made/new")):
        with whole_folder(out) as folder:
            (folder / "some").touch()
        assert [path.name for path in out.iterdir()] == ["some"]
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["here", "made", "new", "new.partial"]


def fill_the_disk(folder):
    (folder / "some").touch()
    raise OSError(28, "No space left on device")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    for writing in (whole(tmp_path / "file" / "a.json"), whole_folder(tmp_path / "file" / "b")):
        with pytest.raises(SecondLensError, match="cannot be written"), writing:
            pass
    with pytest.raises(SecondLensError, match="No space"), whole_folder(tmp_path / "new") as new:
        fill_the_disk(new)
    for make in (whole, whole_folder):
        with pytest.raises(KeyboardInterrupt), make(tmp_path / "new"):
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_merge_refuses(clip, images):
    kept = fit(clip, Named(images, 0, 9), [1], top=3, keep_coordinates=True)
    without = fit(clip, Named(images, 9, 20), [1], top=3)
    other_layer = fit(clip, Named(images, 9, 20), [2], top=3, keep_coordinates=True)
    official = fit(
        clip, Named(images, 9, 20), [1], top=3, keep_coordinates=True, convention="official"
    )
    with pytest.raises(SecondLensError, match="keep_coordinates"):
        kept.merge(without)
    with pytest.raises(SecondLensError, match="differ in their layers cannot be merged"):
        kept.merge(other_layer)
    with pytest.raises(SecondLensError, match="differ in their convention cannot be merged"):
        kept.merge(official)
    with pytest.raises(SecondLensError, match="both lenses have seen image image-0"):
        kept.merge(kept)


def test_official_effects_are_no_parts_of_embeddings(clip, images):
    fit(clip, images, [1], top=3).check_exact()
    with pytest.raises(SecondLensError, match="a part that belongs to no neuron"):
        fit(clip, images, [1], top=3, convention="official").check_exact()


def test_save_and_load(clip, images, tmp_path):
    lens = fit(clip, images, [0, 2], top=4, out=tmp_path / "lens", keep_coordinates=True)
    loaded = Lens.load(tmp_path / "lens")
    same(lens, loaded)
    assert loaded.model == lens.model
    assert loaded.top == 4
    same(lens, Lens.load(tmp_path / "lens"))
    torch.testing.assert_close(loaded.coordinates.z[2], lens.coordinates.z[2])
    loaded.check_model(clip)
    assert not list((tmp_path / "lens").glob("*.partial"))


def test_load_refuses(clip, images, tmp_path):
    with pytest.raises(SecondLensError, match="holds no lens"):
        Lens.load(tmp_path)
    folder = tmp_path / "lens"
    fit(clip, images, [1], top=4, out=folder)
    manifest = json.loads((folder / "lens.json").read_text())
    (folder / "lens.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(SecondLensError, match="format 99"):
        Lens.load(folder)
    (folder / "lens.json").write_text(json.dumps(manifest))
    layer = folder / "layer-01.safetensors"
    layer.write_bytes(layer.read_bytes()[:100])
    with pytest.raises(SecondLensError, match="damaged"):
        Lens.load(folder)


def test_a_lens_of_another_model_is_refused(clip, images):
    lens = fit(clip, images, [1], top=4)
    other = from_open_clip(tiny_model(seed=5, dtype=torch.float64, layers=4), name="other")
    with pytest.raises(SecondLensError, match="fitted on tiny"):
        lens.check_model(other)
    with pytest.raises(SecondLensError, match="layer 2 is not in this lens"):
        lens[2]


@pytest.mark.parametrize(
    ("layers", "message"), [([3], "no later attention"), ([9], "no layer 9"), ([], "no layers")]
)
def test_layers_are_checked_before_work(clip, images, layers, message, tmp_path):
    with pytest.raises(SecondLensError, match=message):
        fit(clip, images, layers, out=tmp_path / "lens")
    assert not (tmp_path / "lens").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "a batch needs at least 1 image, and it has 0"),
        ({"shard_size": 0}, "a shard needs at least 1 image, and it has 0"),
        ({"workers": -1}, "workers must be 0 or more, and they are -1"),
    ],
)
def test_sizes_are_checked_before_work(clip, images, settings, message):
    with pytest.raises(SecondLensError, match=message):
        fit(clip, images, [1], **settings)


def test_one_image_is_too_few(clip, images):
    with pytest.raises(SecondLensError, match="needs at least 2 images, and there is 1"):
        fit(clip, images[:1], [1])


def test_out_must_be_new(clip, images, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SecondLensError, match="exists already"):
        fit(clip, images, [1], out=tmp_path)


def test_out_must_be_a_place_that_can_be_written(clip, images, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SecondLensError, match=r"file cannot be written to: File exists"):
        fit(clip, images, [1], top=2, out=tmp_path / "file" / "lens")
    with pytest.raises(SecondLensError, match=r"file cannot be written to: File exists"):
        fit(clip, images, [1], top=2).save(tmp_path / "file" / "lens")


@pytest.fixture
def folder(tmp_path):
    """Six pictures that can be read, in two folders, and four that cannot."""
    random = np.random.default_rng(0)
    (tmp_path / "deeper").mkdir()
    for i in range(6):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        where = tmp_path / ("deeper" if i % 2 else "") / f"{i}.png"
        Image.fromarray(pixels).save(where)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("ignored")
    return tmp_path


def test_unreadable_pictures_are_skipped_and_listed(folder):
    def preprocess(picture):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels.double() / 255

    clip = from_open_clip(tiny_model(dtype=torch.float64), preprocess=preprocess, name="tiny")
    lens = fit(clip, folder, [1], top=3, batch_size=2)
    read = ["0.png", "2.png", "4.png", "deeper/1.png", "deeper/3.png", "deeper/5.png"]
    assert list(lens.image_ids) == read
    assert set(lens.skipped) == {"empty.png", "cut.png", "text.jpg", "*.txt"}
    assert all(lens.skipped.values())
    only_good = [Folder(folder).load(Folder(folder).ids.index(name)) for name in read]
    torch.testing.assert_close(lens[1].mean, fit(clip, only_good, [1], top=3)[1].mean)


def test_nothing_readable(tmp_path):
    clip = from_open_clip(tiny_model(), preprocess=lambda picture: torch.zeros(3, 16, 16))
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(SecondLensError, match="none of the pictures"):
        fit(clip, tmp_path, [1])


def test_empty_and_missing_folders(clip, tmp_path):
    with pytest.raises(SecondLensError, match="no pictures"):
        fit(clip, tmp_path)
    with pytest.raises(SecondLensError, match="no folder"):
        fit(clip, tmp_path / "nowhere")
    with pytest.raises(SecondLensError, match="there are no images"):
        fit(clip, [])
    with pytest.raises(SecondLensError, match="not int"):
        fit(clip, 3)
