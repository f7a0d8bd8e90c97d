"""Tiny random CLIPs: every parameter is random, so that no term can hide behind a zero or a one."""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.transformer import Transformer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def tiny_model(seed=0, dtype=torch.float32, quick_gelu=False, dim=12, **vision):
    """An open_clip model; `vision` overrides its vision config."""
    config = {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "head_width": 8,
        "layers": 3,
        "mlp_ratio": 2.0,
        **vision,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(dim, config, dict(TEXT), quick_gelu=quick_gelu)
        randomise(model)
    return model.to(dtype).eval()


@torch.no_grad()
def randomise(model):
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))


def sequence_first(model):
    """The same model with blocks that see [tokens, images, width], as older open_clip had them."""
    old = model.visual.transformer
    block = old.resblocks[0]
    new = Transformer(
        old.width,
        len(old.resblocks),
        block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / old.width,
        batch_first=False,
    ).to(model.visual.proj.dtype)
    new.load_state_dict(old.state_dict())
    model.visual.transformer = new.eval()
    return model


def tiny_images(clip_or_model, count=3, seed=1):
    """Random preprocessed images, in the model's own precision."""
    tower = getattr(clip_or_model, "model", clip_or_model).visual
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *tower.image_size, generator=generator, dtype=torch.float64)
    return images.to(tower.conv1.weight.dtype)


class Unreadable:
    """A source of two pictures that are gone."""

    ids = ("a", "b")

    def load(self, index):
        raise OSError("gone")


def tiny_tokenizer(texts):
    """Characters as tokens; the highest one ends the text."""
    tokens = torch.zeros(len(texts), TEXT["context_length"], dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        codes = [ord(letter) % 62 + 1 for letter in text[: len(row) - 1]] + [63]
        row[: len(codes)] = torch.tensor(codes)
    return tokens


def golden_model(name):
    """Model, tensors and metadata of a golden file: outputs of the paper's published code."""
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    model = CLIP(**json.loads(metadata["config"])).eval()
    weights = {key[8:]: value for key, value in tensors.items() if key.startswith("weights/")}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model, tensors, metadata


def tiny_transformers_model():
    """A `CLIPModel` with the shape of `tiny_model`, always the same."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    vision |= {"num_attention_heads": 3, "image_size": 16, "patch_size": 8, "projection_dim": 12}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8, "projection_dim": 12}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(config).eval()


def adapter(folder, base):
    """A LoRA adapter of rank 1 on the queries of block 0."""
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(base)})
    )
    generator = torch.Generator().manual_seed(0)
    layers = [f"vision_model.encoder.layers.{i}" for i in range(3)] + [
        "text_model.encoder.layers.0"
    ]
    weights = {}
    for layer in layers:
        width = 24 if layer.startswith("vision") else 16
        for part, shape in (("A", (1, width)), ("B", (width, 1))):
            key = f"base_model.model.{layer}.self_attn.q_proj.lora_{part}.weight"
            weights[key] = torch.randn(shape, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    return weights
