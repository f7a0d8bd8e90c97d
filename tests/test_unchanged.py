"""Results are those of version 0.1, bit by bit: whatever moves inside, nothing may move outside."""

import pytest
from scale import sampled
from unchanged import record

SLOW = {
    "an_attack",
    "attacks_on_pairs",
    "secondlens ablate, other effects",
    "secondlens defend of 0.1",
    "secondlens fit, more",
    "secondlens reproduce",
    "secondlens reproduce from a folder like ImageNet",
    "secondlens reproduce, more",
    "table_4",
    "the_explorer",
}
"""Cases that take long, of which `make test` has a shorter one of the kind."""


@pytest.fixture(scope="module")
def known():
    return record.read()


# an old name may warn that it is one
@pytest.mark.filterwarnings("ignore:secondlens:FutureWarning")
@pytest.mark.filterwarnings("ignore:Objective did not converge")
@pytest.mark.parametrize("name", sampled(record.CASES, set(record.CASES) - SLOW))
def test_results_are_those_of_before(name, known):
    machine, values, tensors = known
    assert name in values, "this case was never recorded"
    own = {place: each for place, each in tensors.items() if place.startswith(f"{name}/")}
    same = record.fingerprint() == machine
    said = record.differences(name, record.answer(name), (values[name], own), same_machine=same)
    assert not said, f"{len(said)} differences: " + "\n".join(said[:20])


def test_every_case_that_was_recorded_is_still_run(known):
    assert set(known[1]) == set(record.CASES)
