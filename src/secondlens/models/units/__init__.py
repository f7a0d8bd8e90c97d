"""Units in place of neurons: latents of autoencoders and transcoders, singular vectors, own rows.

Everything that is linear in (activation at each token, row written to the stream) holds for any set
of such pairs that adds up to what the MLP writes. `latents` says what the pairs are, `activation`
computes them inside the model, `replacing` puts them there, `layouts` reads the files of libraries,
`folders` keeps a model with units on disk.
"""

from typing import TYPE_CHECKING

from ...registry import Registry

if TYPE_CHECKING:
    from .latents import Latents

unit_layouts: Registry["Latents"] = Registry("layout of latents", "unit-layouts")
"""Factories of `(tensors, settings)`: what the file holds, and what the JSON beside it says."""

for _name, _help in (
    ("saelens", "SAELens: sae_weights.safetensors with cfg.json; autoencoders and transcoders"),
    ("prisma", "ViT-Prisma: weights.pt with config.json"),
    ("saev", "saev: one .pt file that begins with a line of JSON"),
    ("overcomplete", "overcomplete: the state dict of a SAE in evaluation mode"),
    ("dictionary_learning", "dictionary_learning: ae.pt with config.json"),
):
    unit_layouts.register(_name, f"{__name__}.layouts:{_name}", help=_help)
