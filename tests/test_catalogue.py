"""What is said of models that nobody has loaded."""

import json

import open_clip
import pytest
from click.testing import CliRunner

from secondlens.catalogue import entries
from secondlens.commands import list as list_command
from secondlens.commands.group import main

FEW = ["ViT-B-32", "ViT-H-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP", "RN50", "MobileCLIP-S1"]


@pytest.fixture(scope="module")
def few():
    return {entry.name: entry for entry in entries(FEW)}


@pytest.mark.parametrize(
    ("name", "reads", "layers", "direct", "paths"),
    [
        ("ViT-B-32", "class token", 12, True, True),
        ("ViT-H-14-CLIPA", "patch mean", 32, True, False),
        ("coca_ViT-B-32", "pool", 12, False, False),
        ("ViT-B-16-SigLIP", "pool", 12, False, False),
    ],
)
def test_what_reads_the_output_and_what_is_defined(few, name, reads, layers, direct, paths):
    entry = few[name]
    assert (entry.reads, entry.layers, entry.direct) == (reads, layers, direct)
    assert entry.second_order and entry.segmentation and entry.all_paths == paths
    assert not entry.refused


def test_a_resnet_has_one_layer_of_channels(few):
    assert few["RN50"].layers == 1 and few["RN50"].neurons == 2048 and few["RN50"].second_order


def test_what_is_refused_says_why(few):
    entry = few["MobileCLIP-S1"]
    assert entry.refused and not entry.second_order and entry.tags


def test_tags_are_those_of_open_clip(few):
    for name, entry in few.items():
        assert entry.tags == tuple(open_clip.list_pretrained_tags_by_model(name))


def test_the_command_prints_them(monkeypatch):
    monkeypatch.setattr(open_clip, "list_models", lambda: ["ViT-B-32", "MobileCLIP-S1"])
    printed = CliRunner().invoke(main, ["list", "models"])
    assert printed.exit_code == 0 and "1 of 2 architectures can be explained" in printed.output
    document = json.loads(CliRunner().invoke(main, ["list", "models", "--json"]).stdout)
    assert [entry["name"] for entry in document["open_clip"]] == ["MobileCLIP-S1", "ViT-B-32"]
    assert list_command.registry("models").kind == "model"


@pytest.mark.long
def test_nearly_all_published_weights_are_covered():
    names = open_clip.list_models()
    found = list(entries(names))
    covered = sum(len(entry.tags) for entry in found if not entry.refused)
    assert covered >= 180
    assert all(entry.refused or entry.layers for entry in found)
