"""Direct effects of whole attention layers, and what is left without them (Figures 11 and 12)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...arguments import checked
from ...data.labelled import check_labels
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.capture import Post, read_post
from ...effects.value_paths import output_map
from ...errors import SecondLensError
from ...models.view import Clip, Images, hooked
from ...progress import tracked
from .accuracy import BASELINE, Ablation, Tally

FIRST_ORDER_KINDS = ("from the first", "alone")
"""Which attention layers lose their direct effects: all up to this one, or this one."""


@torch.no_grad()
def attention_effects(
    clip: Clip, images: Images
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images layers dim"]]:
    """Unit embeddings, and the part of each that every attention layer writes straight to it.

    The part of layer j is scale * (g_post * C(a_j)) P, with a_j what its attention, biases
    included, adds to the class token.

    Raises
    ------
    SecondLensError
        Images that `Clip.prepare` refuses.
    """
    clip.check_direct("direct effects of attention")
    dtype = clip.compute_dtype
    written: dict[int, Tensor] = {}
    post: list[Post] = []

    def see(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        written[j] = clip.batch_major(output).to(dtype)

    def see_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        post.append(read_post(clip, inputs[0], output))

    hooks = [(block.attention_end, partial(see, j)) for j, block in enumerate(clip.blocks)]
    with hooked([*hooks, (clip.ln_post, see_output)]):
        representation = clip.encode_image(images).to(dtype)
    scale = 1 / (post[0].sigma * representation.norm(dim=-1))
    sigma = post[0].token_sigma
    direct = [clip.reader.direct(written[j], sigma) for j in range(clip.layers)]
    layers = torch.stack(direct, dim=1)
    effects = layers @ output_map(clip, dtype, centred=True) * scale[:, None, None]
    return F.normalize(representation, dim=-1), effects


@checked
@undisturbed
@torch.no_grad()
def ablate_attention(
    clip: Clip,
    images: Any,
    labels: Sequence[int],
    classifier: Float[Tensor, "classes dim"],
    reference: Any,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Ablation:
    """Accuracy with direct effects of attention layers mean-ablated, alone and from the first on.

    Parameters
    ----------
    clip
        The model.
    images, labels, classifier
        As for `ablate`.
    reference
        The pictures that means come from: what `fit` takes.

    Raises
    ------
    SecondLensError
        Labels that do not fit the images or classes, or no picture that can be read.
    """
    source = as_source(images)
    check_labels(labels, len(source.ids), len(classifier))

    def reader_of(pictures: Any) -> Reader:
        return Reader(source=as_source(pictures), clip=clip, batch_size=batch_size, workers=workers)

    def read(reader: Reader, what: str) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
        batches = tracked(reader, what, progress)
        return in_parts(batches, clip, lambda batch: attention_effects(clip, batch.on(clip.device)))

    total, count = torch.zeros((), device=clip.device), 0
    for batch, (_, effects) in read(reader_of(reference), "mean effects of attention"):
        total = total + effects.sum(0)
        count += len(batch.positions)
    if not count:
        raise SecondLensError("none of the reference pictures could be read")
    tally = Tally(labels, classifier)
    reader = reader_of(source)
    for batch, (embedding, effects) in read(reader, "attention ablations"):
        away = effects - total / count
        tally.see(BASELINE, embedding, batch.positions)
        for kind, removed in zip(FIRST_ORDER_KINDS, (away.cumsum(1), away), strict=True):
            for j in range(clip.layers):
                tally.see((j, kind), embedding - removed[:, j], batch.positions)
    return replace(tally.ablation(), skipped=dict(reader.skipped))
