"""Every module is where its path says, and nothing hides it."""

import subprocess
import sys

import pytest

import secondlens as sl

WALK = """
import importlib, pkgutil, sys, types
import secondlens as sl

for name in sl.__all__:  # a public function must not take the place of a module, nor the reverse
    getattr(sl, name)
names = [m.name for m in pkgutil.walk_packages(sl.__path__, "secondlens.")]
for name in names:
    if name != "secondlens.__main__":
        importlib.import_module(name)
for name in names:
    if name == "secondlens.__main__":
        continue
    found = sl
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found is sys.modules[name], name
for name in sl.__all__:
    found = getattr(sl, name)
    assert isinstance(found, types.ModuleType) == (name == "sparse"), name
print(len(names))
"""


def test_every_module_is_reached_by_import_and_by_attribute():
    """In a process of its own, where nothing was imported before."""
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100


def test_an_old_name_works_and_says_the_new_one():
    with pytest.warns(FutureWarning, match="called secondlens.AblatedClip now"):
        assert sl.Cut is sl.AblatedClip


def test_unknown_names_are_unknown():
    with pytest.raises(AttributeError, match="nothing"):
        _ = sl.nothing


def test_python_m_is_the_command_line():
    command = [sys.executable, "-m", "secondlens", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("secondlens, version")
