"""Every family works where its model is: shown on the fake accelerator."""

import fake
import pytest
import torch
from towers import (
    CONVOLUTIONAL,
    TRANSFORMERS,
    convolutional_model,
    error,
    images_for,
    transformers_model,
)

import secondlens as sl
from secondlens.models.checks import check_parity
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers

DEVICE = f"fake:{fake.COUNT - 1}"
"""Not the first, which might be taken for granted."""

pytestmark = pytest.mark.filterwarnings("ignore:the head of")


def view(kind, device="cpu", dtype=torch.float32):
    """A view of a model that goes to its device after it was wrapped."""
    if kind in CONVOLUTIONAL:
        clip = from_open_clip(convolutional_model(kind, dtype))
    else:
        clip = from_transformers(transformers_model(kind, dtype=dtype))
    clip.model.to(device)
    return clip


def effects(clip, images):
    return sl.second_order(clip, images, 0) if clip.heads else sl.direct(clip, images, 0)


@pytest.mark.parametrize("kind", [*TRANSFORMERS, *CONVOLUTIONAL])
def test_effects_are_where_the_model_is(kind):
    device = "fake:0" if "MLP" in kind else DEVICE  # gradients are computed on the first alone
    clip, other = view(kind), view(kind, device)
    images = images_for(clip)
    found = effects(other, images)
    assert str(found.device) == str(other.device) == device
    assert error(found.cpu(), effects(clip, images)) < 1e-4
    assert check_parity(other) < 1e-4


@pytest.mark.parametrize("kind", ["SiglipModel", "DINOv3ViTModel, gated", "ResNet"])
def test_a_lens_is_fitted_where_the_model_is(kind):
    clip, other = view(kind), view(kind, DEVICE)
    images = images_for(clip, 12)
    found, expected = (sl.fit(each, images, [0], top=3) for each in (other, clip))
    assert error(found[0].mean.cpu(), expected[0].mean) < 1e-4
    assert torch.equal(found[0].top_images.cpu(), expected[0].top_images)


def test_classes_are_where_the_model_is():
    rows = view("ViTForImageClassification", DEVICE).encode_text(["snow", "dog"])
    assert str(rows.device) == DEVICE
    assert torch.equal(rows.cpu(), torch.eye(5)[[3, 4]])


@pytest.mark.parametrize("kind", ["ViTForImageClassification", *CONVOLUTIONAL])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_effects_in_half_precision_are_close(kind, dtype):
    exact, half = view(kind, dtype=torch.float64), view(kind, dtype=dtype)
    found, expected = (effects(each, images_for(exact)) for each in (half, exact))
    assert error(found, expected) < 0.3
