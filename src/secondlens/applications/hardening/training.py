"""The last blocks of an image tower, trained on pictures that mislead it.

With unit embeddings e of the model that is trained and t of the model before, unit embeddings W of
the classes, and the scale k that the model multiplies cosines by, a step lowers

    cross-entropy of k W e on pictures of attacks, whose classes are known
    + keep * k * mean of (1 - e.t) on usual pictures, whose classes are not asked for

so that the text tower stays, and embeddings of usual pictures stay where they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...arguments import checked
from ...data.reader import Batch, Reader
from ...data.sources import ImageSource, as_source
from ...devices import undisturbed
from ...errors import SecondLensError
from ...models.view import Clip
from ...progress import tracked
from ..adversarial.runs import Attacked
from ..editing.weights import copied

SCALE = 100.0
"""What cosines are multiplied by where a model does not say: CLIP's own, after training."""
IMAGES = 32
"""Of each kind in a step, by default."""
LARGEST_GRADIENT = 1.0
"""Norm at which gradients are cut off, as is usual for transformers."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained."""

    blocks: int = 2
    """Blocks that are trained, the last ones, with the norm after them."""
    steps: int = 150
    learning_rate: float = 1e-4
    """The highest one: it rises over the first tenth of the steps and falls as a cosine does."""
    keep: float = 1.0
    """Weight of staying near the model before, on usual pictures; 0 does not look at them."""
    batch_size: int = IMAGES
    """Pictures of attacks in a step, and as many usual ones."""
    seed: int = 0
    """Of the order of the pictures."""

    def __post_init__(self) -> None:
        if min(self.blocks, self.steps, self.batch_size) < 1:
            raise SecondLensError("training needs at least one block, one step and one picture")
        if not (0 < self.learning_rate < float("inf") and 0 <= self.keep < float("inf")):
            raise SecondLensError(
                "the learning rate must be above 0, and the weight of usual pictures 0 or more"
            )
        if self.seed < 0:
            raise SecondLensError(f"a seed is 0 or more, and this one is {self.seed}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Hardened:
    """A model that was trained on attacks, and how that went."""

    clip: Clip
    """The trained model: a copy, as ordinary as the model itself."""
    training: Training
    before: str
    """Name of the model that was trained."""
    before_hash: str
    """Its `weights_hash`."""
    attacks: int
    """Pictures of attacks that were given."""
    usual: int
    losses: tuple[tuple[float, float], ...]
    """Of each step: cross-entropy on attacks, and the mean of 1 - cosine with the model before."""

    def __repr__(self) -> str:
        return f"Hardened({self.before}, {self.training.steps} steps on {self.attacks} pictures)"


@checked
@undisturbed
def harden(
    clip: Clip,
    attacks: Attacked,
    usual: Any,
    *,
    training: Training | None = None,
    progress: bool = False,
) -> Hardened:
    """Train a copy of a model on pictures of attacks, near the model itself on usual pictures.

    The same pictures, model and settings give the same weights on the same machine. The text tower
    is not changed, nor is what comes before the last blocks.

    Parameters
    ----------
    clip
        A model in float32 or wider, with a text tower.
    attacks
        What `attacked` finds in the folders of attacks: pictures, and the class of each.
    usual
        What `fit` takes: pictures as they usually are; their classes are not asked for.
    training
        By default `Training()`.

    Raises
    ------
    SecondLensError
        More blocks than the model has, half precision, no picture that can be read, or a loss that
        is not finite.
    UnsupportedModel
        A text tower.
    """
    training = training or Training()
    clip.check_images("training on attacks")
    check_trainable(clip, training)
    source = as_source(usual)
    classifier = attacks.pictures.classes.embed(clip)
    changed = copied(clip)
    parameters = _trained(changed, training.blocks)
    losses = _train(clip, changed, parameters, classifier, attacks, source, training, progress)
    for given, each in zip(clip.model.parameters(), changed.model.parameters(), strict=True):
        each.requires_grad_(given.requires_grad).grad = None
    return Hardened(
        clip=changed,
        training=training,
        before=clip.name,
        before_hash=clip.weights_hash,
        attacks=len(attacks.pictures),
        usual=len(source.ids),
        losses=tuple(losses),
    )


def check_trainable(clip: Clip, training: Training) -> None:
    """Raise `SecondLensError` if a model cannot be trained so."""
    if training.blocks > clip.layers:
        raise SecondLensError(
            f"{clip.name} has {clip.layers} blocks, and {training.blocks} cannot be trained: name "
            "fewer"
        )
    if torch.finfo(clip.dtype).bits < 32:
        raise SecondLensError(
            f"{clip.name} is in half precision, in which small steps are lost: load it in float32"
        )


def _trained(changed: Clip, blocks: int) -> list[nn.Parameter]:
    """What is trained: of the last blocks and of the norm after them."""
    changed.model.requires_grad_(False)
    modules = [block.module for block in changed.blocks[-blocks:]]
    if changed.normalises:
        modules.append(changed.ln_post)
    parameters: dict[int, nn.Parameter] = {}
    for module in modules:
        parameters |= {id(each): each for each in module.parameters()}
    for each in parameters.values():
        each.requires_grad_(True)
    return list(parameters.values())


def _train(
    clip: Clip,
    changed: Clip,
    parameters: Sequence[nn.Parameter],
    classifier: Float[Tensor, "classes dim"],
    attacks: Attacked,
    usual: ImageSource,
    training: Training,
    progress: bool,
) -> list[tuple[float, float]]:
    labels = torch.tensor(attacks.pictures.labels, device=clip.device)
    scale = _scale(clip)
    optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate(training.steps))
    seeds = np.random.SeedSequence(training.seed).spawn(2)
    misleading, plain = (
        endless(source, clip, training.batch_size, seed)
        for source, seed in zip((attacks.pictures.source, usual), seeds, strict=True)
    )
    losses = []
    for _ in tracked(range(training.steps), "training", progress):
        batch = next(misleading)
        with torch.enable_grad():
            cosines = _unit(changed, batch, classifier) @ classifier.T
            loss = wrong = F.cross_entropy(scale * cosines, labels[batch.positions])
            moved = loss.new_zeros(())
            if training.keep:
                batch = next(plain)
                with torch.no_grad():
                    before = _unit(clip, batch, classifier)
                moved = (1 - (_unit(changed, batch, classifier) * before).sum(-1)).mean()
                loss = wrong + training.keep * scale * moved
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        losses.append((float(wrong.detach()), float(moved.detach())))
        if not torch.isfinite(loss):
            raise SecondLensError(
                f"the loss is not finite after {len(losses)} steps: name a smaller learning rate"
            )
        torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimiser.step()
        schedule.step()
    return losses


