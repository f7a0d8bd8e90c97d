"""All paths: what they cost, how well they add up, and how well they foretell an ablation.

    python benchmarks/paths.py                    # the embedded model: how true
    python benchmarks/paths.py --model ViT-B-32   # random weights of that shape: how costly
    python benchmarks/paths.py --scores           # attention scores from pairs of neurons

Cost is processor time of one run over that of an encoding, for all neurons of all layers.
Foretelling is the correlation, over neurons and pictures, between what a neuron does along the
direction of the picture's class and what changes there when it is held at its mean at every token.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import secondlens as sl
from secondlens.commands.process import keep_freed_memory
from secondlens.data.vocabularies import object_names
from secondlens.demo.scenes import Scenes, World
from secondlens.effects.ablated_runs import sample
from secondlens.effects.all_paths import CLASSES, VALUE, backward
from secondlens.effects.linearised import linearise

FIT_SEED, TEST_SEED = 1, 2


def best(work: Callable[[], Any], runs: int = 3) -> float:
    """Return the processor seconds of the fastest run."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


class Operations(TorchDispatchMode):
    """Counts inside it. torch's own counter hooks gradients and takes no `autograd.grad`."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if (count := flop_registry.get(function.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def operations(work: Callable[..., Any], *arguments: Any) -> int:
    """Return the floating-point operations of a run, by torch's count of its products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel, which is not counted
    with sdpa_kernel(SDPBackend.MATH), Operations() as counted:
        work(*arguments)
    torch.backends.mha.set_fastpath_enabled(fast)
    return counted.total


def cost(name: str) -> None:
    """Print the price of all neurons of all layers, in encodings."""
    keep_freed_memory()
    clip = sl.from_open_clip(open_clip.create_model(name).eval(), check=False)
    images = torch.randn(8, 3, *clip.image_size)
    texts = F.normalize(torch.randn(4, clip.dim), dim=-1)
    layers = list(range(clip.layers))

    def work(count: int) -> None:
        dict(backward(linearise(clip, images), texts[:count], layers))

    def value_alone() -> None:
        sl.paths(clip, images, directions=texts[:1], classes="value")

    encoding, counted = (
        best(lambda: clip.encode_image(images)),
        operations(clip.encode_image, images),
    )
    one, four, value = (
        best(each) / encoding for each in (lambda: work(1), lambda: work(4), value_alone)
    )
    few = operations(value_alone) / counted
    least, most = operations(work, 1) / counted, operations(work, 4) / counted
    print(f"{name}: an encoding {counted / len(images) / 1e9:.1f} GFLOP an image")
    for what, seconds, flops in (
        ("value paths alone, one text, forward pass included", value, few),
        ("one text, forward pass included", one, least),
        ("each further text", (four - one) / 3, (most - least) / 3),
    ):
        print(f"{name}: {what} {seconds:.2f} encodings, {flops:.2f} in FLOPs")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over everything."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def truth(neurons: int, pictures: int) -> None:
    """Print remainders and correlations for every layer of the embedded model."""
    clip = sl.load("demo")
    world = World()
    means = sl.fit(clip, Scenes(world, FIT_SEED, 256))
    scenes = [world.scene(TEST_SEED, i) for i in range(pictures)]
    images = torch.stack([clip.preprocess(scene.image) for scene in scenes])
    names = object_names().embed(clip)
    best_names = (F.normalize(clip.encode_image(images), dim=-1) @ names.T).argmax(-1)
    directions = names[best_names] - names.mean(0)
    chosen = sample(clip, neurons)
    print(f"{neurons} neurons a layer, {pictures} pictures, each along its own class")
    print("layer  one: missed at K=3  worst  layer: missed, K  value path  all, K=1  all, K=3")
    for layer in means.layers:
        mean = means[layer].activation_mean
        rows: list[tuple[Tensor, ...]] = []
        missed, whole = [], []
        for image, direction in zip(images.split(1), directions.split(1), strict=True):
            finite = sl.finite_paths(
                clip, image, layer, chosen, mean, directions=direction, nodes=3
            )
            moved = sl.finite_paths(
                *(clip, image, layer, range(clip.neurons), mean),
                directions=direction,
                together=True,
                tolerance=0.01,
            )
            once = sl.finite_paths(clip, image, layer, chosen, mean, directions=direction, nodes=1)
            size = finite.total.square().mean().sqrt()
            missed.append((finite.remainder.abs() / size).flatten())
            whole.append((moved.missed, moved.nodes))
            rows.append((finite.effects, once.effects, finite.total))
        effects, by_one_node, total = (torch.cat(each) for each in zip(*rows, strict=True))
        value = correlation(effects[..., VALUE], total)
        errors = torch.cat(missed)
        print(
            f"{layer:5}  {100 * errors.median():.5f} %  {100 * errors.max():.4f} %  "
            f"{100 * max(m for m, _ in whole):.2f} %, {max(k for _, k in whole)}  {value:.3f}  "
            f"{correlation(by_one_node.sum(-1), total):.5f}  "
            f"{correlation(effects.sum(-1), total):.5f}"
        )
    print("classes:", ", ".join(CLASSES))


def scores() -> None:
    """Print how well parts of attention scores add up, over all heads of the embedded model."""
    clip = sl.load("demo")
    picture = clip.preprocess(World().scene(TEST_SEED, 0).image)[None].double()
    clip.model.double()
    worst = 0.0
    for layer in range(clip.layers):
        for head in range(clip.heads):
            for token in (None, 0, clip.tokens // 2):
                found = sl.why_attention(clip, picture, layer, head, token)
                for parts in (found.by_query, found.by_key, found.by_group):
                    worst = max(worst, abs(float(parts.sum()) - found.score))
    print(f"attention scores from their parts, float64: largest error {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="print the cost on random weights of this open_clip model")
    parser.add_argument("--scores", action="store_true", help="print how attention scores add up")
    parser.add_argument("--neurons", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.model:
        cost(options.model)
    elif options.scores:
        scores()
    else:
        truth(options.neurons, options.pictures)
