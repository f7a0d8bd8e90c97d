"""Search over many neurons: milliseconds a query.

python benchmarks/search.py
python benchmarks/search.py --neurons 10000 --dim 512 --json search.json
"""

import json
import statistics
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from secondlens.words.searching import strongest


@click.command()
@click.option("--neurons", default=100_000, show_default=True)
@click.option("--layers", default=24, show_default=True, help="The neurons are spread over these.")
@click.option("--dim", default=768, show_default=True)
@click.option("--queries", default=50, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "out", type=Path, help="Also write the numbers to this file.")
def main(neurons: int, layers: int, dim: int, queries: int, threads: int, out: Path | None) -> None:
    """Time exact search with embedded queries: what a text costs beyond its embedding."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(neurons, dim, generator=generator), dim=1)
    by_layer = dict(enumerate(rows.tensor_split(layers)))
    elapsed, busy = [], []
    for query in F.normalize(torch.randn(queries, dim, generator=generator), dim=1):
        start, start_busy = time.perf_counter(), time.process_time()
        strongest(by_layer, query, 20)
        elapsed.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - start_busy))
    found = {
        "neurons": neurons,
        "dim": dim,
        "threads": threads,
        "median_ms": statistics.median(elapsed),
        "worst_ms": max(elapsed),
        "median_processor_ms": statistics.median(busy),
    }
    click.echo(
        f"{neurons:,} neurons, {dim} dimensions, {threads} threads: median "
        f"{found['median_ms']:.1f} ms, worst {found['worst_ms']:.1f} ms of {queries} queries; "
        f"processor time {found['median_processor_ms']:.1f} ms"
    )
    if out:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
