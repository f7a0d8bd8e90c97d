"""Labels from activations, to compare ours with: what the images have in common where it fires.

The idea and the formula (SoftWPMI) are those of CLIP-Dissect (arXiv 2204.10965, section 3), with
the explained model's own text tower. Descriptions of effects say what a neuron does to the output;
these say when it is active. Both are scored by the same `score`.
"""

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..data.embedding import normalise
from ..data.vocabularies import Vocabulary
from ..devices import undisturbed
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
    images
        Those of the fit.

    Raises
    ------
    SecondLensError
        Another model's lens, or fewer readable images than the lens has top images.
    """
    lens.check_model(clip)
    embeddings: list[Tensor] = []
    means: dict[int, list[Tensor]] = {layer: [] for layer in lens.layers}
    for batch in stream(
        *(clip, images, lens.layers),
        batch_size=batch_size,
        workers=workers,
        keep_activations=True,
        what="activations",
        progress=progress,
    ):
        embeddings.append(batch.embedding.cpu())
        for layer, activation in batch.pooled.activations.items():
            means[layer].append(activation.mean(1).cpu())
    count = sum(map(len, embeddings))
    if count < lens.top:
        raise SecondLensError(
            f"{count} readable images are fewer than the {lens.top} top images of the lens: give "
            "the images of the fit"
        )
    rows = texts.embed(clip)
    log_texts = (SHARPNESS * torch.cat(embeddings).to(rows) @ rows.T).log_softmax(dim=1)
    atoms = normalise(rows)
    indices, coefficients, cosine = {}, {}, {}
    for layer in lens.layers:
        strongest = torch.cat(means[layer]).T.topk(lens.top, dim=1).indices
        label = soft_wpmi(log_texts, strongest.to(rows.device)).argmax(dim=1)
        indices[layer] = label[:, None].cpu()
        coefficients[layer] = torch.ones(len(label), 1)
        own = lens[layer].directions.to(atoms)
        cosine[layer] = F.cosine_similarity(atoms[label], own, dim=1).cpu()
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
