"""What people install: the sdist, the wheel built from it, and the demo run from the wheel."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "secondlens"


def call(*command, cwd):
    # what a developer puts on the path would hide what is installed
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with an sdist, and a wheel that was built from the sdist alone."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of programs of an environment with the wheel, and beside it what it depends on."""
    place = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    programs = place / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    call(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=place)
    own = call(programs / "python", "-c", "import site; print(*site.getsitepackages())", cwd=place)
    # a path, not a site folder: the editable install of this repository is not seen through it
    (Path(own.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_the_wheel_holds_every_file_of_the_package(built):
    (wheel,) = built.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("secondlens/")}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert inside == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    for name in ("py.typed", "lens/templates/lens-card.md", "demo/data/demo.safetensors"):
        assert f"secondlens/{name}" in inside


def test_the_wheel_carries_its_licences(built):
    (wheel,) = built.glob("*.whl")
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "licenses" in name]
    assert sorted(names) == ["LICENSE", "NOTICE"]


def test_the_sdist_holds_what_tests_and_documentation_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    for name in ("CITATION.cff", "Makefile", "docs/conf.py", "tests/oracle.py", "tests/golden"):
        assert name in inside or any(each.startswith(f"{name}/") for each in inside), name
    assert not [name for name in inside if name.split("/")[0] in ("runs", ".venv", "dist")]


def test_the_citation_is_of_this_version(built):
    (wheel,) = built.glob("*.whl")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {wheel.name.split('-')[1]}\n" in citation


@pytest.mark.long
def test_the_demo_runs_from_the_wheel(installed, tmp_path):
    where = "import secondlens; print(secondlens.__file__)"
    assert str(installed.parent) in call(installed / "python", "-c", where, cwd=tmp_path)
    assert "0.1.0" in call(installed / "secondlens", "--version", cwd=tmp_path)
    few = ("--images", 60, "--test-images", 20)
    assert "Clearest of" in call(installed / "secondlens", "demo", *few, cwd=tmp_path)
    assert (tmp_path / "secondlens-demo" / "report.html").is_file()
    assert (tmp_path / "secondlens-demo" / "lens" / "lens.json").is_file()
