"""Weights in every form that people have: they load as they were, or the first that is wrong is
named."""

import argparse
import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from models import adapter, tiny_images, tiny_model, tiny_transformers_model
from safetensors.torch import save_file
from torch import nn

from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.models.archives import read_tensors
from secondlens.models.loading import load
from secondlens.models.weights import LARGEST_POINTER, read_file

NAME = "ViT-weights-test"
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "head_width": 8,
        "layers": 3,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n"


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIG)


@pytest.fixture
def model():
    return tiny_model()


def loaded(path, **options):
    return load(NAME, str(path), activation="gelu", **options)


class Box(nn.Module):
    """A module of TorchScript with others in it, as those of OpenAI's archives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai_archive(model, path):
    """What OpenAI published: half precision, numbers of the model beside, attributes in a tree."""
    root = Box()
    for key, tensor in model.state_dict().items():
        *parents, leaf = key.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, Box())
            place = getattr(place, parent)
        place.register_parameter(leaf, nn.Parameter(tensor.half(), requires_grad=False))
    for name, number in (("input_resolution", 16), ("context_length", 8), ("vocab_size", 64)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.script(root).save(path)


def trainer(model, **more):
    """A checkpoint of a trainer, with what trainers put beside the weights."""
    optimizer = torch.optim.AdamW(model.parameters())
    model.visual(tiny_images(model)).sum().backward()
    optimizer.step()
    return {
        "epoch": np.int64(3),
        "best": np.float32(0.5),
        "args": argparse.Namespace(lr=1e-3, out=Path("logs")),
        "optimizer": optimizer.state_dict(),
        "rng": np.random.default_rng(0),
        **more,
    }


FORMS = {
    "a state dict": lambda m, p: torch.save(m.state_dict(), p),
    "the old format": lambda m, p: torch.save(
        m.state_dict(), p, _use_new_zipfile_serialization=False
    ),
    "safetensors": lambda m, p: save_file(m.state_dict(), p),
    "a whole module": lambda m, p: torch.save(m, p),
    "DataParallel": lambda m, p: torch.save(nn.DataParallel(m).state_dict(), p),
    "compiled": lambda m, p: torch.save(
        {f"_orig_mod.{k}": v for k, v in m.state_dict().items()}, p
    ),
    "Lightning": lambda m, p: torch.save(
        {"state_dict": {f"model.{k}": v for k, v in m.state_dict().items()}}, p
    ),
    "an average": lambda m, p: torch.save(
        {"state_dict_ema": torch.optim.swa_utils.AveragedModel(m).state_dict()}, p
    ),
    "a trainer": lambda m, p: torch.save(trainer(m, state_dict=m.state_dict()), p),
    "TorchScript": lambda m, p: torch.jit.save(torch.jit.script(m), p),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", FORMS)
def test_weights_in_any_form_are_the_model(model, tmp_path, form):
    path = tmp_path / "weights"  # no suffix: as in the blobs of a hub cache
    FORMS[form](model, str(path))
    expected = model.visual(tiny_images(model))
    assert torch.equal(loaded(path).encode_image(tiny_images(model)), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_openai_archives_load_without_their_program(model, tmp_path, monkeypatch):
    path = tmp_path / "ViT.pt"
    openai_archive(model, path)

    def run(*_, **__):
        raise AssertionError("the archive's program was built")

    monkeypatch.setattr(torch.jit, "load", run)
    clip = loaded(path)
    half = {key: tensor.half().float() for key, tensor in model.state_dict().items()}
    model.load_state_dict(half)
    images = tiny_images(model)
    assert torch.equal(clip.encode_image(images), model.visual(images))


def test_half_precision_is_widened(model, tmp_path):
    torch.save({k: v.bfloat16() for k, v in model.state_dict().items()}, tmp_path / "a.pt")
    clip = loaded(tmp_path / "a.pt")
    assert clip.dtype == torch.float32
    assert torch.equal(clip.projection, model.visual.proj.bfloat16().float())


def test_the_model_is_taken_and_not_its_average_and_that_is_said(model, tmp_path):
    average = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": average}, tmp_path / "a.pt")
    with pytest.warns(SecondLensWarning, match=r"tensors beside the model, left out: model_ema\."):
        clip = loaded(tmp_path / "a.pt")
    assert torch.equal(clip.projection, model.visual.proj)


def test_numbers_of_the_loss_may_be_there_or_not(model, tmp_path):
    weights = model.state_dict() | {"logit_bias": torch.tensor(-10.0)}
    del weights["logit_scale"]
    torch.save(weights, tmp_path / "a.pt")
    with pytest.warns(SecondLensWarning) as said:
        loaded(tmp_path / "a.pt")
    texts = " ".join(str(each.message) for each in said)
    assert "has no logit_scale" in texts
    assert "has a logit_bias, left out" in texts


def test_positions_of_another_size_are_interpolated_and_that_is_said(tmp_path):
    larger = tiny_model(image_size=32)
    torch.save(larger.state_dict(), tmp_path / "a.pt")
    with pytest.warns(SecondLensWarning, match="17 positions in visual.*interpolated"):
        assert loaded(tmp_path / "a.pt").tokens == 5


def without(weights, *starts):
    return {key: value for key, value in weights.items() if not key.startswith(starts)}


LORA = {"visual.transformer.resblocks.0.mlp.c_fc.lora_A": torch.zeros(2, 2)}
MISFITS = {
    "an adapter beside": (lambda w: w | LORA, ["1 are surplus", next(iter(LORA)), "an adapter"]),
    "an adapter alone": (lambda w: LORA, ["weights are missing", "an adapter"]),
    "a head": (
        lambda w: w | {"head.weight": torch.zeros(3, 3)},
        ["1 are surplus, head.weight first", "a classification head"],
    ),
    "an image tower": (
        lambda w: without(w, "transformer", "token", "text", "pos", "ln_final", "logit"),
        ["are missing, positional_embedding first", "an image tower alone"],
    ),
    "more blocks": (
        lambda w: tiny_model(layers=4).state_dict(),
        ["resblocks.3.ln_1.weight first", "more blocks than the configuration says, 4 and not 3"],
    ),
    "fewer blocks": (
        lambda w: tiny_model(layers=2).state_dict(),
        ["resblocks.2.ln_1.weight first", "fewer blocks than the configuration says, 2 and not 3"],
    ),
    "another width": (
        lambda w: tiny_model(width=32).state_dict(),
        ["visual.class_embedding is [32] in it and [24] in the model", "another width"],
    ),
    "another library": (
        lambda w: {"vision_model.embeddings.class_embedding": torch.zeros(24)},
        ["a checkpoint of transformers: name its folder with hf:"],
    ),
    "two models": (
        lambda w: {"student": w, "teacher": w},
        ["holds several models, 'student' and 'teacher'"],
    ),
    "no tensors": (lambda w: {"epoch": 3}, ["holds no weights"]),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named(model, tmp_path, kind):
    change, expected = MISFITS[kind]
    torch.save(change(model.state_dict()), tmp_path / "a.pt")
    with pytest.raises(SecondLensError) as told:
        loaded(tmp_path / "a.pt")
    assert all(each in str(told.value) for each in expected), str(told.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty"),
        (POINTER.encode(), "a git-lfs pointer and not the file itself"),
        (b"<!DOCTYPE html><title>404</title>", "it is a web page"),
        (b"PK\x05\x06" + bytes(18), "it is a zip that torch did not write"),
        (b"GIF89a", r"name one that ends in \.safetensors"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, content, expected):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(SecondLensError, match=expected):
        read_file(path)


def test_a_file_that_is_cut_off_is_damaged(model, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SecondLensError, match=r"a\.pt"):
        read_file(path)


# -- archives of a stranger ------------------------------------------------------------------------


def archive(path, content, data=b"", compressed=False):
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", data)


class Calls:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_what_an_archive_calls_is_not_called(model, tmp_path):
    telltale = tmp_path / "it ran"
    torch.save({"state_dict": model.state_dict(), "more": Calls(telltale)}, tmp_path / "a.pt")
    assert torch.equal(loaded(tmp_path / "a.pt").projection, model.visual.proj)
    assert not telltale.exists()


STORAGE = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ%s"
    b"tQJ%sJ%s\x85J\x01\x00\x00\x00\x85\x89}ttRs."
)


def stored(count, offset, size):
    """A pickle of one tensor of that many numbers, in a storage of `count`."""
    numbers = (number.to_bytes(4, "little", signed=True) for number in (count, offset, size))
    return STORAGE.replace(b"ttRs", b"tRs") % tuple(numbers)


def test_the_pickle_below_is_a_tensor(tmp_path):
    archive(tmp_path / "a.pt", stored(2, 0, 2), np.array([1, 2], np.float32).tobytes())
    assert torch.equal(read_tensors(tmp_path / "a.pt")["w"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("pickled", "compressed"),
    [
        (stored(2, 1, 2), False),  # beyond its storage
        (stored(2, -1, 2), False),
        (stored(3, 0, 3), False),  # a storage beyond its part
        (stored(-2, 0, 2), False),
        (stored(2, 0, 2), True),
        (b"\x80\x02(", False),
        (b"", False),
    ],
)
def test_tensors_that_do_not_lie_in_an_archive(tmp_path, pickled, compressed):
    archive(tmp_path / "a.pt", pickled, bytes(8), compressed)
    with pytest.raises(ValueError, match=r"it |its |out of bounds"):
        read_tensors(tmp_path / "a.pt")


def test_what_holds_itself_ends(tmp_path):
    loop = {"w": 1}
    loop["loop"] = loop
    archive(tmp_path / "a.pt", pickle.dumps(loop))
    assert read_tensors(tmp_path / "a.pt") == {}


# -- places ----------------------------------------------------------------------------------------


def open_clip_folder(model, folder):
    folder.mkdir(parents=True)
    config = {"model_cfg": CONFIG, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def hub_cache(folder):
    """The folder as huggingface_hub keeps a repository: a snapshot of links to blobs."""
    cached = folder.parent / "models--someone--clip"
    for part in ("blobs", "refs", "snapshots/abc"):
        (cached / part).mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        (cached / "blobs" / str(number)).write_bytes(file.read_bytes())
        (cached / "snapshots/abc" / file.name).symlink_to(f"../../blobs/{number}")
    (cached / "refs/main").write_text("abc")
    return cached


def test_a_folder_of_open_clip_and_the_cache_of_the_hub(model, tmp_path):
    folder = open_clip_folder(model, tmp_path / "model")
    for place in (folder, cached := hub_cache(folder), cached / "snapshots/abc"):
        assert torch.equal(load(f"local-dir:{place}").projection, model.visual.proj)


def test_weights_of_a_folder_are_never_made_up(model, tmp_path):
    folder = open_clip_folder(model, tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(SecondLensError, match="holds 0 files of weights"):
        load(f"local-dir:{folder}")
    for name in ("a.pt", "b.pt"):
        torch.save(model.state_dict(), folder / name)
    with pytest.raises(SecondLensError, match=r"holds 2 files of weights \(a.pt, b.pt\)"):
        load(f"local-dir:{folder}")
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(SecondLensError, match="holds an adapter, adapter_model"):
        load(f"local-dir:{folder}")


def test_a_pointer_in_a_folder_is_named(model, tmp_path):
    folder = open_clip_folder(model, tmp_path / "model")
    (folder / "flax_model.msgpack").write_text(POINTER)  # what is not read may be one
    (folder / "pytorch_model.bin").write_text(POINTER)
    load(f"local-dir:{folder}")
    (folder / "open_clip_model.safetensors").write_text(POINTER)
    assert len(POINTER) < LARGEST_POINTER
    with pytest.raises(SecondLensError, match=r"safetensors is a git-lfs pointer.*git lfs pull"):
        load(f"local-dir:{folder}")


@pytest.fixture
def no_network(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", reached)
    monkeypatch.setattr("socket.socket.connect", reached)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:./nothing", "there is no folder './nothing'"),
        ("hf:/no/such/folder", "there is no folder '/no/such/folder'"),
        ("local-dir:nothing", "there is no folder 'nothing'"),
        ("hf:a/b/c", "there is no folder 'a/b/c'"),
        ("hf:", "there is no folder ''"),
        ("openai/clip-vit-base-patch32", "name it hf:openai/clip-vit-base-patch32"),
    ],
)
def test_places_that_are_not_here(name, message):
    with pytest.raises(SecondLensError, match=message):
        load(name)


@pytest.mark.usefixtures("no_network")
def test_other_words_for_what_is_here(model, tmp_path):
    folder = open_clip_folder(model, tmp_path / "model")
    file = folder / "open_clip_model.safetensors"
    for name, pretrained, message in (
        (str(folder), None, f"it is a folder, so name it local-dir:{folder}"),
        (str(file), None, "it is a file, so name the model that its weights are of"),
        (f"hf:{file}", None, "is a file: name the folder that it is in"),
        (f"hf:{folder}", None, f"it is a model of open_clip: name it local-dir:{folder}"),
        (NAME, str(folder), "is a folder: name a file of weights in it"),
        (f"local-dir:{folder}", "openai", "names its own weights: drop pretrained"),
    ):
        with pytest.raises(SecondLensError, match=message):
            load(name, pretrained)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "tag", "reason"),
    [
        ("MobileCLIP-S1", "datacompdr", "a convolution with an activation function"),
        ("ViT-B-16-quickgelu", "nothing", "has no pretrained tag"),
    ],
)
def test_a_configuration_that_is_not_covered_is_refused_before_weights_are_fetched(
    name, tag, reason, monkeypatch
):
    monkeypatch.setattr("open_clip.download_pretrained", pytest.fail)
    with pytest.raises(SecondLensError, match=reason):
        load(name, tag)


# -- models of transformers ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tiny_transformers_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def embeddings(name):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return load(name).encode_image(images)


def test_folders_old_and_new_and_in_the_cache_of_the_hub(folder):
    new = embeddings(f"hf:{folder}")
    assert torch.equal(embeddings(f"hf:{hub_cache(folder)}"), new)
    weights = tiny_transformers_model().state_dict()
    for tower, positions in (("vision", 5), ("text", 8)):  # which old versions wrote
        weights[f"{tower}_model.embeddings.position_ids"] = torch.arange(positions)[None]
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(embeddings(f"hf:{folder}"), new)


def surplus(folder):
    weights = tiny_transformers_model().state_dict() | {"classifier.weight": torch.ones(2, 12)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def configured(**vision):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= vision
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (surplus, r"1 are surplus, classifier\.weight first.*a classification head"),
        (configured(num_hidden_layers=2), "16 are surplus, .*more blocks"),
        (configured(num_hidden_layers=4), "16 of .* weights are missing, .*fewer blocks"),
        (configured(intermediate_size=32), "another width"),
        (
            lambda f: (f / "model.safetensors").write_text(POINTER),
            "model.safetensors is a git-lfs pointer",
        ),
    ],
)
def test_weights_and_configuration_of_a_folder_fit_each_other(folder, change, message):
    change(folder)
    with pytest.raises(SecondLensError, match=message) as told:
        load(f"hf:{folder}")
    assert "\n" not in str(told.value)


def test_an_adapter_beside_its_base_is_refused_without_peft(folder, monkeypatch):
    adapter(folder, folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SecondLensError, match="comes with an adapter, and merging that needs peft"):
        load(f"hf:{folder}")


def test_an_adapter_is_merged(folder, tmp_path):
    weights = adapter(folder, folder)
    key = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    change = weights[key.format("B")] @ weights[key.format("A")]
    before = tiny_transformers_model().vision_model.encoder.layers[0].self_attn.q_proj.weight
    adapter(tmp_path / "alone", folder)
    for place in (folder, tmp_path / "alone"):
        query = load(f"hf:{place}").blocks[0].query.flatten(0, 1)
        assert torch.allclose(query, before + change, atol=1e-6)


def test_parts_that_an_adapter_does_not_change_are_told_in_one_sentence(folder):
    weights = adapter(folder, folder)
    seen = {key: each for key, each in weights.items() if "vision" in key}
    save_file(seen, folder / "adapter_model.safetensors")
    with pytest.warns() as told:
        load(f"hf:{folder}")
    (said,) = told
    assert said.category is SecondLensWarning
    assert "no weights for 2 of the 8 it names, such as base_model.model.text" in str(said.message)


def test_an_adapter_of_another_model_is_refused(folder):
    weights = adapter(folder, folder)
    deeper = {key.replace("layers.2", "layers.7"): each for key, each in weights.items()}
    save_file(deeper, folder / "adapter_model.safetensors")
    with pytest.raises(SecondLensError, match=r"2 weights for what it does not have, .*layers\.7"):
        load(f"hf:{folder}")
