"""`secondlens export`."""

from pathlib import Path

import click

from .explore import Opening, needing_extra, with_opening
from .options import PATH, check_lens, console, hold_new

SPACE = """---
title: Neurons of CLIP
emoji: 🔍
colorFrom: blue
colorTo: yellow
sdk: static
---

Every neuron of a CLIP, by its second-order effects: made with secondlens.
"""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("site", type=PATH)
@click.option("--address", default="", help="Where it will be found, for link previews.")
@click.option("--space", is_flag=True, help="Also the settings of a static Hugging Face Space.")
@with_opening
def export(lens: Path, site: Path, address: str, space: bool, opening: Opening) -> None:
    """Write the explorer of a LENS as a static folder SITE, for any web server.

    Example: secondlens export secondlens-demo/lens site
    """
    opening.check()
    check_lens(lens)
    hold_new(site)
    with needing_extra():
        from ..explorer.export import export as write
        from ..explorer.runs import load_runs

    found = load_runs(opening.runs)
    atlas, _ = opening.lens_with_model(lens)
    more = {"README.md": SPACE.encode()} if space else {}
    write(atlas, site, address=address, runs=found, more=more, progress=True)
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    console.print(f"{site}: {len(files):,} files, {size:.1f} MB", markup=False, highlight=False)
