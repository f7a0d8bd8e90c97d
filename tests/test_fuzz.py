"""Some of the trials of `fuzz.py` with each format, and what it is that they would find."""

import random

import fuzz
import pytest
from artefacts import FORMATS, Format, make_ablation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scale import TIMES, sampled

TRIALS = {"explorer": 4, "audit": 10, "unfinished fit": 10}
"""Of formats that take long to open."""


SLOW = {"cache of texts", "defence", "unfinished fit"}
"""Formats whose trials take long; others of the same kinds of files are tried always."""


@pytest.mark.parametrize("name", sampled(FORMATS, set(FORMATS) - SLOW))
def test_what_was_changed_is_opened_or_refused(name):
    trials = TRIALS.get(name, 30) * TIMES

    @settings(
        max_examples=trials, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**32))
    def opened(seed):
        said, fault = fuzz.attempt(name, seed)
        assert not fault, f"{said}\n{fault}"

    opened()


FOUND = {
    "lists": (1361, 1496),
    "audit": (862, 1762),
    "lens": (125, 2765),
    "unfinished fit": (142, 157, 2430, 2525),
    "explorer": (261, 279),
}
"""Trials that ended in a traceback once."""


@pytest.mark.parametrize(("name", "seed"), [(name, n) for name, own in FOUND.items() for n in own])
def test_what_was_found_stays_mended(name, seed):
    said, fault = fuzz.attempt(name, seed)
    assert not fault, f"{said}\n{fault}"


def test_a_fault_is_found(monkeypatch):
    def trip(folder):
        raise KeyError("x")

    monkeypatch.setitem(FORMATS, "ablation", Format(make_ablation, trip))
    said, fault = fuzz.attempt("ablation", 1)
    assert "KeyError" in fault
    assert said


def test_memory_is_counted(monkeypatch):
    monkeypatch.setattr(fuzz, "ROOM", 2**24)
    eat = Format(make_ablation, lambda folder: bytearray(b"x" * 2**28))
    monkeypatch.setitem(FORMATS, "ablation", eat)
    assert "of memory were taken" in fuzz.attempt("ablation", 1)[1]


def test_each_change_is_another_one():
    """Trials of one seed are the same everywhere."""
    document = {"a": [1, {"b": "c"}], "d": None}
    texts = {fuzz.change_document({**document}, random.Random(seed)) for seed in range(200)}
    assert len(texts) > 60
    again = [fuzz.change_document({**document}, random.Random(7)) for _ in range(2)]
    assert again[0] == again[1]
