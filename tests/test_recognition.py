"""Weights that were published are known by whatever name, file or folder they come."""

import hashlib

import open_clip
import pytest

from secondlens.models.recognition import published_as

PAPERS = "ViT-B-32 (openai)"


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [
        ("ViT-B-32", "openai"),
        ("ViT-B/32", "openai"),
        ("ViT-B-32-quickgelu", "openai"),
        ("ViT-B-32", "OpenAI"),
        ("hf:openai/clip-vit-base-patch32", None),
        ("hf:OpenAI/CLIP-ViT-Base-Patch32", None),
        ("hf-hub:timm/vit_base_patch32_clip_224.openai", None),
        ("hf:/home/me/hub/models--openai--clip-vit-base-patch32/snapshots/3d74acf9a28c", None),
        ("hf:/home/me/hub/models--openai--clip-vit-base-patch32/snapshots/3d74acf9/", None),
    ],
)
def test_the_papers_model_in_every_spelling(name, pretrained):
    assert published_as(name, pretrained) == PAPERS


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [
        ("ViT-B-32", None),
        ("demo", None),
        ("hf:openai", None),
        ("hf:me/clip-vit-base-patch32", None),
        ("ViT-B-32", "no such tag"),
        ("local-dir:/home/me/models", None),
    ],
)
def test_others_are_not_known(name, pretrained):
    assert published_as(name, pretrained) is None


def test_other_published_weights_have_their_own_name():
    assert published_as("ViT-L-14", "laion2b_s32b_b82k") == "ViT-L-14 (laion2b_s32b_b82k)"
    place = "hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    assert published_as(place, None) == "ViT-L-14 (laion2b_s32b_b82k)"


def test_a_file_is_known_by_its_hash_whatever_it_is_called(tmp_path, monkeypatch):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"weights")
    assert published_as("ViT-B-32", str(path)) is None
    address = f"https://x/{hashlib.sha256(b'weights').hexdigest()}/ViT-B-32.pt"
    table = open_clip.pretrained._PRETRAINED["ViT-B-32"]
    monkeypatch.setitem(table, "openai", {**table["openai"], "url": address})
    assert published_as("ViT-B-32", str(path)) == PAPERS
