"""Figure 8: concepts in pictures, in words of their active neurons."""

from dataclasses import replace

from matplotlib.figure import Figure

from ..applications.discovery.finding import Discoverer
from ..report.page import model_view
from ..words.describing import describe
from .neurons import pool_setting
from .pools import WORDS_30K, lacking_notes
from .results import Result, Row, Setting, drawn
from .study import PAPER_LAYER, Study

PICTURES = 4

WORDS = 10
"""Of a picture, of a pool that has as many."""


def fig8(study: Study) -> Result:
    """What pictures show, in words of their active neurons, weighted as the paper does.

    Raises
    ------
    SecondLensError
        The study takes official effects, which discovery cannot divide among neurons.
    """
    study.check_exact()
    layer, texts = study.layer, study.texts[0]
    fitted = study.layer_lens
    lens = replace(fitted, by_layer={layer: fitted[layer]}, codes={}, scores={}, stability={})
    describe(study.clip, lens, texts, study.code_size(texts), how=study.atoms)
    discoverer = Discoverer(study.clip, lens, texts, paper=True)
    count = min(WORDS, len(texts), study.clip.dim)
    test = study.test
    positions = [i * len(test) // PICTURES for i in range(PICTURES)]
    chosen = test.at(positions)
    rows: list[Row] = []
    figure = Figure(figsize=(2.6 * PICTURES, 4.6), layout="constrained")
    grid = figure.subplots(2, PICTURES, height_ratios=(2, 3))
    view = model_view(study.clip)
    for place in range(PICTURES):
        pixels = study.pixels(chosen.source, place)
        words = discoverer(pixels[None], count)[0]
        name = chosen.classes.labels[chosen.labels[place]]
        for rank, word in enumerate(words, start=1):
            rows.append(
                {
                    "picture": chosen.source.ids[place],
                    "shows": name,
                    "rank": rank,
                    "word": word.text,
                    "weight": word.weight,
                    "active neurons behind it": word.active,
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
        title=f"concepts in {PICTURES} pictures by neurons of layer {layer}",
        rows=rows,
        settings=study.settings(
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                pool_setting("words", [texts], WORDS_30K, [WORDS_30K]),
                Setting(name="m", ours=str(study.code_size(texts)), paper="128"),
                Setting(
                    name="active",
                    ours="norm minus the mean above that of all but the top images",
                    paper="norm above the 98th percentile",
                ),
            ],
        ),
        notes=[
            "The paper shows four photographs of ImageNet, and no score.",
            *lacking_notes([texts]),
        ],
        picture=drawn(figure),
    )
