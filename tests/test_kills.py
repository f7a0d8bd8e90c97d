"""Commands are killed at random moments, as they are run, and then go on."""

import random
import shutil
import time

import pytest
from families import Family
from outputs import check_state, leftovers, read, run
from scale import PATIENCE
from small_world import CASES, Case, small, write_given

pytestmark = pytest.mark.filterwarnings("ignore:.* longer than the context of tiny:UserWarning")

COMMAND = """
import sys, warnings
from small_world import small
from secondlens.commands.group import main
warnings.simplefilter("ignore")
with small():
    print("ready", flush=True)
    main(sys.argv[1:])
"""
WITH_WORKERS = Case(
    command="fit classes --out fitted --shard-size 2 --workers 2 --decoders 1 ON",
    given=("classes",),
)
KILLED = {
    "fit with workers": WITH_WORKERS,
    **{name: CASES[name] for name in ("describe", "score", "attack", "audit", "export", "pull")},
    "reproduce": CASES["reproduce fig3"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_given(folder)
    with small():
        yield folder


class Killing:
    """One command: what it writes when nobody stops it, and how long that takes."""

    def __init__(self, case, given, folder):
        self.case, self.given, self.folder = case, given, folder
        self.number, self.longest = 0, 0.0
        whole = self.place()
        self.old = read(whole)
        family, began = self.start(whole), time.monotonic()
        said = family.end()
        self.seconds = time.monotonic() - began
        assert family.process.returncode == 0, said
        self.new = read(whole)
        assert self.new != self.old

    def place(self):
        self.number += 1
        place = self.folder / str(self.number)
        self.case.place(self.given, place)
        return place

    def start(self, place):
        return Family(["-c", COMMAND, *self.case.arguments], cwd=place)

    def at(self, fraction):
        """Kill it after a share of its time, and let it go on; gives whether it was still alive."""
        place = self.place()
        family = self.start(place)
        time.sleep(fraction * self.seconds)
        alive = family.process.poll() is None
        family.kill()
        began = time.monotonic()
        assert family.orphans(PATIENCE) == []
        self.longest = max(self.longest, time.monotonic() - began)
        found = read(place)
        check_state(self.case, found, self.old, self.new, place)
        again = run(place, self.case.arguments)
        if again.exit_code:
            assert found == self.new and "exists already" in again.output, again.output
        assert read(place) == self.new
        assert not leftovers(place)
        shutil.rmtree(place)
        return alive


def test_killed_and_run_again(given, tmp_path):
    """Of 50 kills over all commands, as `make test-all` has them, one."""
    assert Killing(CASES["attack"], given, tmp_path).at(0.3)


@pytest.mark.long
def test_killed_fifty_times(given, tmp_path):
    """No difference to what nobody stopped, none refused, and no process left after 5 s; on an idle
    machine."""
    moments, alive = random.Random(0), {}
    killings = {
        name: Killing(case, given, tmp_path / name.replace(" ", "-"))
        for name, case in KILLED.items()
    }
    for number in range(50):
        name = list(KILLED)[number % len(KILLED)]
        alive.setdefault(name, []).append(killings[name].at(moments.random()))
        print(f"{number + 1}: {name} is equal; {sum(alive[name])} kills of it before its end")
    longest = max(each.longest for each in killings.values())
    print(f"the last child was gone after {longest:.1f} s")
    assert longest < 5
    assert sum(map(sum, alive.values())) > 25
