import pytest

from secondlens.commands.list import REGISTRIES, registry
from secondlens.commands.reproduce import reproduce


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECONDLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def registered_as_before(monkeypatch):
    """What a test or an example registers is gone after it."""
    for kinds in REGISTRIES:
        found = registry(kinds)
        monkeypatch.setattr(found, "_members", dict(found._members))
    monkeypatch.setattr(reproduce, "commands", dict(reproduce.commands))
