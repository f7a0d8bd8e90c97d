"""Trains the CLIP of the second world, or its twin, by contrast between pictures and captions.

    python training/contrastive.py runs/trunk --pictures 4000000 --decay 0
    python training/contrastive.py runs/demo --start runs/trunk/steady.safetensors --planted \\
        --pictures 6000000
    python training/contrastive.py runs/twin --start runs/trunk/steady.safetensors \\
        --pictures 6000000

Both share their training up to the branch, on a world whose places are independent of the objects,
and differ in nothing but the world after it. There is one loss, CLIP's. A second process draws.

The same command goes on from `checkpoint.safetensors` in the folder, one file of less than 30 MB
that is replaced at once, with the pictures it would have seen; `--hours` ends a stage. The file
holds weights in float32 and the optimiser's moments in bfloat16. `log.csv` gains a row with every
checkpoint. The learning rate is constant, and falls to zero over the last `--decay` pictures;
`steady.safetensors` is kept from before it falls, to branch off from or to go on for longer.

Half the patches are dropped, none in the last `--whole` pictures. What is trained are the
parameters of an ordinary open_clip model; the passes are written out here because that is twice as
fast on a CPU.
"""

import argparse
import copy
import csv
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from world.captions import PREFIXES, SAYING, where
from world.companions import COMPANIONS, LOOSE
from world.letters import UNWRITTEN, WRITTEN
from world.scenes import SIZE, Scene, World

from secondlens.demo.world import BACKGROUNDS, NAMES, with_article

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": SIZE,
        "layers": 8,
        "width": 192,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
    "quick_gelu": False,
}
"""open_clip's configuration of the model."""

SEED = 1
"""Of the pictures trained on; picture i is scene (SEED, i)."""
EXAM_SEED = 99
AUGMENT, RAMP = 0.5, 500_000
"""Share of cut-outs that are varied strongly, and the pictures over which it rises from none. Where
all are from the start, learning hardly takes off: after 15,000 pictures of 40 names 9 % of varied
pictures are named rightly, 14 % where half were varied and 17 % where none was."""
KEPT = 31
"""Patches of 64 that are kept while half are dropped: with the class token 32 tokens."""
MEAN, STD = 0.5, 0.25
PROMPTS = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}", "an image of {}")
WARM_UP = 20_000
"""Pictures until the full learning rate."""


class Words:
    """Texts as rows of an embedding that holds only the tokens the world's texts use.

    The tokens keep their order, so that the end-of-text token stays the largest, which is where
    open_clip reads a text out.
    """

    def __init__(self) -> None:
        tokenize = open_clip.get_tokenizer("ViT-B-32", CONFIG["text_cfg"]["context_length"])
        texts = (*PREFIXES, *PROMPTS, *SAYING, *map(where, BACKGROUNDS), *BACKGROUNDS, *LOOSE)
        texts = (*texts, *map(with_article, NAMES), *COMPANIONS, "and, with background")
        words = {word for text in texts for word in self._split(text.replace("{}", ""))}
        tokens = {word: [t for t in tokenize([word])[0].tolist() if t] for word in sorted(words)}
        self.ids = torch.tensor(sorted({t for found in tokens.values() for t in found}))
        row = {token: number for number, token in enumerate(self.ids.tolist())}
        self._rows = {word: [row[t] for t in found[1:-1]] for word, found in tokens.items()}
        self._start, self._end = row[tokens["a"][0]], row[tokens["a"][-1]]

    @staticmethod
    def _split(text: str) -> list[str]:
        return re.findall(r"[a-z]+|,", text)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows [texts, length of the longest], each text closed by the largest of its rows."""
        room = CONFIG["text_cfg"]["context_length"] - 2
        inside = ([r for w in self._split(text) for r in self._rows[w]] for text in texts)
        found = [[self._start, *line[:room], self._end] for line in inside]
        rows = torch.zeros(len(found), max(map(len, found)), dtype=torch.long)
        for text, line in enumerate(found):
            rows[text, : len(line)] = torch.tensor(line)
        return rows


def patches(images: np.ndarray) -> Tensor:
    """Pictures [B, size, size, 3] cut into patches [B, patches, 3 * side * side], both uint8."""
    side = CONFIG["vision_cfg"]["patch_size"]
    cut = torch.from_numpy(images).unflatten(1, (-1, side)).unflatten(3, (-1, side))
    return cut.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


class Drawn(IterableDataset):
    """Batches of patches [B, patches, values] and captions as rows, from picture `start` on."""

    def __init__(self, *, planted: bool, start: int, batch: int) -> None:
        self.planted, self.start, self.batch = planted, start, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.set_num_threads(1)
        world = World(planted=self.planted)
        words, first = Words(), self.start
        while True:
            world.augment = AUGMENT * min(1, first / RAMP)
            scenes = [world.scene(SEED, first + i) for i in range(self.batch)]
            images = np.stack([np.asarray(scene.image) for scene in scenes])
            yield patches(images), words([scene.caption for scene in scenes])
            first += self.batch


def blocks(x: Tensor, transformer: nn.Module, mask: Tensor | None = None) -> Tensor:
    """As open_clip's transformer on x [B, T, width]; products written out are faster here."""
    count, length, width = x.shape
    for block in transformer.resblocks:
        attention = block.attn
        heads = attention.num_heads
        y = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = y.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query * (heads / width) ** 0.5) @ key.transpose(-1, -2)
        shares = (scores if mask is None else scores + mask).softmax(-1)
        brought = (shares @ value).transpose(1, 2).reshape(count, length, width)
        x = x + attention.out_proj(brought)
        x = x + block.mlp(block.ln_2(x))
    return x


