"""`secondlens share` and `secondlens pull`."""

import shutil
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..errors import SecondLensError
from ..terminal import notes
from .options import PATH, check_lens, check_new, console, hold_new
from .together import check_together, when


def _follow_quiet() -> None:
    """The hub's library has progress bars of its own."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if notes().quiet:
        disable_progress_bars()


class _UnlessTo(click.Option):
    """Must be given, except where a folder is given with `--to`."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """What was given, or None beside a folder."""
        # some versions of click have a mark of their own for what is not given
        if self.value_is_missing(value) and isinstance(ctx.params.get("to"), Path):
            return None
        return super().process_value(ctx, value)


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--repo", cls=_UnlessTo, required=True, help="The repository, such as user/name, if not --to."
)
@click.option("--to", type=PATH, is_eager=True, help="Instead of a repository: a new folder here.")
@click.option("--private", is_flag=True, help="If the repository is new: only for its owner.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and send nothing.")
def share(lens: Path, repo: str | None, to: Path | None, private: bool, dry_run: bool) -> None:
    """Send a LENS to the Hugging Face hub, or into a folder, with a card that says what it is.

    What goes is shown first. Log in with hf auth login, or set HF_TOKEN. Names of the images go
    along, no picture does; of names that are paths on this machine, the last part.

    Example: secondlens share secondlens-demo/lens --repo user/name
    """
    twice = repo is not None and to is not None
    check_together(
        when(twice, "share goes to one place: name --repo or --to"),
        when(private and repo is None, "a folder is as private as you keep it: drop --private"),
    )
    check_lens(lens)
    if dry_run:
        check_new(to)
    else:
        hold_new(to)
    from ..lens.hub import prepared, push
    from ..lens.lens import Lens
    from ..storage.files import whole_folder

    _follow_quiet()
    with prepared(Lens.load(lens), repo) as folder:
        _show(folder, str(repo or to))
        if dry_run:
            return
        if to is not None:
            with whole_folder(to) as out:
                for path in folder.iterdir():
                    shutil.copyfile(path, out / path.name)
        if repo is not None:
            address = push(folder, repo, private=private)
            console.print(address, markup=False, highlight=False)


def _show(folder: Path, place: str) -> None:
    """What is about to go: every file with its size, and the model's name as others will see it."""
    from rich.filesize import decimal
    from rich.markup import escape

    from ..storage.files import read_json

    named = read_json(folder / "lens.json")["model"]["name"]
    table = Table(title=escape(f"To {place}: a lens on {named}"))
    table.add_column("file")
    table.add_column("size", justify="right")
    for path in sorted(folder.iterdir()):
        table.add_row(escape(path.name), decimal(path.stat().st_size))
    console.print(table)


@click.command()
@click.argument("repo")
@click.argument("lens", type=PATH)
@click.option("--revision", help="A branch, tag or commit; by default the newest.")
def pull(repo: str, lens: Path, revision: str | None) -> None:
    """Fetch a lens from the repository REPO of the Hugging Face hub into a new folder LENS.

    REPO may also be a folder, here or in a store, which goes before a repository of that name.

    Example: secondlens pull user/name lens
    """
    hold_new(lens)
    from ..formatting import counted
    from ..lens.lens import Lens
    from ..storage.files import whole_folder
    from ..storage.remote import is_remote

    _follow_quiet()
    if is_remote(repo) or Path(repo).is_dir():
        if revision is not None:
            raise SecondLensError(f"{repo} is a folder, which has no revisions: drop --revision")
        found = Lens.load(repo)
    else:
        found = Lens.from_hub(repo, revision=revision)
    with whole_folder(lens) as folder:
        found.save_held(folder)
    shown = f"{lens}: layers {found.layers} of {found.model['name']}"
    console.print(
        f"{shown} over {counted(len(found.image_ids), 'image')}", markup=False, highlight=False
    )
