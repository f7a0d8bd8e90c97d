"""Trains two small towers on the embedded world, whose output a pool or the mean of patches reads.

    python training/readers.py pool tests/readers-pool.safetensors
    python training/readers.py mean tests/readers-mean.safetensors

They are for tests: what a lens says of such towers has to make sense on a model that sees things,
and not only add up. The text tower is the embedded CLIP's, which stays as it is, so that only the
image tower is saved. Minutes on one core; the same seed gives the same tower on the same machine.
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

import secondlens as sl
from secondlens.demo.model import CONFIG, PIXEL_MEAN, PIXEL_STD
from secondlens.demo.scenes import World
from secondlens.demo.world import NAMES, with_article

TOWER = {"image_size": 64, "patch_size": 8, "width": 96, "head_width": 24, "layers": 4}
READERS = {
    "pool": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 1},
    "mean": {"pool_type": "avg", "final_ln_after_pool": True},
}
NO_TEXTS = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
SCALE, RATE, BATCH = 20.0, 2e-3, 256


def built(reader: str) -> CustomTextCLIP:
    """The model with random weights."""
    vision = TOWER | READERS[reader]
    return CustomTextCLIP(CONFIG["embed_dim"], vision, dict(NO_TEXTS))


def drawn(count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Scenes as 8-bit pixels [count, 3, 64, 64], their first objects, and their captions."""
    world = World(planted=False, augment=True)
    pixels, objects, captions = torch.empty(count, 3, 64, 64, dtype=torch.uint8), [], []
    for number in range(count):
        scene = world.scene(11, number)
        raw = torch.frombuffer(bytearray(scene.image.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels[number] = raw.view(64, 64, 3).permute(2, 0, 1)
        objects.append(NAMES.index(scene.objects[0]))
        captions.append(scene.caption)
    return pixels, torch.tensor(objects), captions


def main() -> None:
    """Train one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("out")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    began = time.monotonic()
    pixels, objects, captions = drawn(given.pictures)
    teller = sl.load("demo-twin")
    texts = teller.encode_text(captions)
    names = teller.encode_text([f"a photo of {with_article(name)}" for name in NAMES])
    print(f"{given.pictures} scenes drawn in {time.monotonic() - began:.0f} s", flush=True)
    tower = built(given.reader).visual
    optimiser = torch.optim.AdamW(tower.parameters(), lr=RATE, weight_decay=0.05)
    steps = given.epochs * (given.pictures // BATCH)
    step = 0
    for epoch in range(given.epochs):
        right = 0
        for some in torch.randperm(given.pictures)[: given.pictures // BATCH * BATCH].split(BATCH):
            for group in optimiser.param_groups:
                warm, cosine = min(1, step / 200), (1 + math.cos(math.pi * step / steps)) / 2
                group["lr"] = RATE * warm * cosine
            images = (pixels[some].float() / 255 - PIXEL_MEAN) / PIXEL_STD
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = tower(images)
            embedded = F.normalize((output[0] if isinstance(output, tuple) else output).float())
            by_caption = SCALE * embedded @ texts[some].T
            by_name = SCALE * embedded @ names.T
            right += int((by_name.argmax(1) == objects[some]).sum())
            loss = F.cross_entropy(by_name, objects[some])
            loss = loss + F.cross_entropy(by_caption, torch.arange(len(some)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        seconds = time.monotonic() - began
        print(f"epoch {epoch}: {100 * right / given.pictures:.1f} %, {seconds:.0f} s", flush=True)
        state = {name: weight.half() for name, weight in tower.state_dict().items()}
        save_file(state, given.out)


if __name__ == "__main__":
    main()
