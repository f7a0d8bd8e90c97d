"""Folders of a lens on the Hugging Face hub: sent in one commit, fetched as files, never as code.

Who one is, the hub's own library knows, from `hf auth login` or `HF_TOKEN`: no token passes through
here.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import SecondLensError

FILES = ("lens.json", "images.json", "*.safetensors")
"""Of a lens; nothing else is fetched."""
UNREACHABLE: tuple[Any, ...] = (*HfHubHTTPError.__bases__, RuntimeError, ValueError)
"""What the hub's library raises: errors of its HTTP library, which differs between versions, of the
system, for a file that could not be sent, and for names that no repository can have."""
FORBIDDEN = (401, 403)


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Make a repository hold what a folder holds, in one commit; returns where that is.

    Raises
    ------
    SecondLensError
        The hub cannot be reached or refuses, or no repository can have that name.
    """
    files = {path.name: path for path in sorted(folder.iterdir())}
    with _told(repo_id, "sent to"):
        api = HfApi()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = set(api.list_repo_files(repo_id)) - {".gitattributes"}
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
