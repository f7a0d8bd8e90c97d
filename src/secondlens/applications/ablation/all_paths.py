"""Mean-ablation of one class of paths at a time, such as of what neurons do through keys.

A class is that of a finite change, see `finite_paths`: what neurons do by paths of it between their
means and their activations, all of them moved at once. So the classes of a layer and what the nodes
of the integral miss add up to what holding these neurons at their means does in the network.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...data.labelled import check_labels
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons, stop_after
from ...effects.all_paths import CLASSES, IMAGES_PER_PASS
from ...effects.finite_paths import moved_embeddings, whole_change
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip
from ...progress import tracked
from .accuracy import BASELINE, Ablation, Tally
from .readings import unit_embedding

TOGETHER, MISSED = "together", "missed"
"""What is ablated beside one class: all that the neurons do, as the network itself says; and what
the nodes miss of it, which should cost nothing."""


@checked
@undisturbed
@torch.no_grad()
def ablate_paths(
    clip: Clip,
    lens: Lens,
    images: Any,
    labels: Sequence[int],
    classifier: Float[Tensor, "classes dim"],
    *,
    layers: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    nodes: int = 4,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Ablation:
    """Accuracy of a zero-shot classifier without what neurons do by one class of paths.

    The kinds of the result are the classes of `paths`, `TOGETHER` and `MISSED`. Each picture costs
    about eight encodings a node and layer.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, which has the means that neurons are held at.
    images, labels, classifier
        As for `ablate`.
    layers
        By default all layers of the lens.
    neurons
        Ablate only these; by default all.
    nodes
        Of the integral between means and activations; a whole layer needs about four.
    batch_size, workers
        Images in one pass, and processes that decode them.

    Raises
    ------
    SecondLensError
        Another model's lens, labels that do not fit the images or classes, no such layer or neuron,
        none at all, no nodes, a model whose MLP is of another kind (see `linearise`), or no picture
        that can be read.
    """
    lens.check_model(clip)
    source = as_source(images)
    check_labels(labels, len(source.ids), len(classifier))
    chosen = lens.layers if layers is None else list(layers)
    some = list(range(clip.neurons)) if neurons is None else list(neurons)
    if not chosen or not some:
        raise SecondLensError("no layers or neurons leave nothing to ablate: give at least one")
    if nodes < 1:
        raise SecondLensError(f"an integral needs at least 1 node, and it has {nodes}")
    means = {layer: lens[layer].activation_mean.to(clip.device) for layer in chosen}
    for layer in chosen:
        check_neurons(clip, layer, some)
    reader = Reader(
        source=source, clip=clip, batch_size=batch_size or IMAGES_PER_PASS, workers=workers
    )
    tally = Tally(labels, classifier)
    for number, layer in enumerate(chosen):

        def read(batch: Batch, layer: int = layer) -> tuple[Tensor, Tensor, Tensor]:
            stopped = stop_after(clip, batch.on(clip.device), layer)
            change = (stopped.activation - means[layer])[:, :, some]
            write = change @ stopped.rows[some]
            found = moved_embeddings(stopped, write, nodes)
            return unit_embedding(stopped), found, whole_change(stopped, write)

        batches = tracked(reader, f"paths of layer {layer}", progress)
        for batch, (embedding, found, total) in in_parts(batches, clip, read):
            if number == 0:
                tally.see(BASELINE, embedding, batch.positions)
            removed = dict(zip(CLASSES, found.unbind(1), strict=True))
            removed |= {TOGETHER: total, MISSED: total - found.sum(1)}
            for kind, effect in removed.items():
                tally.see((layer, kind), embedding - effect, batch.positions)
    return replace(tally.ablation(), skipped=dict(reader.skipped))
