"""Neurons in words and pictures: Tables 2 and 5, and Figures 5 and 8."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ..applications.discovery import Discoverer
from ..data.embedding import normalise
from ..data.reader import Reader
from ..data.sources import ImageSource, with_ids
from ..data.vocabularies import Vocabulary
from ..lens.lens import Lens
from ..report.page import model_view
from ..sparse.pursuit import omp
from ..words.describing import describe, signed
from .results import Result, Row, Setting, drawn
from .study import PAPER_LAYER, PAPER_MODEL, Study

WORDS = 4
"""Texts that Tables 2 and 5 show of a neuron."""

PICTURES = 10
"""Top images that Figure 5 shows of a neuron, and words that Figure 8 shows of an image."""

IMAGES = 4
"""Of Figure 8."""

PAPER_TABLE2 = {
    4: "+snowy +frost +closings +advent",
    391: "+woodworking −swelling +cedar +heirloom",
    2137: "+refreshments +gelatin +sour +cosmopolitan",
    2914: "+motorhome +yacht +cirrus +cabriolet",
}
PAPER_TABLE5 = {
    600: "+tents +svalbard +miles −mountainous",
    974: "+runners +races −dolphin +expiration",
    1517: "+bus −filings −percussion +wheelchairs",
    2002: "−genres +governance +'gravel +conserve",
}
"""Neurons of layer 9, and the paper's words for them out of 30,000 common ones."""


def table2(study: Study) -> Result:
    """The strongest texts of four neurons."""
    return _words("table2", study, PAPER_TABLE2, first=0)


def table5(study: Study) -> Result:
    """The strongest texts of four more."""
    return _words("table5", study, PAPER_TABLE5, first=len(PAPER_TABLE2))


def fig5(study: Study) -> Result:
    """The pictures on which the effects of neurons are largest."""
    lens, layer = study.lens, study.layer
    neurons, how = _neurons(study, list(PAPER_TABLE2), 0)
    count = min(PICTURES, lens.top)
    fitted = lens[layer]
    rows: list[Row] = []
    figure = Figure(figsize=(1.1 * count, 1.25 * len(neurons)), layout="constrained")
    grid = figure.subplots(len(neurons), count, squeeze=False)
    view = model_view(study.clip)
    for neuron, line in zip(neurons, grid, strict=True):
        positions = fitted.top_images[neuron, :count].tolist()
        pictures = with_ids(study.fit_source, [lens.image_ids[p] for p in positions])
        line[0].set_ylabel(f"#{neuron}", fontsize=9)
        for place, axes in enumerate(line):
            axes.imshow(view(_pixels(study, pictures, place)))
            axes.set_xticks([])
            axes.set_yticks([])
            rows.append(
                {
                    "layer": layer,
                    "neuron": neuron,
                    "rank": place + 1,
                    "picture": pictures.ids[place],
                    "norm": float(fitted.top_norms[neuron, place]),
                }
            )
    return Result(
        name="fig5",
        title=f"top pictures of neurons of layer {layer}",
        rows=rows,
        settings=study.settings(
            more=[
                how,
                Setting(name="pictures from", ours="the fit", paper="10 % of ImageNet validation"),
            ],
            layers=(str(layer), str(PAPER_LAYER)),
        ),
        notes=["Norms are of effects minus their mean over all pictures."],
        picture=drawn(figure),
    )


def fig8(study: Study) -> Result:
    """What pictures show, in words of their active neurons, weighted as the paper does."""
    layer, texts = study.layer, study.texts[0]
    lens = replace(
        study.lens, by_layer={layer: study.lens[layer]}, codes={}, scores={}, stability={}
    )
    describe(study.clip, lens, texts, study.code_size(texts), how=study.atoms)
    discoverer = Discoverer(study.clip, lens, texts, paper=True)
    test = study.test
    positions = [i * len(test) // IMAGES for i in range(IMAGES)]
    chosen = test.at(positions)
    rows: list[Row] = []
    figure = Figure(figsize=(2.6 * IMAGES, 4.6), layout="constrained")
    grid = figure.subplots(2, IMAGES, height_ratios=(2, 3))
    view = model_view(study.clip)
    for place in range(IMAGES):
        pixels = _pixels(study, chosen.source, place)
        words = discoverer(pixels[None], PICTURES)[0]
        name = chosen.classes.labels[chosen.labels[place]]
        for rank, word in enumerate(words, start=1):
            rows.append(
                {
                    "picture": chosen.source.ids[place],
                    "shows": name,
                    "rank": rank,
                    "word": word.text,
                    "weight": word.weight,
                    "active neurons behind it": len(word.neurons),
                }
            )
        above, below = grid[0][place], grid[1][place]
        above.imshow(view(pixels))
        above.set_title(name, fontsize=9)
        above.axis("off")
        below.barh([w.text for w in reversed(words)], [w.weight for w in reversed(words)])
        below.tick_params(labelsize=8)
    return Result(
        name="fig8",
        title=f"concepts in {IMAGES} pictures by neurons of layer {layer}",
        rows=rows,
        settings=study.settings(
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                Setting(name="words", ours=texts.name, paper="30,000 common words"),
                Setting(name="m", ours=str(study.code_size(texts)), paper="128"),
                Setting(
                    name="active",
                    ours="norm minus the mean above that of all but the top images",
                    paper="norm above the 98th percentile",
                ),
            ],
        ),
        notes=["The paper shows four photographs of ImageNet, and no score."],
        picture=drawn(figure),
    )


def _pixels(study: Study, source: ImageSource, place: int) -> Float[Tensor, "3 height width"]:
    """A picture as the model sees it."""
    reader = Reader(source=source, clip=study.clip, positions=[place])
    batches = list(reader)
    reader.check_read()
    return batches[0].pixels[0]


def _words(name: str, study: Study, paper: dict[int, str], first: int) -> Result:
    layer = study.layer
    neurons, how = _neurons(study, list(paper), first)
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
        settings=study.settings(
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                how,
                Setting(
                    name="texts",
                    ours=", ".join(texts.name for texts in study.texts),
                    paper="about 28,000 descriptions of classes, 30,000 common words",
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
    direction = study.lens[layer].directions[[neuron]]
    atoms = normalise(texts.embed(study.clip), study.atoms).to(direction)
    indices, coefficients = omp(direction, atoms, study.code_size(texts))
    pairs = zip(indices[0].tolist(), coefficients[0].tolist(), strict=True)
    found = [(texts.labels[i], weight) for i, weight in pairs if i >= 0]
    return sorted(found, key=lambda pair: -abs(pair[1]))[:WORDS]


def _neurons(study: Study, papers: list[int], first: int) -> tuple[list[int], Setting]:
    """The paper's neurons in its model and layer, and elsewhere the most selective ones."""
    listed = ", ".join(f"#{neuron}" for neuron in papers)
    if study.model == PAPER_MODEL and study.layer == PAPER_LAYER:
        return papers, Setting(name="neurons", ours=listed, paper=listed)
    chosen = most_selective(study.lens, study.layer)[first : first + len(papers)]
    return chosen, Setting(
        name="neurons", ours="those whose top images have most of the energy", paper=listed
    )


def most_selective(lens: Lens, layer: int) -> list[int]:
    """Neurons by the share of their energy in their top images, over that of a Gaussian."""
    fitted = lens[layer]
    ratio = fitted.selectivity / fitted.selectivity_null.clamp(min=1e-12)
    return ratio.argsort(descending=True).tolist()
