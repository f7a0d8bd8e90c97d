"""What papers do to maps, against their formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import tiny_images, tiny_model
from oracle import Run, split_heads

from secondlens.applications.segmentation.refinement import (
    denoise_prompts,
    pamr,
    remove_redundance,
    smooth_by_keys,
)
from secondlens.models.open_clip.views import from_open_clip

CLOSE = {"rtol": 1e-6, "atol": 1e-10}


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def clip(model):
    return from_open_clip(model)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dilations", [(1,), (1, 3)])
def test_pamr(dilations):
    height, width = 5, 6
    pixels, maps = noise(1, 2, height, width), noise(1, 3, height, width, seed=1)

    def at(values, y, x):
        return values[..., min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    expected = maps.clone()
    for _ in range(3):
        before, expected = expected, torch.zeros_like(expected)
        for y in range(height):
            for x in range(width):
                steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
                nine = [(y + d * a, x + d * b) for d in dilations for a, b in steps]
                eight = [(y + d * a, x + d * b) for d in dilations for a, b in steps if a or b]
                scores = []
                for place in eight:
                    total = 0.0
                    for channel in range(2):
                        values = torch.stack([at(pixels[0, channel], *each) for each in nine])
                        apart = abs(at(pixels[0, channel], *place) - pixels[0, channel, y, x])
                        total += float(apart / (1e-8 + 0.1 * values.std()))
                    scores.append(-total / 2)
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                for weight, place in zip(weights, eight, strict=True):
                    expected[..., y, x] += weight * at(before, *place)
    found = pamr(pixels, maps, steps=3, dilations=dilations)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_prompts_that_are_nowhere_likely_are_dropped():
    maps = 0.02 * noise(2, 4, 3, 3)
    found = denoise_prompts(maps, 0.5)
    for image in range(2):
        for text in range(4):
            most = max(
                math.exp(100 * maps[image, text, y, x])
                / sum(math.exp(100 * maps[image, other, y, x]) for other in range(4))
                for y in range(3)
                for x in range(3)
            )
            kept = found[image, text]
            assert torch.equal(kept, maps[image, text]) if most >= 0.5 else (kept == -100).all()
    assert (found == -100).any() and (found != -100).any()


@torch.no_grad()
def test_keys_smooth_maps(model, clip):
    images, maps = tiny_images(clip, 2), 0.02 * noise(2, 3, 2, 2)
    block = model.visual.transformer.resblocks[-1]
    normal = block.ln_1(Run(model, images).streams[-1])
    projected = F.linear(normal, block.attn.in_proj_weight, block.attn.in_proj_bias)
    keys = projected.chunk(3, dim=-1)[1][:, 1:]
    assert split_heads(keys, 3).shape == (2, 3, 4, 8)
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for image in range(2):
        likely = (100 * maps[image].flatten(1)).softmax(0)
        for place in range(4):
            for other in range(4):
                cosine = F.cosine_similarity(keys[image, place], keys[image, other], dim=0)
                expected[image, :, place] += cosine * likely[:, other]
    found = smooth_by_keys(clip, images, maps).flatten(2)
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_what_texts_have_in_common_is_removed(clip):
    images, texts = tiny_images(clip, 2), F.normalize(noise(3, 12), dim=1)
    patches = F.normalize(noise(2, 4, 12, seed=2), dim=-1)
    maps = torch.einsum("bpd,td->btp", patches, texts)
    whole = F.normalize(clip.encode_image(images), dim=1)
    likely = (2 * whole @ texts.T).softmax(1)
    weights = likely / likely.mean(1, keepdim=True)
    # products of features one by one, as the published code has them
    features = patches[:, :, None] * texts[None, None] * weights[:, None, :, None]
    expected = (features - features.mean(2, keepdim=True)).sum(-1).mT
    found = remove_redundance(clip, images, texts, maps)
    torch.testing.assert_close(found, expected, **CLOSE)
