"""The table of models of `benchmarks/models.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("model_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "model_table", module)  # where its dataclasses look for types
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("name", "reader"), [("MobileCLIP-B", "ClassToken"), ("ViT-B-32-SigLIP2-256", "AttentionPool")]
)
def test_a_row(table, name, reader):
    (row,) = table.rows([name])
    assert row.passed
    assert row.reader == reader


def test_a_refusal_has_its_reason(table):
    (row,) = table.rows(["MobileCLIP-S1"])
    assert not row.passed
    assert row.reason.startswith("a convolution with an activation function")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of other libraries, as the script does
def test_every_model_passes_or_is_refused_with_a_reason(table):
    rows = list(table.rows([]))
    assert [row.name for row in rows if not row.passed and not row.reason] == []
    assert sum(row.tags for row in rows if row.passed) >= 180
