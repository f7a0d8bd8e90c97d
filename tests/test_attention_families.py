"""Attention and its reasons in every family of towers, against attention that the model tells."""

import pytest
import torch
from models import TEXT, tiny_model, tiny_tokenizer
from timm_towers import TOWERS, small_tower, some_images
from towers import TRANSFORMERS, convolutional_model, images_for, transformers_model

import secondlens as sl
from secondlens.errors import UnsupportedModel
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.timm.views import from_timm
from secondlens.models.transformers.views import from_transformers

LAYER, HEAD = 2, 1


def told(model, images):
    """Attention of every block, as transformers gives it."""
    tower = getattr(model, "vision_model", model)
    tower.set_attn_implementation("eager")
    return torch.stack(tower(pixel_values=images, output_attentions=True).attentions, dim=1)


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name != "Siglip2Model"])
def test_attention_is_what_the_model_tells(name):
    model = transformers_model(name, dtype=torch.float64)
    clip = from_transformers(model)
    images = images_for(clip)
    found = sl.attention(clip, images)
    check_reasons(clip, images[:1], found[0])
    # theirs takes the softmax in single precision, and from here on in every pass of the model
    torch.testing.assert_close(found, told(model, images), rtol=2e-6, atol=1e-7)


def check_reasons(clip, image, attention):
    """The softmax of the scores is attention, and parts add up to scores."""
    if not all(block.plain_scores for block in clip.blocks):
        with pytest.raises(UnsupportedModel, match="turns or normalises queries and keys"):
            sl.why_attention(clip, image, LAYER, HEAD)
        return
    for layer in range(clip.layers):
        found = sl.why_attention(clip, image, layer, HEAD, clip.prefix + 2, query=1)
        row = attention[layer, HEAD, 1]
        torch.testing.assert_close(found.scores.softmax(0), row, rtol=1e-9, atol=1e-12)
        for parts in (found.by_query, found.by_key, found.by_kind):
            assert float(parts.sum()) == pytest.approx(found.score, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("kind", TOWERS)
def test_the_class_tokens_row_is_the_one_that_effects_read(kind):
    clip = from_timm(small_tower(kind))
    images = some_images(small_tower(kind), 2)
    found = sl.attention(clip, images)
    assert found.shape == (2, clip.layers, clip.heads, clip.tokens, clip.tokens)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    kept = {}
    handles = [
        block.ln_1.register_forward_hook(
            lambda module, inputs, output, n=n: kept.update({n: clip.batch_major(output)})
        )
        for n, block in enumerate(clip.blocks)
    ]
    clip.encode_image(images)
    for handle in handles:
        handle.remove()
    for number, block in enumerate(clip.blocks):
        row = block.class_attention(kept[number], torch.float64)
        torch.testing.assert_close(found[:, number, :, 0], row, rtol=1e-7, atol=1e-9)
    check_reasons(clip, images[:1], found[0])


def test_no_token_of_a_text_looks_at_later_ones():
    model = tiny_model(dtype=torch.float64)
    clip = from_open_clip(model, tokenizer=tiny_tokenizer).text
    found = sl.attention(clip, clip.prepare(["a dog", "ships"]))
    assert found.shape[-1] == TEXT["context_length"]
    assert float(found.triu(1).abs().max()) == 0
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


@pytest.mark.parametrize("name", ["ResNet", "ConvNeXt"])
def test_towers_without_blocks_say_so(name):
    clip = from_open_clip(convolutional_model(name))
    with pytest.raises(UnsupportedModel, match="no blocks in which tokens look"):
        sl.attention(clip, clip.noise(1))
