"""The page of a circuit: one file that shows the graph and what belongs to its nodes."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...data.sources import ImageSource
from ...lens.lens import Lens
from ...lens.pictures import pictures_at
from ...models.view import Clip
from ...report.page import data_uri, heat_map, model_view, write_page
from .graph import Circuit, Node

EXEMPLARS = 3
"""Of the pictures with the largest effects, for each neuron."""
SIDE = 72
"""Pixels of an exemplar."""
LISTED = 12
"""Nodes in the table that needs no scripts."""


def write_circuit(
    path: Path,
    clip: Clip,
    lens: Lens,
    circuit: Circuit,
    pixels: Tensor | None,
    source: ImageSource | None,
) -> None:
    """Write the page.

    Parameters
    ----------
    path
        An .html file.
    clip, lens, circuit
        The model, what says what neurons fire on, and the graph.
    pixels
        The one picture of the graph as the model sees it; None for a set.
    source
        The pictures of the fit, for exemplars; without them there are none.

    Raises
    ------
    SecondLensError
        The pictures of the fit lack some of the exemplars, or the file cannot be written.
    """
    exemplars, pictures = _exemplars(clip, lens, circuit, source)
    document = circuit.document()
    for each, node in zip(document["nodes"], circuit.nodes, strict=True):
        each["exemplars"] = exemplars.get(node.id, [])
        each["heat"] = None
        if node.activation is not None and pixels is not None:
            each["heat"] = _heat(clip, node)
        del each["activation"]
    strongest = sorted(circuit.neurons, key=lambda node: -abs(node.effect))[:LISTED]
    write_page(
        path,
        "circuit.html",
        title=f"Why {circuit.target}",
        circuit=circuit,
        clip=clip,
        picture=None if pixels is None else data_uri(model_view(clip)(pixels), "webp", quality=90),
        data={**document, "pictures": pictures, "layers": clip.layers, "grid": clip.grid},
        strongest=strongest,
    )


def _heat(clip: Clip, node: Node) -> str:
    assert node.activation is not None
    patches = node.activation[clip.prefix :].float().unflatten(0, clip.grid)
    return data_uri(heat_map(patches, float(patches.max())), "png")


def _exemplars(
    clip: Clip, lens: Lens, circuit: Circuit, source: ImageSource | None
) -> tuple[dict[str, list[int]], list[str]]:
    """By node, numbers of pictures; and the pictures, each once."""
    if source is None:
        return {}, []
    chosen = {
        node.id: lens[node.layer].top_images[node.number, :EXEMPLARS].tolist()
        for node in circuit.neurons
        if node.layer in lens.layers
    }
    wanted = {position for each in chosen.values() for position in each}
    found: dict[int, str] = {}
    view = model_view(clip)
    for pictures, positions in pictures_at(lens, source, None, wanted):
        for index, position in enumerate(positions):
            with torch.no_grad():
                seen = view(clip.prepare([pictures.load(index)])[0])
            small = seen.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            found[position] = data_uri(small, "webp", quality=70)
    place = {position: at for at, position in enumerate(found)}
    return (
        {id: [place[position] for position in each] for id, each in chosen.items()},
        list(found.values()),
    )
