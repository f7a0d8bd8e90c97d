"""The neurons that the demo shows: those of the layer that matters most, the clearest first."""

from ..ablate.ablation import Ablation
from ..demo.world import NAMES
from ..describe.summary import Neuron
from ..lens import Lens

CARDS = 24
"""In the report, of either kind."""
SELECTIVE = 2
"""How many times a Gaussian's share of the energy the top images of a selective neuron have."""


def deciding_layer(lens: Lens, ablation: Ablation) -> int:
    """The layer without whose second-order effects accuracy is lowest."""
    return min(lens.layers, key=lambda layer: ablation.accuracy(layer, "all"))


def selective(lens: Lens, ablation: Ablation, neurons: list[Neuron]) -> list[Neuron]:
    """Neurons of the deciding layer that are `SELECTIVE`; all neurons if they are few."""
    fitted = lens[layer := deciding_layer(lens, ablation)]
    selective = fitted.selectivity > SELECTIVE * fitted.selectivity_null
    found = [n for n in neurons if n.layer == layer and selective[n.neuron]]
    return found if len(found) >= 2 * CARDS else neurons


def clearest(neurons: list[Neuron], count: int) -> list[Neuron]:
    """The neurons whose positive words find their images best, by the low end of the interval."""
    return sorted(neurons, key=lambda n: -n.score_interval[0] if n.score == n.score else 1)[:count]


def most_polysemous(neurons: list[Neuron], count: int) -> list[Neuron]:
    """Of the clearer half, the neurons with the most concepts."""
    clear = clearest(neurons, len(neurons) // 2)
    return sorted(clear, key=lambda n: -n.polysemy)[:count]


def about_objects(neuron: Neuron) -> bool:
    """Whether the strongest word that a neuron speaks for is an object: no colour or place."""
    return next((word in NAMES for word, weight in neuron.words if weight > 0), False)


def by_subject(neurons: list[Neuron]) -> tuple[list[Neuron], list[Neuron]]:
    """Those about objects, and those about colours and places.

    Every picture has one background, but few have any given object: scores of the two are not to
    be compared.
    """
    objects = [n for n in neurons if about_objects(n)]
    return objects, [n for n in neurons if not about_objects(n)]


def chosen(neurons: list[Neuron]) -> list[Neuron]:
    """What the report shows: the clearest neurons of either subject, then the most polysemous."""
    objects, others = by_subject(neurons)
    best = clearest(objects, CARDS * 2 // 3) + clearest(others, CARDS // 3)
    return best + [n for n in most_polysemous(objects, 2 * CARDS) if n not in best][:CARDS]
