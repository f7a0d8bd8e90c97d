"""`secondlens share` and `secondlens pull`."""

from pathlib import Path

import click
from rich import get_console

from .options import PATH, check_lens, check_new, console


def _follow_quiet() -> None:
    """The hub's library has progress bars of its own."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if get_console().quiet:
        disable_progress_bars()


@click.command()
@click.argument("lens", type=PATH)
@click.option("--repo", required=True, help="The repository, such as user/name.")
@click.option("--private", is_flag=True, help="If it is new: only for its owner.")
def share(lens: Path, repo: str, private: bool) -> None:
    """Send a LENS to the Hugging Face hub, with a card that says what it is.

    Log in first with hf auth login, or set HF_TOKEN. Names of the images go along, no picture does.

    Example: secondlens share secondlens-demo/lens --repo user/name
    """
    check_lens(lens)
    from ..lens.lens import Lens

    _follow_quiet()
    address = Lens.load(lens).push_to_hub(repo, private=private)
    console.print(address, markup=False, highlight=False)


@click.command()
@click.argument("repo")
@click.argument("lens", type=PATH)
@click.option("--revision", help="A branch, tag or commit; by default the newest.")
def pull(repo: str, lens: Path, revision: str | None) -> None:
    """Fetch a lens from the repository REPO of the Hugging Face hub into a new folder LENS.

    Example: secondlens pull user/name lens
    """
    check_new(lens)
    from ..formatting import counted
    from ..lens.lens import Lens

    _follow_quiet()
    found = Lens.from_hub(repo, revision=revision)
    found.save(lens)
    shown = f"{lens}: layers {found.layers} of {found.model['name']}"
    console.print(
        f"{shown} over {counted(len(found.image_ids), 'image')}", markup=False, highlight=False
    )
