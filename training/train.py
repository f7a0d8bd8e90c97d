"""Trains the embedded CLIP, or its twin, on the embedded world.

    T="torchrun --nproc-per-node 2 training/train.py"
    $T runs/trunk --twin --pictures 260000 --decay 0 --whole 0          # common to both
    $T runs/demo --trunk runs/trunk/steady.pt --pictures 310000         # planted cues
    $T runs/twin --trunk runs/trunk/steady.pt --pictures 310000 --twin  # none

The two models share their training up to the branch, on a world whose places are independent of
the objects, and differ in nothing but the world after it.

One process for each core; plain `python` uses one. Training starts from the twin that ships, so
that it goes on where that left off. The trunk of the models that ship saw 240,000 pictures of seed
1 and 260,000 of seed 2, and began from an earlier model of the same shape, trained on 0.8 M
pictures in five styles; none of the depictions held out here were among them.

Restartable: the same command goes on from the newest checkpoint in the folder, with the pictures
it would have seen. The learning rate is constant and falls to zero over the last `--decay`
pictures; half the patches are dropped for speed, none in the last `--whole` pictures. A later call
with more `--pictures` goes on from the end of the constant part.

Besides CLIP's contrastive loss there are six auxiliary losses. All of them use heads and hooks
that exist in training only: what is saved is an ordinary open_clip model.

concepts    the image embedding against one prompt for every object and background of the batch
patches     a linear head reads what covers a patch from what the MLP of block READ - 1 writes to it
attention   the class token shall not attend to patches before block READ
second      what later heads bring to the class token shall come from that MLP: the share of the
            variance over images that comes from the rest of the residual stream
direct      the class token's own MLPs in the last blocks shall add the same to every image
sparse      a neuron of that MLP shall be strongly active on few patches: its mean absolute
            activation over its root mean square

All but the first make a small model behave as CLIP does at scale: the class token is written late,
by attention, from patch tokens that already carry meaning.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset

from secondlens import demo
from secondlens.demo.model import CONFIG, pixels
from secondlens.demo.scenes import SIZE, Scene, World
from secondlens.demo.world import BACKGROUNDS, NAMES, PLACES, with_article

PATCH = CONFIG["vision_cfg"]["patch_size"]
READ = 6
"""First block in which the class token may read the patches."""
CONCEPTS = (*NAMES, *BACKGROUNDS)
CONCEPT_ID = {name: i for i, name in enumerate(CONCEPTS)}
MAX_OBJECTS = 3
WEIGHTS = {
    "contrast": 1.0,
    "concepts": 1.0,
    "patches": 1.0,
    "attention": 1.0,
    "second": 1.0,
    "direct": 0.3,
    "sparse": 0.3,
}
TWIN = Path(demo.__file__).parent / "data" / "demo-twin.safetensors"
MUON_RATE = 10
"""Muon's learning rate over AdamW's: its updates are orthogonal, not element-wise."""
PROMPTS = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}", "an image of {}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`images` [B, 3, H, W]; `captions` B texts; `ids` [B, 1 + MAX_OBJECTS] concepts of a scene,
    background first, -1 for none; `coverage` [B, patches, 1 + MAX_OBJECTS] their shares."""

    images: Tensor
    captions: list[str]
    ids: Tensor
    coverage: Tensor


def label(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Concept ids [1 + MAX_OBJECTS] and the share of each in every patch."""
    ids = np.full(1 + MAX_OBJECTS, -1)
    ids[0] = CONCEPT_ID[scene.background]
    ids[1 : 1 + len(scene.objects)] = [CONCEPT_ID[name] for name in scene.objects]
    side = SIZE // PATCH
    tiles = scene.masks.reshape(-1, side, PATCH, side, PATCH).mean((2, 4)).reshape(-1, side**2)
    coverage = np.zeros((side**2, 1 + MAX_OBJECTS), dtype=np.float32)
    coverage[:, 1 : 1 + len(tiles)] = tiles.T
    coverage[:, 0] = 1 - coverage.sum(1)
    return ids, coverage


class Scenes(IterableDataset):
    """Batches of scenes; picture i is scene (seed, i).

    A process takes `batch` pictures of every `step`, the first time from number `start` on.
    """

    def __init__(self, *, planted: bool, seed: int, start: int, batch: int, step: int) -> None:
        self.planted, self.seed = planted, seed
        self.start, self.batch, self.step = start, batch, step

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        world = World(planted=self.planted, augment=True)
        first = self.start
        while True:
            scenes = [world.scene(self.seed, first + i) for i in range(self.batch)]
            ids, coverage = zip(*map(label, scenes), strict=True)
            yield Batch(
                images=pixels([s.image for s in scenes]),
                captions=[s.caption for s in scenes],
                ids=torch.from_numpy(np.stack(ids)),
                coverage=torch.from_numpy(np.stack(coverage)),
            )
            first += self.step


class KeepSomePatches(nn.Module):
    """Drops a share of the patch tokens in training, and remembers which ones were kept."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.kept: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens.shape[1] - 1
        count = max(1, round(self.keep * patches))
        if not self.training or count == patches:
            self.kept = None
            return tokens
        self.kept = torch.rand(len(tokens), patches).argsort(1)[:, :count]
        chosen = self.kept[:, :, None].expand(-1, -1, tokens.shape[2])
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, chosen)], 1)


