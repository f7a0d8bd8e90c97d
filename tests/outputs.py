"""What commands leave in a folder, as readers find it, whole or not."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from crashing import is_passing

from secondlens.commands.group import main
from secondlens.lens import folder as lens_folder
from secondlens.lens.lens import Lens
from secondlens.storage.files import MOVING


def run(folder, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read(folder):
    """What is in a folder, as a reader finds it: lenses as such, and the bytes of other files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or is_passing(name) or MOVING in name.parts or "unfinished" in str(name):
            continue
        if path.name == "lens.json":
            lens = Lens.load(path.parent)
            tensors = {
                own: {key: each.numpy().tobytes() for key, each in inside.items()}
                for own, inside in lens_folder._tensors(lens)
            }
            found[str(name)] = lens_folder.manifest(lens), lens.image_ids, lens.skipped, tensors
        elif not (lens_folder.OWN.fullmatch(path.name) and is_lens(path.parent)):
            found[str(name)] = path.read_bytes()
    return found


def is_lens(folder):
    """Whether it holds a lens, or what a fit wrote of it when it was stopped."""
    return (folder / "lens.json").exists() or any(folder.glob("layer-*.safetensors"))


def leftovers(folder):
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if is_passing(path.name) or path.name == MOVING or path.name.endswith(".unfinished")
    ]


def check_state(case, found, old, new, folder):
    """Every file is the old or the new one; what does not grow is all old or all new."""
    for name, content in found.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither old nor new"
    for top in {Path(name).parts[0] for name in old | new} - {*case.grows}:
        if not (folder / top / MOVING).exists():
            versions = [
                {name: content for name, content in each.items() if Path(name).parts[0] == top}
                for each in (found, old, new)
            ]
            assert versions[0] in versions[1:], f"{top} is a mixture"
