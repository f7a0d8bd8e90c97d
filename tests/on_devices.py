"""What tests on the fake accelerator share: a small model, noise to look at, and a lens of both."""

from functools import cache

import explored
import fake
import numpy as np
import torch
from PIL import Image

import secondlens as sl
from secondlens.applications.adversarial.generation import GeneratedImage
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.world import NAMES

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE = f"fake:{fake.COUNT - 1}"
"""Not the first, which might be taken for granted."""
LAYERS = (0, 1)
LAYER = 1
WORDS = NAMES[:8]
DESCRIPTIONS = ((world_vocabulary(), 6), (sl.vocabulary(WORDS), 4))


def tiny_clip(device="cpu", precision="fp32", seed=0):
    clip = explored.tiny_clip(seed)
    clip.model.to(PRECISIONS[precision]).to(device)  # a view follows its model
    return clip


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise)


PICTURES = [picture(seed) for seed in range(24)]
OTHERS = [picture(100 + seed) for seed in range(24)]
LABELS = [seed % len(WORDS) for seed in range(len(PICTURES))]
X = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(3))


@cache
def cpu_lens(precision):
    """What all cases of a precision compare with: fitted and described on the CPU."""
    clip = tiny_clip(precision=precision)
    lens = sl.fit(clip, PICTURES, LAYERS)
    for texts, k in DESCRIPTIONS:
        sl.describe(clip, lens, texts, k)
    return lens


UNSEEN = InMemory([picture(100 + seed) for seed in range(60)], [f"new-{i}" for i in range(60)])
"""Other pictures than those of the lens."""


class Noise:
    """Draws noise in no time, and says that it is what was wanted."""

    name, knows = "noise", None

    def draw(self, caption, subject, seed):
        return GeneratedImage(image=picture(seed), shows=(subject,))
