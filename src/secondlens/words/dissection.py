"""Labels from activations, to compare ours with: what the images have in common where it fires.

The idea and the formula (SoftWPMI) are those of CLIP-Dissect (arXiv 2204.10965, section 3). The
explained model's own text tower says what images show, or another CLIP as the judge: this way,
neurons of a model without texts get words. Descriptions of effects say what a neuron does to the
output; these say when it is active. Both are scored by the same `score`.
"""

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..data.embedding import normalise
from ..data.texts import source_for
from ..data.vocabularies import Vocabulary
from ..devices import undisturbed
from ..effects.projections import embed
from ..effects.streaming import stream
from ..effects.value_paths import chunks
from ..errors import SecondLensError
from ..lens.codes import Codes
from ..lens.lens import Lens
from ..models.view import Clip
from .describing import keep

SHARPNESS = 10.0
"""Of the softmax over texts, as published."""
IN_TOP = (0.998, 0.97)
"""Probability that the strongest and the weakest of the top images show the concept, as
published; linear in between."""
NUMBERS_PER_CHUNK = 2**24


@checked
@undisturbed
@torch.no_grad()
def dissect(
    clip: Clip,
    lens: Lens,
    texts: Vocabulary,
    images: Any,
    *,
    judge: Clip | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Codes:
    """Label every neuron of a lens with the one text that its most activating images share.

    An image's activation is the mean over its tokens, and the lens says how many images are a
    neuron's top. The labels are also put into the lens, as positive codes of one text, under the
    name of the vocabulary and ", by activation": `score` takes them like any description.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    texts
        What a label may be.
    images
        Those of the fit.
    judge
        The CLIP that says how well texts fit images; by default the explained model itself. Another
        one reads the images a second time, as its own preprocessing makes them: give pictures then,
        and no tensor. Its texts are not of the space of the neurons' directions, so `Codes.cosine`
        is NaN.

    Raises
    ------
    SecondLensError
        Another model's lens, a model without texts and no judge, or fewer readable images than the
        lens has top images.
    """
    lens.check_model(clip)
    rows = texts.embed(judge or clip)  # first: a model without texts says so before it reads images
    source = source_for(clip, images)
    embeddings: list[Tensor] = []
    positions: list[int] = []
    means: dict[int, list[Tensor]] = {layer: [] for layer in lens.layers}
    for batch in stream(
        *(clip, source, lens.layers),
        batch_size=batch_size,
        workers=workers,
        keep_activations=True,
        what="activations",
        progress=progress,
    ):
        embeddings.append(batch.embedding.cpu())
        positions += batch.positions
        for layer, activation in batch.pooled.activations.items():
            means[layer].append(activation.mean(1).cpu())
    if len(positions) < lens.top:
        raise SecondLensError(
            f"{len(positions)} readable images are fewer than the {lens.top} top images of the "
            "lens: give the images of the fit"
        )
    shown = torch.cat(embeddings)
    if judge is not None:
        shown = embed(judge, source, batch_size=batch_size, workers=workers)[positions]
    log_texts = (SHARPNESS * shown.to(rows) @ rows.T).log_softmax(dim=1)
    atoms = normalise(rows)
    indices, coefficients, cosine = {}, {}, {}
    for layer in lens.layers:
        strongest = torch.cat(means[layer]).T.topk(lens.top, dim=1).indices
        label = soft_wpmi(log_texts, strongest.to(rows.device)).argmax(dim=1)
        indices[layer] = label[:, None].cpu()
        coefficients[layer] = torch.ones(len(label), 1)
        own = lens[layer].directions.to(atoms)
        cosine[layer] = (
            F.cosine_similarity(atoms[label], own, dim=1).cpu()
            if judge is None
            else torch.full((len(label),), torch.nan)
        )
    codes = Codes(
        labels=texts.labels,
        normalise="centred",
        indices=indices,
        coefficients=coefficients,
        brief={layer: weights.clone() for layer, weights in coefficients.items()},
        cosine=cosine,
    )
    keep(lens, by_activation(texts), codes)
    return codes


def by_activation(texts: Vocabulary) -> Vocabulary:
    """The same texts under the name of their labels from activations."""
    return Vocabulary(
        name=f"{texts.name}, by activation", labels=texts.labels, prompts=texts.prompts
    )


def soft_wpmi(
    log_texts: Float[Tensor, "images texts"], strongest: Int[Tensor, "neurons top"]
) -> Float[Tensor, "neurons texts"]:
    """How much more likely each text is given a neuron's top images than given any neuron's.

    log p(t | B_n) - log mean over n of p(t | B_n), with log p(t | B_n) the sum over the top images
    x of log(1 + p(x in B_n) (p(t | x) - 1)).

    Parameters
    ----------
    log_texts
        log p(t | x).
    strongest
        The top images of each neuron, strongest first.
    """
    top = strongest.shape[1]
    inside = torch.linspace(*IN_TOP, top, dtype=log_texts.dtype, device=log_texts.device)
    given = log_texts.new_empty(len(strongest), log_texts.shape[1])
    for some in chunks(len(strongest), max(1, NUMBERS_PER_CHUNK // (top * log_texts.shape[1]))):
        matches = log_texts[strongest[some]].exp() - 1
        given[some] = (inside[:, None] * matches).log1p().sum(1)
    return given - (given.logsumexp(0) - log(len(given)))
