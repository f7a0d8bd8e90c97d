"""Lenses for others: with a card, in a folder or one commit on the Hugging Face hub.

What goes is named by `published`: no folder of this machine is in it. What comes is mere files.

Who one is, the hub's own library knows, from `hf auth login` or `HF_TOKEN`: no token passes through
here.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import SecondLensError
from ..formatting import cell
from .folder import Contents, manifest, write
from .names import Names
from .published import published

TAGS = ("clip", "interpretability", "neurons", "secondlens")


def lens_card(lens: Contents, repo_id: str | None = None) -> str:
    """Markdown with the metadata of a model card: model, images, layers, descriptions, scores.

    Parameters
    ----------
    lens
        What is shared.
    repo_id
        The repository's name on the hub, such as "user/name"; none for a folder.
    """
    lens = published(lens)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secondlens.lens"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template("lens-card.md").render(
        metadata=_metadata(lens),
        repo_id=repo_id,
        lens=lens,
        manifest=manifest(lens),
        layers=[_layer(lens, layer) for layer in lens.layers],
        descriptions=[_description(lens, name) for name in lens.codes],
        named=[_named(names) for names in lens.names.values()],
        scores=[
            {"name": name, "images": each.images, "layer": layer, **_score(each, layer)}
            for name, each in lens.scores.items()
            for layer in sorted(each.auc)
        ],
    )


def _metadata(lens: Contents) -> str:
    """YAML. The explained model is named where it is one of the hub."""
    hub, _, name = str(lens.model["name"]).partition(":")
    on_hub = hub == "hf" and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    data = ModelCardData(
        library_name="secondlens",
        tags=list(TAGS),
        base_model=name if on_hub else None,
    )
    return data.to_yaml()


def _layer(lens: Contents, layer: int) -> dict[str, Any]:
    names = ("selectivity", "selectivity_null", "explained", "explained_null", "explained_all")
    medians = {name: f"{float(getattr(lens.by_layer[layer], name).median()):.2f}" for name in names}
    return {"layer": layer, **medians}


def _description(lens: Contents, name: str) -> dict[str, Any]:
    codes = lens.codes[name]
    size = max(each.shape[1] for each in codes.indices.values())
    medians = (float(each.median()) for each in codes.cosine.values())
    cosines = [each for each in medians if math.isfinite(each)]  # none of a judge's texts
    chance = "–" if codes.control is None else f"{float(codes.control[-1]):.2f}"
    shown = f"{min(cosines):.2f} to {max(cosines):.2f}" if cosines else "–"
    return {
        "name": name,
        "texts": len(codes.labels),
        "size": size,
        "cosine": shown,
        "chance": chance,
    }


def _named(names: Names) -> dict[str, Any]:
    neurons = sum(map(len, names.texts.values()))
    counts = [
        sum(int((each >= 0).sum(1).ge(least).sum()) for each in names.texts.values())
        for least in (1, 2)
    ]
    return {
        "name": names.name,
        "images": f"{len(names.image_ids):,}",
        "neurons": f"{counts[0]:,} of {neurons:,}",
        "several": f"{counts[1]:,}",
        "shuffled": names.shuffled,
    }


def _score(scores: Any, layer: int) -> dict[str, str]:
    ours = float(scores.auc[layer][:, 0].nanmedian())
    controls = scores.controls[layer][:, 0].nanmedian(dim=0).values.tolist()
    return {"auc": f"{ours:.3f}", "controls": ", ".join(f"{each:.3f}" for each in controls)}


FILES = ("lens.json", "images.json", "*.safetensors")
"""Of a lens; nothing else is fetched."""
UNREACHABLE: tuple[Any, ...] = (*HfHubHTTPError.__bases__, RuntimeError, ValueError)
"""What the hub's library raises: errors of its HTTP library, which differs between versions, of the
system, for a file that could not be sent, and for names that no repository can have."""
FORBIDDEN = (401, 403)


@contextmanager
def prepared(lens: Contents, repo_id: str | None = None) -> Iterator[Path]:
    """A folder with all that is shared of a lens, until the `with` ends: its files and its card."""
    with tempfile.TemporaryDirectory(prefix="secondlens-") as temporary:
        folder = Path(temporary)
        write(published(lens), folder)
        (folder / "README.md").write_text(lens_card(lens, repo_id), encoding="utf-8")
        yield folder


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Make a repository hold what a folder holds, in one commit; returns where that is.

    Raises
    ------
    SecondLensError
        The hub cannot be reached or refuses, no repository can have that name, or the repository
        holds something else than a lens.
    """
    files = {path.name: path for path in sorted(folder.iterdir())}
    with _told(repo_id, "sent to"):
        api = HfApi()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = set(api.list_repo_files(repo_id)) - {".gitattributes"}
        # what is replaced is removed
        if there and "lens.json" not in there:
            raise SecondLensError(
                f"{repo_id} on the hub holds no lens but {min(there)}: name a new repository"
            )
        commit = api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationDelete(name) for name in sorted(there - set(files))),
                *(CommitOperationAdd(name, path) for name, path in files.items()),
            ],
            commit_message="A lens and its card",
        )
    return str(commit.commit_url)


def pull(repo_id: str, folder: Path, *, revision: str | None = None) -> None:
    """Copy the files of a lens into a new folder; the hub's library keeps its own.

    Raises
    ------
    SecondLensError
        The hub cannot be reached or refuses, or there is no such repository, revision or lens.
    """
    with _told(repo_id, "fetched from"):
        kept = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
        folder.mkdir(parents=True)
        for path in kept.glob("*"):
            if path.is_file() and any(path.match(pattern) for pattern in FILES):
                shutil.copyfile(path, folder / path.name)
    if not (folder / "lens.json").is_file():
        raise SecondLensError(f"{repo_id} on the hub holds no lens: there is no lens.json in it")


@contextmanager
def _told(repo_id: str, done: str) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise SecondLensError(
            f"{repo_id} on the hub has no such revision: name a branch, a tag or a commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise SecondLensError(
            f"there is no {repo_id} on the hub, or it is private: check the name, or log in with "
            "hf auth login"
        ) from error
    except UNREACHABLE as error:
        if getattr(getattr(error, "response", None), "status_code", None) in FORBIDDEN:
            raise SecondLensError(
                f"{repo_id} cannot be {done} the hub by just anyone: log in with hf auth login"
            ) from error
        # the message of these two says less than what they were raised from
        inner = isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__
        reason = str(inner or error).strip().split("\n")[0]
        raise SecondLensError(f"{repo_id} cannot be {done} the hub: {reason}") from error
