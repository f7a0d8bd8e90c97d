"""Figure 5: the pictures on which effects of neurons are largest."""

from matplotlib.figure import Figure

from ..data.sources import with_ids
from ..report.page import model_view
from . import table2
from .neurons import shown_neurons
from .results import Result, Row, Setting, drawn
from .study import PAPER_LAYER, Study

PICTURES = 10
"""Of a neuron."""


def fig5(study: Study) -> Result:
    """The pictures on which the effects of neurons are largest."""
    lens, layer = study.layer_lens, study.layer
    neurons, how = shown_neurons(study, list(table2.PAPER), 0)
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
            axes.imshow(view(study.pixels(pictures, place)))
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
