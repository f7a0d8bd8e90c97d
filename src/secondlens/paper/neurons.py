"""Neurons in words: which ones Tables 2 and 5 and Figure 5 show, and their strongest texts."""

from collections.abc import Iterable, Sequence

from ..data.embedding import normalise
from ..data.vocabularies import Vocabulary
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..sparse.pursuit import omp
from ..words.describing import signed
from .pools import DESCRIPTIONS, WORDS_30K, known_as, lacking_notes
from .results import Result, Row, Setting
from .study import PAPER_LAYER, PAPER_MODEL, Study

WORDS = 4
"""Texts that the tables show of a neuron."""


def strongest_texts(name: str, study: Study, paper: dict[int, str], first: int) -> Result:
    """A table of neurons in words.

    Parameters
    ----------
    paper
        The paper's neurons, and its words for them.
    first
        Elsewhere than in the paper's layer: how many of the most selective neurons another table
        has taken.
    """
    layer = study.layer
    neurons, how = shown_neurons(study, list(paper), first)
    if study.shown:
        of_paper = _is_papers(study)
        beside = [f"#{n} {paper[n]}" if of_paper and n in paper else "" for n in neurons]
    else:
        beside = [f"#{number} {words}" for number, words in paper.items()]
    rows: list[Row] = [
        {
            "neuron": f"#{neuron}",
            "texts": texts.name,
            "strongest, − pushes away": signed(_code(study, texts, layer, neuron)),
            "paper, 30,000 words": printed,
        }
        for neuron, printed in zip(neurons, beside, strict=True)
        for texts in study.texts
    ]
    sizes = ", ".join(str(study.code_size(texts)) for texts in study.texts)
    return Result(
        name=name,
        title=f"strongest texts of neurons of layer {layer}",
        rows=rows,
        notes=lacking_notes(study.texts),
        settings=study.settings(
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                how,
                pool_setting(
                    "texts",
                    study.texts,
                    f"{DESCRIPTIONS}, {WORDS_30K}",
                    [DESCRIPTIONS, WORDS_30K],
                    shown=WORDS_30K,
                ),
                Setting(name="m", ours=sizes, paper="128"),
                Setting(
                    name="text embeddings",
                    ours="as they are" if study.atoms == "unit" else "centred, columns scaled",
                    paper="as they are",
                ),
            ],
        ),
    )


def _code(study: Study, texts: Vocabulary, layer: int, neuron: int) -> Sequence[tuple[str, float]]:
    """The strongest texts of a neuron's code of m texts."""
    direction = study.layer_lens[layer].directions[[neuron]]
    atoms = normalise(texts.embed(study.clip), study.atoms).to(direction)
    indices, coefficients = omp(direction, atoms, study.code_size(texts))
    pairs = zip(indices[0].tolist(), coefficients[0].tolist(), strict=True)
    found = [(texts.labels[i], weight) for i, weight in pairs if i >= 0]
    return sorted(found, key=lambda pair: -abs(pair[1]))[:WORDS]


def pool_setting(
    name: str, pools: Sequence[Vocabulary], paper: str, needed: Iterable[str], shown: str = ""
) -> Setting:
    """The texts of a result as a setting.

    Parameters
    ----------
    name
        What the result calls it.
    pools
        Ours.
    paper, needed
        The paper's in words, and all pools that these stand for.
    shown
        The only one whose words the result shows beside ours: others may lack.
    """
    names = [known_as(texts) for texts in pools]
    complete = set(needed) <= set(names)
    return Setting(
        name=name,
        ours=paper if complete and len(names) == len(set(needed)) else ", ".join(names),
        paper=paper,
        harmless=complete or shown in names,
    )


def shown_neurons(study: Study, papers: list[int], first: int) -> tuple[list[int], Setting]:
    """Those that were named; else the paper's in its model and layer; else the most selective.

    Raises
    ------
    SecondLensError
        The model has no neuron of a number that was named.
    """
    listed = _listed(papers)
    if study.shown:
        if missing := [each for each in study.shown if each >= study.clip.neurons]:
            raise SecondLensError(
                f"layer {study.layer} has no neuron {missing[0]}: the last is "
                f"{study.clip.neurons - 1}"
            )
        return list(study.shown), Setting(name="neurons", ours=_listed(study.shown), paper=listed)
    if _is_papers(study):
        return papers, Setting(name="neurons", ours=listed, paper=listed)
    chosen = most_selective(study.layer_lens, study.layer)[first : first + len(papers)]
    return chosen, Setting(
        name="neurons", ours="those whose top images have most of the energy", paper=listed
    )


def _is_papers(study: Study) -> bool:
    return study.published == PAPER_MODEL and study.layer == PAPER_LAYER


def _listed(neurons: Sequence[int]) -> str:
    return ", ".join(f"#{neuron}" for neuron in neurons)


def most_selective(lens: Lens, layer: int) -> list[int]:
    """Neurons by the share of their energy in their top images, over that of a Gaussian."""
    fitted = lens[layer]
    ratio = fitted.selectivity / fitted.selectivity_null.clamp(min=1e-12)
    return ratio.argsort(descending=True).tolist()