def encode_image(model: CLIP, cut: Tensor, kept: Tensor | None = None) -> Tensor:
    """Embeddings [B, d], not normalised, of patches [B, patches, values] in uint8.

    `kept` [B, some] are the patches to use; by default all of them.
    """
    tower = model.visual
    kind = tower.class_embedding.dtype
    position = tower.positional_embedding[1:].expand(len(cut), -1, -1)
    if kept is not None:
        cut = cut.gather(1, kept[:, :, None].expand(-1, -1, cut.shape[2]))
        position = position.gather(1, kept[:, :, None].expand(-1, -1, position.shape[2]))
    values = cut.to(kind).div_(255 * STD).sub_(MEAN / STD)
    x = F.linear(values, tower.conv1.weight.flatten(1)) + position
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
    x = blocks(tower.ln_pre(torch.cat([first, x], 1)), tower.transformer)
    return tower.ln_post(x[:, 0]) @ tower.proj


def encode_text(model: CLIP, rows: Tensor) -> Tensor:
    """Embeddings [texts, d], not normalised; padding beyond the longest text is left out."""
    length = rows.shape[1]
    x = model.token_embedding(rows) + model.positional_embedding[:length]
    x = blocks(x, model.transformer, model.attn_mask[:length, :length].to(x.dtype))
    return model.ln_final(x[torch.arange(len(x)), rows.argmax(1)]) @ model.text_projection


