"""Tiny random models of every family, and what a path carries, written out."""

import open_clip
import torch
import transformers
from models import TEXT, randomise

from secondlens.verify import LiteralPass, literal_second_order

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
WORDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": TEXT["vocab_size"],
    "max_position_embeddings": TEXT["context_length"],
    "eos_token_id": 63,
}


def without(sizes, *names):
    return {name: value for name, value in sizes.items() if name not in names}


def of_both(kind, vision=SIZES, **options):
    """A whole model: an image tower and a text tower."""
    config = getattr(transformers, f"{kind}Config")(
        vision_config=dict(vision), text_config=dict(WORDS), **options
    )
    return getattr(transformers, f"{kind}Model")(config)


def of_one(model, config, **options):
    return getattr(transformers, model)(getattr(transformers, config)(**options))


DINO = without(SIZES, "intermediate_size") | {"mlp_ratio": 2}
PATCHES = without(SIZES, "image_size") | {"num_patches": 9}

TRANSFORMERS = {
    "CLIPModel": lambda: of_both("CLIP"),
    "MetaClip2Model": lambda: of_both("MetaClip2", projection_dim=12),
    "SiglipModel": lambda: of_both("Siglip"),
    "SiglipVisionModel": lambda: of_one("SiglipVisionModel", "SiglipVisionConfig", **SIZES),
    "Siglip2Model": lambda: of_both("Siglip2", PATCHES),
    "Dinov2Model": lambda: of_one("Dinov2Model", "Dinov2Config", **DINO),
    "Dinov2Model, gated": lambda: of_one(
        "Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True
    ),
    "Dinov2WithRegistersModel": lambda: of_one(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **DINO, num_register_tokens=2
    ),
    "DINOv3ViTModel": lambda: of_one(
        "DINOv3ViTModel", "DINOv3ViTConfig", **SIZES, num_register_tokens=2
    ),
    "DINOv3ViTModel, gated": lambda: of_one(
        "DINOv3ViTModel", "DINOv3ViTConfig", **SIZES, num_register_tokens=2, use_gated_mlp=True
    ),
    "ViTModel": lambda: of_one("ViTModel", "ViTConfig", **SIZES),
    "ViTForImageClassification": lambda: of_one(
        "ViTForImageClassification",
        "ViTConfig",
        **SIZES,
        id2label={0: "tench, Tinca tinca", 1: "crane", 2: "crane, machine", 3: "Snow", 4: "dog"},
    ),
}
"""Models by what is shown of them in tests."""


def transformers_model(name, seed=0, dtype=torch.float32):
    """One of `TRANSFORMERS`, every parameter of it random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TRANSFORMERS[name]()
        randomise(model)
    return model.to(dtype).eval()


def images_for(clip, count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *clip.image_size, generator=generator, dtype=torch.float64)
    return images.to(clip.dtype)


def whole_path(clip, images, layer):
    """What all neurons of a layer together send through values, written out in one sum."""
    return literal_second_order(clip, LiteralPass.of(clip, images), layer, None)


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def convolutional(**vision):
    """An open_clip model whose image tower has no blocks, its running averages random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = dict(TEXT)
        kind = open_clip.CustomTextCLIP if "timm_model_name" in vision else open_clip.CLIP
        model = kind(12, {"image_size": 64, "patch_size": None, **vision}, text)
        randomise(model)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": ""}
CONVOLUTIONAL = {
    "ResNet": lambda: convolutional(layers=[1, 1, 2, 1], width=8),
    "ConvNeXt": lambda: convolutional(**CONVNEXT, timm_proj="linear"),
    "ConvNeXt, MLP head": lambda: convolutional(**CONVNEXT, timm_proj="mlp"),
}


def convolutional_model(name, dtype=torch.float32):
    """One of `CONVOLUTIONAL`."""
    return CONVOLUTIONAL[name]().to(dtype).eval()
