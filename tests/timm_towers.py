"""Small random towers of timm, one of each kind, and their effects by definition.

The oracle knows the model of timm alone, not its view: attention and scales are recorded in one
pass, and what an MLP wrote is sent through the model's own modules with these held.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import open_clip
import timm
import torch
import torch.nn.functional as F
from models import TEXT, randomise
from torch import nn

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8}
VITAMIN = {"embed_dim": 384, "depth": 2, "num_heads": 6, "img_size": 64}
TOWERS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "average after the norm": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "average of all tokens": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
    ),
    "no class token": ("vit_medium_patch16_gap_256", {}),
    "no last norm": ("vit_tiny_patch16_224", {"final_norm": False}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "pool beside a class token": ("vit_tiny_patch16_224", {"global_pool": "map", "reg_tokens": 2}),
    "norm after the pool": ("vit_tiny_patch16_224", {"global_pool": "map", "fc_norm": True}),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {}),
    "packed SwiGLU": (
        "vit_tiny_patch16_224",
        {"mlp_layer": timm.layers.SwiGLUPacked, "init_values": 0.5},
    ),
    "norms everywhere": (
        "vit_tiny_patch16_224",
        {"qk_norm": True, "init_values": 0.5, "scale_mlp_norm": True, "scale_attn_norm": True},
    ),
    "no biases": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False}),
    "EVA-01": ("eva_giant_patch14_224", {"global_pool": "token", "mlp_ratio": 2}),
    "EVA-02": ("eva02_base_patch16_clip_224", {}),
    "EVA-02, averaged": ("eva02_base_patch16_clip_224", {"global_pool": "avg"}),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", {}),
    "shared keys": (
        "vit_pe_core_tiny_patch16_384",
        {"global_pool": "token", "qkv_fused": False, "num_kv_heads": 2},
    ),
    "ViTamin": ("vitamin_small_224", VITAMIN | {"patch_size": 1}),
}


def small_tower(kind, dtype=torch.float64, outputs=7):
    """One with random weights, always the same."""
    name, options = TOWERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = timm.create_model(name, **{**SMALL, "num_classes": outputs, **options})
        randomise(tower)
    return tower.to(dtype).eval()


def small_clip(kind, dtype=torch.float32, dim=12):
    """The same inside a model of open_clip, with a text tower of `tiny_model`."""
    name, options = TOWERS[kind]
    pool = {**timm.create_model(name, depth=1).__dict__, **options}["global_pool"]
    small = partial(timm.create_model, **{**SMALL, **options, "global_pool": pool})
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": None, "image_size": 32}
    with torch.random.fork_rng(devices=[]), patch.object(timm, "create_model", small):
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(dim, vision, dict(TEXT))
        randomise(model)
    return model.to(dtype).eval()


def some_images(tower, count=3):
    size = tower.patch_embed.img_size
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)
    return images.to(next(tower.parameters()).dtype)


class Held:
    """A pass whose attention and scales can be held."""

    def __init__(self, tower, images):
        self.tower, self.attention, self.seen, self.activations = tower, {}, {}, []
        self.current = None
        with ExitStack() as stack, torch.no_grad():
            for module in self._attending():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
            for norm in self._norms():
                stack.callback(norm.register_forward_pre_hook(self._see).remove)
            for block in tower.blocks:
                last = self._last(block.mlp)
                stack.callback(last.register_forward_pre_hook(self._see_neurons).remove)
            with patch.object(F, "scaled_dot_product_attention", self._record):
                self.representation = tower(images)

    def _attending(self):
        pool = [] if self.tower.attn_pool is None else [self.tower.attn_pool]
        return [block.attn for block in self.tower.blocks] + pool

    def _norms(self):
        norms = [norm for b in self.tower.blocks for norm in (b.norm1, b.attn.norm)]
        norms += [self.tower.norm, self.tower.fc_norm]
        return [norm for norm in norms if isinstance(norm, nn.LayerNorm)]

    def _last(self, mlp):
        return mlp.w2 if hasattr(mlp, "w2") else mlp.fc2

    def _enter(self, module, inputs):
        self.current = module

    def _see(self, module, inputs):
        self.seen[module] = inputs[0]

    def _see_neurons(self, module, inputs):
        self.activations.append(inputs[0])

    def _record(self, q, k, v, **_):
        self.attention[self.current] = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.attention[self.current] @ v

    def _hold(self, q, k, v, **_):
        return self.attention[self.current] @ v

    @contextmanager
    def _held(self):
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", self._hold))
            for module in self._attending():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
            for norm in self._norms():
                seen = self.seen[norm]
                sigma = (seen.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
                held = partial(self._normed, norm, sigma)
                stack.enter_context(patch.object(norm, "forward", held))
            if self.tower.attn_pool is not None:
                # what follows the pool's heads is another path
                mlp = self.tower.attn_pool.mlp
                stack.enter_context(patch.object(mlp, "forward", torch.zeros_like))
            yield

    def _normed(self, norm, sigma, x):
        return (x - x.mean(-1, keepdim=True)) / sigma * norm.weight + norm.bias

    def _attend(self, block, x):
        added = block.attn(block.norm1(x))
        if hasattr(block, "ls1"):
            return block.ls1(added)
        return added if block.gamma_1 is None else block.gamma_1 * added

    def _read(self, states):
        return self.tower.forward_head(self.tower.norm(states))

    def write(self, layer, neurons=slice(None)):
        """[images, tokens, width]: what some neurons of an MLP add to the stream."""
        block = self.tower.blocks[layer]
        rows = self._last(block.mlp).weight.detach().T
        scale = block.ls2 if hasattr(block, "ls2") else block.gamma_2
        scale = getattr(scale, "gamma", scale)
        rows = rows * scale.detach() if isinstance(scale, torch.Tensor) else rows
        return self.activations[layer][..., neurons] @ rows[neurons]

    def second_order(self, layer, write):
        """[images, dim]: what a write of an MLP does through one value edge, per length of r."""
        zero = torch.zeros_like(write)
        with self._held():
            if self.tower.attn_pool is not None:
                total = self._read(write) - self._read(zero)
            else:
                total = sum(
                    self._read(self._attend(block, write)) - self._read(self._attend(block, zero))
                    for block in self.tower.blocks[layer + 1 :]
                )
        return total / self.representation.norm(dim=-1, keepdim=True)

    def direct(self, layer, write):
        """The same straight to the output."""
        if self.tower.attn_pool is not None:
            return torch.zeros_like(self.representation)
        with self._held():
            total = self._read(write) - self._read(torch.zeros_like(write))
        return total / self.representation.norm(dim=-1, keepdim=True)
