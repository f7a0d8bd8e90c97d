"""Tables of what neurons fire on."""

from rich.markup import escape
from rich.table import Table

from ..lens.names import Names

EXAMPLES = 3
"""Neurons of each layer that are shown."""


def coverage_table(names: Names) -> Table:
    """How many neurons of each layer have a name, or several."""
    table = Table(
        title=f"What neurons fire on: {escape(names.name)}, {len(names.image_ids)} pictures"
    )
    for column in ("layer", "neurons", "with a name", "with two or more", "three or more"):
        table.add_column(column, justify="right")
    if names.confirmed:
        table.add_column(f"names that rose in {names.pairs} pairs", justify="right")
    shares = [names.coverage(count) for count in (1, 2, 3)]
    for layer in sorted(names.texts):
        found = [f"{100 * each[layer]:.0f} %" for each in shares]
        if names.confirmed:
            right = names.confirmed[layer][names.texts[layer] >= 0]
            found.append(f"{100 * float(right.float().mean()):.0f} %" if len(right) else "–")
        table.add_row(str(layer), str(len(names.texts[layer])), *found)
    return table


def example_table(names: Names) -> Table:
    """The neurons of each layer whose first name finds their images best."""
    table = Table(
        title=f"The surest names; area under ROC, pictures of the {names.shown} strongest"
    )
    for column in ("neuron", "fires on"):
        table.add_column(column)
    for layer in sorted(names.texts):
        first = names.auc[layer][:, 0].nan_to_num(-1.0)
        order = first.argsort(descending=True, stable=True)[:EXAMPLES].tolist()
        for neuron in (each for each in order if first[each] >= 0):
            found = (
                f"{escape(each.text)} ({each.auc:.2f}, {each.held})"
                for each in names.of(layer, neuron)
            )
            table.add_row(f"L{layer} #{neuron}", ", ".join(found))
    return table