def _unit(clip: Clip, batch: Batch, like: Tensor) -> Float[Tensor, "images dim"]:
    """Unit embeddings, with gradients where they are asked for."""
    pixels = batch.on(clip.device).to(clip.dtype)
    return F.normalize(clip.image_tower(pixels).to(like), dim=-1)


def _scale(clip: Clip) -> float:
    stated = getattr(clip.model, "logit_scale", None)
    return SCALE if stated is None else float(stated.detach().exp())


def _rate(steps: int) -> Any:
    """Share of the learning rate at a step."""
    rise = max(1, steps // 10)

    def at(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + float(np.cos(np.pi * (step - rise) / max(1, steps - rise))))

    return at


def endless(
    source: ImageSource, clip: Clip, batch_size: int, seed: np.random.SeedSequence
) -> Iterator[Batch]:
    """Whole batches of a source in ever new orders, without the pictures that cannot be read.

    Raises
    ------
    SecondLensError
        None of them can.
    """
    rng = np.random.default_rng(seed)
    reader = Reader(source=source, clip=clip, batch_size=batch_size)
    count = len(source.ids)
    while True:
        # as many whole rounds as a batch needs, so that a small source fills one too
        rounds = -(-batch_size // max(1, count))
        order = np.concatenate([rng.permutation(count) for _ in range(rounds)]).tolist()
        whole = order[: len(order) // batch_size * batch_size]
        read = 0
        for batch in replace(reader, positions=whole):
            read += len(batch.positions)
            yield batch
        if not read:
            raise SecondLensError("none of the pictures to train on can be read")