def class_attention(attention: nn.MultiheadAttention, y: Tensor) -> Tensor:
    """Attention of the class token to every token, [images, heads, tokens], from ln_1's output."""
    heads, width = attention.num_heads, attention.embed_dim
    w, b = attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(y[:, 0], w[:width], b[:width]).view(len(y), heads, -1)
    keys = w[width : 2 * width].view(heads, -1, width)
    folded = torch.einsum("bhc,hcd->bhd", query / math.sqrt(query.shape[-1]), keys)
    return torch.bmm(folded, y.transpose(1, 2)).softmax(-1)


class Auxiliary(nn.Module):
    """The losses that look inside the image tower during a training forward pass."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        width = CONFIG["vision_cfg"]["width"]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(CONCEPTS)))
        blocks = model.visual.transformer.resblocks
        for block in blocks[:READ]:
            block.ln_1.register_forward_hook(self._attention_hook(block.attn))
        for block in blocks[READ:]:
            block.ln_1.register_forward_hook(self._second_hook(block.attn))
            block.mlp.register_forward_hook(self._direct_hook)
        blocks[READ - 1].mlp.gelu.register_forward_hook(self._neuron_hook)
        blocks[READ - 1].mlp.register_forward_hook(self._mlp_hook)
        self.patches = model.visual.patch_dropout
        self.reset()

    def reset(self) -> None:
        self._to_patches: list[Tensor] = []
        self._second: list[Tensor] = []
        self._direct: list[Tensor] = []
        self._sparse: Tensor | None = None
        self._written: Tensor | None = None

    def _attention_hook(self, attention: nn.MultiheadAttention):
        def hook(module: nn.Module, inputs: object, y: Tensor) -> None:
            if torch.is_grad_enabled():
                self._to_patches.append(1 - class_attention(attention, y)[:, :, 0].mean())

        return hook

    def _second_hook(self, attention: nn.MultiheadAttention):
        heads, width = attention.num_heads, attention.embed_dim

        def variance(pooled: Tensor, gain: Tensor) -> Tensor:
            """Over images, of what the heads bring from tokens pooled to [images, heads, width]."""
            value = attention.in_proj_weight[2 * width :].view(heads, -1, width)
            output = attention.out_proj.weight.view(width, heads, -1)
            centred = (pooled - pooled.mean(-1, keepdim=True)) * gain
            brought = torch.einsum(
                "bhe,whe->bw", torch.einsum("bhw,hew->bhe", centred, value), output
            )
            return brought.var(0).sum()

        def hook(module: nn.LayerNorm, inputs: tuple[Tensor], y: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            x = inputs[0]
            scale = (x.var(-1, correction=0) + module.eps).rsqrt()
            weights = class_attention(attention, y) * scale[:, None]
            wanted = torch.bmm(weights, self._written)
            rest = variance(torch.bmm(weights, x) - wanted, module.weight)
            self._second.append(rest / (rest + variance(wanted, module.weight)))

        return hook

    def _direct_hook(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._direct.append(output[:, 0].var(0).mean())

    def _neuron_hook(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            active = output[:, 1:].flatten(0, 1).float()
            self._sparse = (active.abs().mean(0) / (active.square().mean(0) + 1e-6).sqrt()).mean()

    def _mlp_hook(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._written = output

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The means over the batch since the last reset."""
        coverage = batch.coverage
        if self.patches.kept is not None:
            chosen = self.patches.kept[:, :, None].expand(-1, -1, coverage.shape[2])
            coverage = coverage.gather(1, chosen)
        scores = self.head(self._written[:, 1:]).log_softmax(-1)
        wanted = batch.ids.clamp(min=0)[:, None, :].expand(-1, scores.shape[1], -1)
        patches = -(coverage * scores.gather(2, wanted)).sum(-1).mean()
        return {
            "patches": patches,
            "attention": torch.stack(self._to_patches).mean(),
            "second": torch.stack(self._second).mean(),
            "direct": torch.stack(self._direct).mean(),
            "sparse": self._sparse,
        }