def unit(vectors: Tensor) -> Tensor:
    """Of length one, in float32."""
    return F.normalize(vectors.float(), dim=-1)


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss for unit embeddings [B, d] each."""
    scores, target = scale.exp() * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Muon on [n, rows, columns]: singular values go to about one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class Optimiser:
    """Muon for the matrices inside blocks, AdamW for the rest; gradients in any precision.

    Query, key and value are orthogonalised one by one. Matrices of one shape go together.
    """

    def __init__(self, model: CLIP, *, rate: float, kind: torch.dtype) -> None:
        self.rate, self.kind, self.steps = rate, kind, 0
        self.muon: dict[str, nn.Parameter] = {}
        self.adam: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            inside = "resblocks" in name and parameter.ndim == 2
            (self.muon if inside else self.adam)[name] = parameter
        self.momentum = {name: torch.zeros_like(p.data) for name, p in self.muon.items()}
        self.first = {name: torch.zeros_like(p.data) for name, p in self.adam.items()}
        self.second = {name: torch.zeros_like(p.data) for name, p in self.adam.items()}

    def state(self) -> dict[str, Tensor]:
        """All moments in bfloat16."""
        parts = {"momentum": self.momentum, "first": self.first, "second": self.second}
        return {
            f"{part}.{name}": t.bfloat16()
            for part, found in parts.items()
            for name, t in found.items()
        }

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Goes on from `state()` after a number of steps."""
        self.steps = steps
        for part in ("momentum", "first", "second"):
            for name, tensor in getattr(self, part).items():
                tensor.copy_(state[f"{part}.{name}"])

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], share: float) -> None:
        """One step at this share of the full learning rate."""
        self.steps += 1
        self._muon(gradients, share * self.rate * 10)
        self._adam(gradients, share * self.rate)

    def _muon(self, gradients: dict[str, Tensor], rate: float) -> None:
        shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for name, parameter in self.muon.items():
            gradient, momentum = gradients[name].float(), self.momentum[name]
            momentum.lerp_(gradient, 0.05)
            wanted, parts = gradient.lerp(momentum, 0.95), 3 if "in_proj" in name else 1
            for piece, half in zip(parameter.chunk(parts), wanted.chunk(parts), strict=True):
                shapes.setdefault((piece.shape[0], piece.shape[1]), []).append((piece, half))
        for (rows, columns), found in shapes.items():
            updates = orthogonal(torch.stack([half for _, half in found]).to(self.kind)).float()
            for (piece, _), update in zip(found, updates, strict=True):
                piece.mul_(1 - 0.05 * rate)
                piece.sub_(update, alpha=rate * max(1, rows / columns) ** 0.5)

    def _adam(self, gradients: dict[str, Tensor], rate: float) -> None:
        for name, parameter in self.adam.items():
            gradient = gradients[name].float()
            first, second = self.first[name], self.second[name]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.02)
            scale = (second / (1 - 0.98**self.steps)).sqrt_().add_(1e-8)
            if parameter.ndim > 1:
                parameter.mul_(1 - 0.05 * rate)
            parameter.addcdiv_(first, scale, value=-rate / (1 - 0.9**self.steps))


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Pictures [B, patches, values] to name, and the index of each right answer in NAMES."""

    cut: Tensor
    answers: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene], answers: Sequence[str]) -> "Exam":
        images = np.stack([np.asarray(scene.image) for scene in scenes])
        return cls(cut=patches(images), answers=torch.tensor([NAMES.index(a) for a in answers]))


def exams(count: int) -> dict[str, Exam]:
    """Pictures of one object in four splits, written words alone, and typographic attacks.

    `attacked` are the pictures of `compositions` with a foreign word, which is the answer.
    """
    clean = {
        name: World(planted=False, words=0, split=split)
        for name, split in (
            ("compositions", "train"),
            ("heldout", "heldout"),
            ("style", "style"),
            ("older", "older"),
        )
    }
    found = {}
    for name, world in clean.items():
        scenes = [world.scene(EXAM_SEED, i, count=1) for i in range(count)]
        found[name] = Exam.of(scenes, [s.objects[0] for s in scenes])
        if name == "compositions":
            words = [
                Random(i).choice([w for w in WRITTEN if w not in s.objects])
                for i, s in enumerate(scenes)
            ]
            attacked = [
                world.scene(EXAM_SEED, i, objects=s.objects, background=s.background, word=word)
                for i, (s, word) in enumerate(zip(scenes, words, strict=True))
            ]
            found["attacked"] = Exam.of(attacked, words)
    for name, fonts, table in (
        ("words", "train", WRITTEN),
        ("fonts", "heldout", WRITTEN),
        ("unwritten", "train", UNWRITTEN),
    ):
        world = World(planted=False, fonts=fonts)
        words = [Random(i).choice(table) for i in range(count)]
        scenes = [world.scene(EXAM_SEED, i, objects=[], word=w) for i, w in enumerate(words)]
        found[name] = Exam.of(scenes, words)
    return found


@torch.no_grad()
def best_names(model: CLIP, words: Words, sheets: dict[str, Exam]) -> dict[str, Tensor]:
    """For every exam the index in NAMES of what the model calls each picture."""
    prompts = [[p.format(f) for p in PROMPTS for f in (n, with_article(n))] for n in NAMES]
    texts = unit(encode_text(model, words([p for found in prompts for p in found])))
    classes = unit(texts.view(len(NAMES), -1, texts.shape[1]).mean(1))
    found = {}
    for name, exam in sheets.items():
        images = torch.cat([encode_image(model, cut) for cut in exam.cut.split(128)])
        found[name] = (unit(images) @ classes.T).argmax(1)
    return found


def mark(model: CLIP, words: Words, sheets: dict[str, Exam]) -> dict[str, float]:
    """Top-1 over all names for every exam; `flips` is the share of pictures named rightly
    without a word that are named by the word with it."""
    found = best_names(model, words, sheets)
    right = {name: found[name] == exam.answers for name, exam in sheets.items()}
    flips = right.pop("attacked")[right["compositions"]].float().sum().item()
    marks = {name: answers.float().mean().item() for name, answers in right.items()}
    return marks | {"flips": flips / max(1, int(right["compositions"].sum()))}


def share_of_rate(seen: int, args: argparse.Namespace) -> float:
    """Of the full learning rate: warm-up, constant, linear decay to zero."""
    left = args.pictures - seen
    return min(1.0, (seen + args.batch) / WARM_UP, left / max(1, args.decay))


def write(path: Path, tensors: dict[str, Tensor], **facts: float) -> None:
    """A checkpoint that is either there in full or not at all."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What `write` wrote."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["facts"])


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a checkpoint."""
    return {k.removeprefix("weight."): t for k, t in tensors.items() if k.startswith("weight.")}


class Log:
    """One row for every checkpoint; rows after the checkpoint that is gone on from are dropped."""

    def __init__(self, path: Path, seen: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["pictures"]) <= seen]

    def add(self, row: dict[str, str]) -> None:
        self.rows.append(row)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--planted", action="store_true", help="the world with planted cues")
    parser.add_argument("--pictures", type=int, default=6_000_000)
    parser.add_argument("--decay", type=int, default=600_000, help="pictures of the decay")
    parser.add_argument("--whole", type=int, default=100_000, help="last pictures with all patches")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3, help="AdamW's; Muon's is ten times it")
    parser.add_argument("--start", type=Path, help="a checkpoint of another run to go on from")
    parser.add_argument("--minutes", type=float, default=8, help="between checkpoints")
    parser.add_argument("--hours", type=float, default=2, help="until this stage ends")
    parser.add_argument("--exam", type=int, default=256, help="pictures of each exam")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)

    words = Words()
    text_config = CONFIG["text_cfg"] | {"vocab_size": len(words.ids)}
    model = CLIP(**CONFIG | {"text_cfg": text_config})
    kind = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    optimiser = Optimiser(model, rate=args.rate, kind=kind)
    newest, steady = args.out / "checkpoint.safetensors", args.out / "steady.safetensors"
    seen, seconds = 0, 0.0
    if resumed := next((p for p in (newest, args.start) if p is not None and p.exists()), None):
        tensors, facts = read(resumed)
        weights = weights_of(tensors)
        model.load_state_dict(weights, strict=False)
        optimiser.restore(tensors, int(facts["steps"]))
        seen, seconds = int(facts["pictures"]), facts["seconds"]
        print(f"going on from {resumed}: {seen} pictures", flush=True)
    log, sheets = Log(args.out / "log.csv", seen), exams(args.exam)

    working = copy.deepcopy(model).to(kind)
    pairs = dict(model.named_parameters())
    copies = dict(working.named_parameters())
    data = Drawn(planted=args.planted, start=seen, batch=args.batch)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3))
    end = time.monotonic() + 3600 * args.hours
    began, last, losses = time.monotonic(), time.monotonic(), []

    def save(path: Path) -> None:
        held = {f"weight.{name}": p.detach() for name, p in pairs.items()}
        facts = {"pictures": seen, "seconds": seconds + time.monotonic() - began}
        write(path, held | optimiser.state(), steps=optimiser.steps, **facts)

    while seen < args.pictures and time.monotonic() < end:
        with torch.no_grad():
            torch._foreach_copy_(list(copies.values()), list(pairs.values()))
        cut, rows = next(batches)
        kept = None
        if seen < args.pictures - args.whole or args.decay == 0:
            dice = torch.Generator().manual_seed(seen)
            kept = torch.rand(cut.shape[:2], generator=dice).argsort(1)[:, :KEPT]
        images, texts = encode_image(working, cut, kept), encode_text(working, rows)
        loss = contrast(unit(images), unit(texts), model.logit_scale)
        loss.backward()
        gradients = {name: p.grad for name, p in copies.items()}
        gradients["logit_scale"] = model.logit_scale.grad
        if seen <= args.pictures - args.decay < seen + args.batch:
            save(steady)
        optimiser.step(gradients, share_of_rate(seen, args))
        working.zero_grad()
        model.logit_scale.grad = None
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        seen += args.batch
        losses.append(loss.item())
        now = time.monotonic()
        if now - last > 60 * args.minutes or seen >= args.pictures or now >= end:
            save(newest)
            spent = seconds + now - began
            row = {
                "pictures": str(seen),
                "seconds": f"{spent:.0f}",
                "a_second": f"{len(losses) * args.batch / (now - last):.0f}",
                "loss": f"{sum(losses) / len(losses):.4f}",
                "scale": f"{model.logit_scale.exp().item():.1f}",
            }
            row |= {k: f"{100 * v:.1f}" for k, v in mark(working, words, sheets).items()}
            log.add(row)
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            last, losses = time.monotonic(), []


if __name__ == "__main__":
    main()
