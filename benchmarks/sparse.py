"""Sparse codes of many targets: `omp` against scikit-learn, in time and memory.

    python benchmarks/sparse.py
    python benchmarks/sparse.py --targets 512 --texts 32 --json sparse.json

Both get the same unit rows, the same float32 and the same number of threads. scikit-learn codes a
sample of the targets, once with a fresh copy of the Gram matrix for each target, as its
`SparseCoder` does, and once in place; its time for all of them is extrapolated. On a machine that
is busy with other work, `--clock processor` counts only the time spent on this.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import orthogonal_mp_gram
from threadpoolctl import threadpool_limits

from secondlens.sparse.dictionary import product_dtype
from secondlens.sparse.pursuit import omp

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@click.command()
@click.option("--targets", default=3072, show_default=True, help="Directions to code.")
@click.option("--atoms", default=30_000, show_default=True, help="Texts to choose from.")
@click.option("--dim", default=512, show_default=True, help="Width of both.")
@click.option("--texts", "sizes", default=(32, 128), multiple=True, show_default=True)
@click.option("--sample", default=4, show_default=True, help="Targets that scikit-learn codes.")
@click.option("--threads", default=1, show_default=True, help="For both.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True)
@click.option("--json", "out", type=Path, help="Also write the numbers to this file.")
def main(
    targets: int,
    atoms: int,
    dim: int,
    sizes: tuple[int, ...],
    sample: int,
    threads: int,
    clock: str,
    out: Path | None,
) -> None:
    """Time `omp` and scikit-learn side by side."""
    now = CLOCKS[clock]
    torch.set_num_threads(threads)
    x, dictionary = unit_rows(targets, dim, seed=0), unit_rows(atoms, dim, seed=1)
    product = str(product_dtype(x.device)).removeprefix("torch.")
    rows, codes = [], {}
    for k in sorted(sizes):  # small first: the peak of memory never falls
        before = peak_bytes()
        start = now()
        codes[k], _ = omp(x, dictionary, k)
        seconds = now() - start
        rows.append({"texts": k, "seconds": seconds, "peak_bytes": peak_bytes() - before})
    for row, earlier in zip(rows[1:], rows, strict=False):
        row["peak_bytes"] += earlier["peak_bytes"]
    with threadpool_limits(threads):
        start = now()
        gram = dictionary.numpy() @ dictionary.numpy().T
        products = dictionary.numpy() @ x[:sample].numpy().T
        gram_seconds = now() - start
        for row in rows:
            row |= scikit_learn(now, gram, products, row["texts"], codes[row["texts"]])
        for row in rows:  # last, because it leaves the Gram matrix permuted
            row["in_place_seconds_each"] = in_place(now, gram, products, row["texts"])
    for row in rows:
        for way in ("copying", "in_place"):
            total = gram_seconds + targets * row[f"{way}_seconds_each"]
            row |= {f"{way}_seconds": total, f"{way}_ratio": total / row["seconds"]}
    found = {
        "targets": targets,
        "atoms": atoms,
        "dim": dim,
        "sample": sample,
        "threads": threads,
        "clock": clock,
        "product_dtype": product,
        "gram_seconds": gram_seconds,
        "gram_bytes": gram.nbytes,
        "runs": rows,
    }
    show(found)
    if out:
        out.write_text(json.dumps(found, indent=1))


def unit_rows(count: int, dim: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return rows.div_(rows.norm(dim=1, keepdim=True))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scikit_learn(
    now: Callable[[], float], gram: np.ndarray, products: np.ndarray, k: int, indices: torch.Tensor
) -> dict:
    """Median seconds a target with a copy of the Gram matrix for each, and how many agree."""
    seconds, same = [], 0
    for xy, expected in zip(products.T, indices, strict=False):
        start = now()
        # symmetric, and its transpose is column-major, as scikit-learn needs it
        code = orthogonal_mp_gram(gram.T, xy, n_nonzero_coefs=k)
        seconds.append(now() - start)
        same += set(code.nonzero()[0].tolist()) == set(expected.tolist())
    return {"copying_seconds_each": statistics.median(seconds), "same_texts": same}


def in_place(now: Callable[[], float], gram: np.ndarray, products: np.ndarray, k: int) -> float:
    """Median seconds a target without a copy: codes after the first are not of these texts."""
    seconds = []
    for xy in products.T:
        start = now()
        orthogonal_mp_gram(gram.T, xy.copy(), n_nonzero_coefs=k, copy_Gram=False)
        seconds.append(now() - start)
    return statistics.median(seconds)


def show(found: dict) -> None:
    table = Table(
        title=f"{found['targets']:,} targets, {found['atoms']:,} texts, {found['dim']} dimensions, "
        f"float32, {found['threads']} threads, products in {found['product_dtype']}, "
        f"{found['clock']} time"
    )
    for name in (
        *("texts", "omp", "memory", "scikit-learn, copying", "ratio", "in place", "ratio"),
        "same texts",
    ):
        table.add_column(name, justify="right")
    for row in found["runs"]:
        table.add_row(
            str(row["texts"]),
            f"{row['seconds']:.1f} s",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['copying_seconds']:,.0f} s",
            f"{row['copying_ratio']:.0f} x",
            f"{row['in_place_seconds']:,.0f} s",
            f"{row['in_place_ratio']:.1f} x",
            f"{row['same_texts']} of {found['sample']}",
        )
    Console().print(table)
    Console().print(
        f"Gram matrix: {found['gram_bytes'] / 1e9:.1f} GB, {found['gram_seconds']:.1f} s. "
        f"scikit-learn's times are extrapolated from {found['sample']} targets."
    )


if __name__ == "__main__":
    main()