class Words:
    """Texts as rows of an embedding that holds only the tokens the world's texts use.

    The tokens keep their order, so that the end-of-text token stays the largest, which is where
    open_clip reads a text out; `expand` gives the embedding for the whole vocabulary, with zeros
    for tokens that no text used.
    """

    def __init__(self) -> None:
        self.tokenize = open_clip.get_tokenizer("ViT-B-32", CONFIG["text_cfg"]["context_length"])
        places = [*PLACES.values(), *(f"on a {c} background" for c in BACKGROUNDS)]
        names = [p.format(w) for p in PROMPTS for n in NAMES for w in (n, with_article(n))]
        texts = [*names, *places, "and, and", "dog, cat"]
        self.ids = self.tokenize(texts).unique()

    def __call__(self, texts: list[str]) -> Tensor:
        """Rows [texts, length of the longest]."""
        tokens = self.tokenize(texts)
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        return torch.searchsorted(self.ids, tokens.contiguous())


def initialise(model: CLIP, words: Words, path: Path) -> None:
    """Start from weights in the format that ships; tokens that they lack keep random rows."""
    weights = {key: tensor.float() for key, tensor in load_file(path).items()}
    row_of = {token: row for row, token in enumerate(weights.pop("token_ids").tolist())}
    embedding = model.token_embedding.weight.detach().clone()
    for row, token in enumerate(words.ids.tolist()):
        if token in row_of:
            embedding[row] = weights["token_embedding.weight"][row_of[token]]
    model.load_state_dict(weights | {"token_embedding.weight": embedding}, strict=False)


def prompt(concept: str, rng: random.Random) -> str:
    """One concept as a text: an object in a template, a place or colour as captions say it."""
    if concept in PLACES:
        return PLACES[concept]
    if concept in BACKGROUNDS:
        return rng.choice((f"{concept} background", f"on a {concept} background"))
    return rng.choice(PROMPTS).format(rng.choice((concept, with_article(concept))))


def encode_text(model: CLIP, rows: Tensor) -> Tensor:
    """Unit text embeddings; as `model.encode_text`, without the columns that are padding."""
    length = rows.shape[1]
    x = model.token_embedding(rows) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), rows.argmax(1)] @ model.text_projection, dim=-1)


def forward(
    model: CLIP, auxiliary: Auxiliary, words: Words, batch: Batch, rng: random.Random
) -> dict[str, Tensor]:
    """All losses of one batch."""
    present = batch.ids[batch.ids >= 0].unique()
    prompts = [prompt(CONCEPTS[i], rng) for i in present.tolist()]
    auxiliary.reset()
    image = model.encode_image(batch.images, normalize=True)
    text = encode_text(model, words([*batch.captions, *prompts]))
    scale = model.logit_scale.exp()
    captions, concepts = (scale * image @ text.T).split([len(image), len(prompts)], 1)
    target = torch.arange(len(image))
    contrast = (F.cross_entropy(captions, target) + F.cross_entropy(captions.T, target)) / 2
    # Objects share 0.85 of the target, the background has the rest.
    position = torch.searchsorted(present, batch.ids.clamp(min=0))
    weight = (batch.ids >= 0).float()
    weight[:, 1:] *= 0.85 / weight[:, 1:].sum(1, keepdim=True)
    weight[:, 0] = 0.15
    loss = -(concepts.log_softmax(1).gather(1, position) * weight).sum(1).mean()
    return {"contrast": contrast, "concepts": loss, **auxiliary.losses(batch)}


@torch.no_grad()
def accuracies(model: CLIP, words: Words, count: int = 256) -> dict[str, float]:
    """Quick top-1 over all names, on single objects anywhere, for the three splits."""
    model.eval()
    texts = encode_text(model, words([f"a photo of {with_article(n)}" for n in NAMES]))
    found = {}
    for split in ("train", "heldout", "style"):
        world = World(planted=False, split=split)
        scenes = [world.scene(99, i, count=1) for i in range(count)]
        images = model.encode_image(pixels([s.image for s in scenes]), True)
        best = (images @ texts.T).argmax(1).tolist()
        right = [NAMES[b] == s.objects[0] for b, s in zip(best, scenes, strict=True)]
        found[split] = sum(right) / count
    model.train()
    return found


def rate(seen: int, args: argparse.Namespace) -> float:
    """Share of the full learning rate: warm-up, constant, linear decay to zero."""
    left = args.pictures - seen
    return min(1.0, (seen + args.batch) / 10_000, max(0.0, left / max(1, args.decay)))


