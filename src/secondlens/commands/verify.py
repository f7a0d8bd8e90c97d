"""`secondlens verify`."""

from dataclasses import asdict

import click
from rich.table import Table

from .options import Weights, console, grouped, json_option, print_json, shape_alone


@click.command()
@click.argument("model")
@json_option
@grouped("weights", Weights)
def verify(model: str, as_json: bool, weights: Weights) -> None:
    """Check what this program knows of MODEL: parity, activation function, effects, by dtype.

    MODEL is "demo", an open_clip name, or "hf:" or "timm:" and the name or folder of a model of
    transformers or timm.
    Exits with 1 if a check fails.

    Example: secondlens verify demo
    """
    from ..models.checks import trained_activation
    from ..models.loading import load
    from ..verify import DTYPES
    from ..verify import verify as verify_clip

    with shape_alone(model, weights.pretrained):
        clip = load(model, **vars(weights), check=False)
    stated = trained_activation(model, weights.pretrained, weights.activation)
    checks = list(verify_clip(clip, stated))
    failed = [check for check in checks if not check.passed]
    if as_json:
        rows = [asdict(check) | {"passed": check.passed} for check in checks]
        report = {"model": clip.name, "weights": clip.weights_hash, "activation": clip.activation}
        print_json(report | {"passed": not failed, "checks": rows})
    else:
        table = Table(title=f"{clip.name}: largest error over largest value")
        table.add_column("rebuilt or recomputed")
        for dtype in DTYPES:
            table.add_column(dtype, justify="right")
        cells = {(check.subject, check.dtype): check for check in checks}
        for subject in dict.fromkeys(check.subject for check in checks):
            found = (cells.get((subject, dtype)) for dtype in DTYPES)
            table.add_row(
                subject,
                *("" if each is None else _cell(each.error, each.tolerance) for each in found),
            )
        console.print(table)
        console.print(f"{len(checks) - len(failed)} of {len(checks)} checks passed")
    if failed:
        raise SystemExit(1)


def _cell(error: float, tolerance: float) -> str:
    return f"{error:.1e}" if error <= tolerance else f"[red]{error:.1e} > {tolerance:.0e}[/red]"
