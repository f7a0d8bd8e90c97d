"""SigLIP and SigLIP 2 of transformers: no class token, but a learned query that looks at patches.

Values of the query's attention, in the heads of the pool, are the only path of a neuron's value to
the embedding, so that neurons of every layer have second-order effects and none has a direct one.
The pool's own MLP is behind the heads.

The loss of these models scales and shifts a cosine, which changes no direction; so the scale and
the bias are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from ..blocks import detached, is_affine
from ..halves import eight_bits
from ..readers import AttentionPool, LearnedPool
from .families import (
    SIZES,
    Family,
    TowerView,
    both,
    identity,
)
from .layers import LayerNames, layer_block, layer_refusals

PREFIXES = ("Siglip", "Siglip2")
LAYERS = LayerNames(
    classes=frozenset(
        prefix + part for prefix in PREFIXES for part in ("EncoderLayer", "Attention", "MLP")
    ),
    ln_1="layer_norm1",
    ln_2="layer_norm2",
    attention="self_attn",
    output="out_proj",
    heads="num_heads",
)
HEADS = tuple(f"{prefix}MultiheadAttentionPoolingHead" for prefix in PREFIXES)
HEADLESS = "it has no pooling head (vision_use_head), so no embedding is read from its patches"


@dataclass(frozen=True, kw_only=True, eq=False)
class SiglipPool(LearnedPool):
    """View of a SigLIP's pooling head: `module` is the head, whose attention is torch's own."""

    @property
    def query(self) -> Float[Tensor, "heads head_width"]:
        """See `LearnedPool`."""
        weight, bias = self._split(self._attention.in_proj_weight)[0], self._biases[0]
        asked = torch.einsum("w,hew->he", detached(self.module.probe)[0, 0], weight) + bias
        scaled: Tensor = asked * weight.shape[1] ** -0.5
        return scaled

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `LearnedPool`."""
        return self._split(self._attention.in_proj_weight)[1]

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Attention`."""
        return self._split(self._attention.in_proj_weight)[2]

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Attention`."""
        return self._biases[2]

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `Attention`."""
        weight = detached(self._attention.out_proj.weight)
        by_head: Tensor = weight.T.unflatten(0, (self._attention.num_heads, -1))
        return by_head

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Attention`."""
        return detached(self._attention.out_proj.bias)

    @property
    def _attention(self) -> Any:
        return self.module.attention

    @property
    def _biases(self) -> Float[Tensor, "3 heads head_width"]:
        return self._split(self._attention.in_proj_bias)

    def _split(self, joint: Tensor) -> Float[Tensor, "3 heads head_width *width"]:
        split: Tensor = detached(joint).unflatten(0, (3, self._attention.num_heads, -1))
        return split


def _vision(model: Any) -> Any:
    """The tower of a whole model, or a model that is one; older versions put a module around it."""
    vision = getattr(model, "vision_model", model)
    return getattr(vision, "vision_model", vision)


def _view(model: Any) -> TowerView:
    vision = _vision(model)
    embeddings = vision.embeddings
    patch = both(embeddings.patch_size)
    whole = hasattr(model, "text_model")
    many_shapes = _takes_patches(vision)
    if many_shapes:
        side = embeddings.position_embedding_size
        size = (side * patch[0], side * patch[1])
    else:
        size = both(embeddings.image_size)
    encode = partial(_encode_patches, vision, patch) if many_shapes else partial(_encode, vision)
    pool = SiglipPool(
        module=vision.head, ln_1=vision.post_layernorm, attention_end=vision.head.attention
    )
    return TowerView(
        tower=(vision,),
        blocks=tuple(layer_block(layer, LAYERS) for layer in vision.encoder.layers),
        ln_post=vision.head,
        patches=embeddings.patch_embedding,
        read_projection=partial(identity, vision.head.layernorm),
        image_size=size,
        patch=patch,
        encode=encode,
        reader=AttentionPool(pool),
        prefix=0,
        embed=partial(_embed, model) if whole else None,
        padding="max_length",
        context_length=model.text_model.config.max_position_embeddings if whole else 64,
        instead=f"load the whole {type(model).__name__.replace('VisionModel', 'Model')}",
        preprocess=partial(_Square, size) if many_shapes else None,
    )


def _takes_patches(vision: Any) -> bool:
    """Whether pictures come cut into patches, as those of every shape do (NaFlex)."""
    return isinstance(vision.embeddings.patch_embedding, nn.Linear)


def _encode(vision: Any, images: Tensor) -> Tensor:
    resized = tuple(images.shape[-2:]) != both(vision.embeddings.image_size)
    output = vision(images, interpolate_pos_encoding=resized)
    embeddings: Tensor = output.pooler_output
    return embeddings


def _encode_patches(vision: Any, patch: tuple[int, int], images: Tensor) -> Tensor:
    """Through a tower that takes pictures of any shape, all of them of one."""
    cells = [pixels // side for pixels, side in zip(images.shape[-2:], patch, strict=True)]
    pixels = images.unflatten(3, (cells[1], patch[1])).unflatten(2, (cells[0], patch[0]))
    patches = pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([cells], device=images.device).expand(len(images), -1)
    there = torch.ones(patches.shape[:2], dtype=torch.long, device=images.device)
    output = vision(patches, there, shapes)
    embeddings: Tensor = output.pooler_output
    return embeddings


def _embed(model: Any, tokens: Any) -> Tensor:
    # no mask: the text tower was trained to read what texts are padded with
    states = model.text_model(tokens.input_ids)
    embeddings: Tensor = states.pooler_output
    return embeddings


@dataclass(frozen=True)
class _Square:
    """One picture squeezed to the shape of the trained positions, in the processor's colours; a
    class, so that worker processes can have it."""

    size: tuple[int, int]
    processor: Any

    def __call__(self, image: Image) -> Tensor:
        return self.normalised(self._resized(image))

    def eight_bits(self, image: Image) -> Tensor:
        """See `Halved`."""
        return eight_bits(self._resized(image))

    def normalised(self, image: Image) -> Tensor:
        """See `Halved`."""
        mean, deviation = (
            torch.tensor(each)[:, None, None]
            for each in (self.processor.image_mean, self.processor.image_std)
        )
        pixels: Tensor = (eight_bits(image) * self.processor.rescale_factor - mean) / deviation
        return pixels

    def _resized(self, image: Image) -> Image:
        how = Resampling(self.processor.resample)
        return image.convert("RGB").resize(self.size[::-1], how)


def _refusals(model: Any) -> Iterator[str]:
    vision = _vision(model)
    if not getattr(vision, "use_head", False):
        yield HEADLESS
        return
    head = vision.head
    if type(head).__name__ not in HEADS or type(head.attention) is not nn.MultiheadAttention:
        yield f"its patches are pooled by a {type(head).__name__}, which is not covered"
        return
    if not is_affine(vision.post_layernorm):
        yield "post_layernorm is no LayerNorm with gain and bias"
    for j, layer in enumerate(vision.encoder.layers):
        for reason in layer_refusals(layer, LAYERS):
            yield f"block {j} {reason}"


def _by_configuration(configuration: Any) -> Iterator[str]:
    if not getattr(configuration, "vision_use_head", True):  # older versions do not say so
        yield HEADLESS


SIGLIP = Family(
    models={
        "SiglipModel": "siglip",
        "SiglipVisionModel": "siglip_vision_model",
        "Siglip2Model": "siglip2",
        "Siglip2VisionModel": "siglip2_vision_model",
    },
    view=_view,
    refusals=_refusals,
    fields=SIZES | {"num_patches", "vision_use_head"},
    vision="vision_config",
    refused_by_configuration=_by_configuration,
)