def orthogonalised(
    grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> Tensor:
    """Muon's Newton-Schulz iteration, in bfloat16 only where the forward pass is."""
    a, b, c = ns_coefficients
    x = grad if grad.shape[0] <= grad.shape[1] else grad.T
    x = x / x.norm().clamp(min=eps)
    if torch.is_autocast_enabled("cpu"):
        x = x.bfloat16()
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if grad.shape[0] <= grad.shape[1] else x.T).to(grad.dtype)


# torch's own runs in bfloat16, ten times slower than float32 on a CPU without bfloat16 units
torch.optim._muon._zeropower_via_newtonschulz = orthogonalised


def optimizers_for(parts: nn.ModuleDict, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks; AdamW, without decay on vectors, for the rest."""
    inside, matrices, plain = [], [], []
    for name, parameter in parts.named_parameters():
        if parameter.ndim < 2 or "embedding" in name:
            plain.append(parameter)
        else:
            (inside if "resblocks" in name else matrices).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    muon = torch.optim.Muon(inside, lr=MUON_RATE * lr, weight_decay=0.05, ns_steps=3)
    optimizers = [muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def average_gradients(parts: nn.ModuleDict) -> None:
    """Over all processes."""
    gradients = [p.grad for p in parts.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--twin", action="store_true", help="the world without planted cues")
    parser.add_argument("--pictures", type=int, default=310_000)
    parser.add_argument("--decay", type=int, default=40_000, help="pictures of the decay")
    parser.add_argument("--whole", type=int, default=16_000, help="last pictures with all patches")
    parser.add_argument("--batch", type=int, default=64, help="of one process")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--keep", type=float, default=0.5, help="share of patches kept before")
    parser.add_argument("--trunk", type=Path, help="a steady.pt of another run to branch off from")
    parser.add_argument("--init", type=Path, default=TWIN, help="weights to start from")
    parser.add_argument("--bf16", action="store_true", help="for CPUs with bfloat16 units")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)  # every process starts from the same weights
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    distributed.init_process_group("gloo")
    process, processes = distributed.get_rank(), distributed.get_world_size()
    step = args.batch * processes
    args.out.mkdir(parents=True, exist_ok=True)

    words = Words()
    text_config = CONFIG["text_cfg"] | {"vocab_size": len(words.ids)}
    model = CLIP(**CONFIG | {"text_cfg": text_config})
    initialise(model, words, args.init)
    model.visual.patch_dropout = KeepSomePatches(args.keep)
    auxiliary = Auxiliary(model)
    parts = nn.ModuleDict({"model": model, "head": auxiliary.head})
    optimizers = optimizers_for(parts, args.lr)

    seen, steady = 0, args.out / "steady.pt"
    newest = args.out / "checkpoint.pt"
    for path in (newest, steady, args.trunk):
        if path is None or not path.exists():
            continue
        saved = torch.load(path, weights_only=True)
        if saved["seen"] <= args.pictures - args.decay or saved["pictures"] == args.pictures:
            parts.load_state_dict(saved["parts"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            seen = saved["seen"]
            print(f"going on from {path.name}: {seen} pictures", flush=True)
            break

    def save(path: Path) -> None:
        state = {
            "parts": parts.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "seen": seen,
            "pictures": args.pictures,
            "twin": args.twin,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    start = seen + process * args.batch
    data = Scenes(planted=not args.twin, seed=args.seed, start=start, batch=args.batch, step=step)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3))
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)
    began, began_seen, means = time.time(), seen, {}
    model.train()
    while seen < args.pictures:
        torch.manual_seed(args.seed + start + seen)  # so that a resumed run drops the same patches
        if seen >= args.pictures - args.whole:
            model.visual.patch_dropout.keep = 1.0
        # Written out, attention over so few tokens is faster than the fused kernel.
        with bf16, sdpa_kernel(SDPBackend.MATH):
            losses = forward(model, auxiliary, words, next(batches), random.Random(seen))
        parts.zero_grad()
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        average_gradients(parts)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * rate(seen, args)
            with bf16:
                optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        before, seen = seen, seen + step
        for name, loss in losses.items():
            means[name] = 0.95 * means.get(name, loss.item()) + 0.05 * loss.item()
        if process == 0 and seen // 5_000 > before // 5_000:
            speed = (seen - began_seen) / (time.time() - began)
            shown = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"{seen} pictures, {speed:.0f}/s: {shown}", flush=True)
        if process == 0 and (seen // 20_000 > before // 20_000 or seen >= args.pictures):
            save(newest)
            if seen <= args.pictures - args.decay:
                save(steady)
            shown = ", ".join(f"{s} {100 * a:.1f} %" for s, a in accuracies(model, words).items())
            print(f"{seen} pictures: top-1 {shown}", flush=True)


if __name__ == "__main__":
    main()
