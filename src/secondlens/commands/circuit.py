"""`secondlens circuit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import (
    PATH,
    ChosenModel,
    check_lens,
    check_parents,
    check_pictures,
    console,
    hold,
    json_option,
    print_json,
    with_model,
)
from .search import layer_and_neuron
from .together import check_together, missing, when

if TYPE_CHECKING:
    from ..applications.circuits.graph import Circuit

SCENES = 256
"""Of the embedded world, against which edges count where no pictures are named."""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("photos", type=PATH)
@click.option("--text", help='What is explained: the score of a text, such as "a ship".')
@click.option("--rather-than", help="The margin above the score of this text instead.")
@click.option(
    "--neuron", help="Or the activation of a neuron where it is strongest, such as 9:123."
)
@click.option(
    "--against",
    type=click.Path(),
    help="Pictures from whose mean neurons differ; for the embedded models, scenes by default.",
)
@click.option(
    "--minus", type=PATH, help="Pictures whose mean graph is subtracted: what is new in PHOTOS."
)
@click.option(
    "--nodes", type=click.IntRange(1), default=64, show_default=True, help="Neurons at most."
)
@click.option(
    "--heads", type=click.IntRange(0), default=8, show_default=True, help="Heads at most."
)
@click.option(
    "--edges", type=click.IntRange(1), default=400, show_default=True, help="Edges at most."
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="In place of --edges: the fewest that keep this share of what is explained, such as 0.9.",
)
@click.option(
    "--gain",
    type=click.Choice(["secant", "tangent"]),
    default="secant",
    show_default=True,
    help="Of neurons: over the difference to their means, or at the picture.",
)
@click.option("--top", type=click.IntRange(1), default=15, show_default=True, help="Table rows.")
@click.option("--page", type=PATH, help="Also write a page that shows the graph.")
@json_option
@with_model
def circuit(
    lens: Path,
    photos: Path,
    text: str | None,
    rather_than: str | None,
    neuron: str | None,
    against: str | None,
    minus: Path | None,
    nodes: int,
    heads: int,
    edges: int,
    share: float | None,
    gain: Any,
    top: int,
    page: Path | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Show through which neurons of a LENS a picture, or all PHOTOS of a folder, get their score.

    The graph has neurons, patches and heads as nodes; an edge is what one does through another,
    exactly, compared with the mean over other pictures. What is pruned is there as the rest.

    Example: secondlens circuit secondlens-demo/lens photo.png --text "a ship"
    """
    unit = None if neuron is None else layer_and_neuron(neuron)
    check_together(
        when((text is None) == (unit is None), "give either --text or --neuron, not both or none"),
        when(rather_than is not None and text is None, "--rather-than needs a --text"),
        when(
            share is not None and (neuron is not None or minus is not None),
            "--share is of a --text and one set of pictures, without --neuron or --minus",
        ),
        missing(model.model, "a circuit of", {"--against": against}),
    )
    check_parents(page)
    check_lens(lens)
    check_pictures(photos, minus, against)
    hold(page)
    from ..applications.circuits.page import write_circuit
    from ..applications.circuits.tracing import circuit as traced
    from ..explorer.opening import own_pictures
    from ..lens.lens import Lens
    from ..paper.study import TEST_SEED, scenes

    fitted = Lens.load(lens)
    clip = model.load()
    fitted.check_model(clip)
    means: Any = against
    if against is None:
        means = scenes(TEST_SEED, SCENES, planted=model.model == "demo").source
    target: Any = unit or (text if rather_than is None else (text, rather_than))
    found = traced(
        *(clip, fitted, photos, target, means),
        minus=minus,
        nodes=nodes,
        heads=heads,
        edges=edges,
        share=share,
        gain=gain,
        progress=True,
    )
    if page is not None:
        pixels = clip.prepare(photos)[0] if len(found.image_ids) == 1 else None
        write_circuit(page, clip, fitted, found, pixels, own_pictures(fitted, fitted.image_ids))
    if as_json:
        print_json(found.document())
        return
    console.print(node_table(found, top))
    console.print(edge_table(found, top))
    console.print(f"The graph has {len(found.neurons):,} neurons.", highlight=False)
    for each in found.checks:
        console.print(
            f"With attention {each.attention}, the network with all other edges at their means "
            f"comes {100 * each.share:.1f} % of the way from {each.held:+.4f} to "
            f"{found.score:+.4f}.",
            highlight=False,
        )


def node_table(found: "Circuit", top: int) -> Table:
    """What neurons and the rest do, the strongest first."""
    title = f"{found.target}: {found.score:+.4f}, and {found.held:+.4f} with all edges held"
    table = Table(title=escape(title))
    table.add_column("neuron")
    table.add_column("fires on")
    for name in ("does in all", "on the graph"):
        table.add_column(name, justify="right")
    for node in sorted(found.neurons, key=lambda each: -abs(each.effect))[:top]:
        table.add_row(node.id, escape(node.title), f"{node.effect:+.4f}", f"{node.kept:+.4f}")
    return table


def edge_table(found: "Circuit", top: int) -> Table:
    """The strongest edges, and the head that carries most of each."""
    table = Table(title=f"Strongest of {len(found.edges):,} edges, of {found.possible:,} there are")
    for name in ("from", "to", "weight", "by head"):
        table.add_column(name, justify="right" if name == "weight" else "left")
    names = {node.id: f"{node.id} {node.title}" for node in found.neurons}
    drawn = [each for each in found.edges if each.kind in ("value", "query", "key")]
    for each in sorted(drawn, key=lambda edge: -abs(edge.weight))[:top]:
        by: str = each.kind if each.kind != "value" else ""
        if each.heads:
            by = f"{each.heads[0].layer}:{each.heads[0].head} {each.heads[0].weight:+.4f}"
        ends = (escape(names.get(end, end)) for end in (each.source, each.receiver))
        table.add_row(*ends, f"{each.weight:+.4f}", by)
    return table
