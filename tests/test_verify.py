"""The slow formula against two other witnesses, and what `secondlens verify` prints."""

import json

import oracle
import pytest
import torch
from click.testing import CliRunner
from models import golden_model, tiny_images, tiny_model

from secondlens.commands.group import main
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip
from secondlens.verify import Check, LiteralPass, literal_second_order, verify

# torch.func.jvp, which the oracle uses, still scripts some of its own functions
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(), name="tiny")


@pytest.fixture(scope="module")
def checks(clip):
    return list(verify(clip))


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5}, {"block_type": "custom"}], ids=str)
def test_the_literal_formula_is_the_definition(vision):
    model = tiny_model(dtype=torch.float64, **vision)
    clip, images = from_open_clip(model), tiny_images(model)
    run, other = LiteralPass.of(clip, images), oracle.Run(model, images)
    for layer, neuron in [(0, 0), (0, 17), (1, 47)]:
        expected = oracle.second_order(other, layer, other.neuron_write(layer, neuron))
        found = literal_second_order(clip, run, layer, neuron)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["tiny-gelu", "tiny-quickgelu"])
def test_the_literal_formula_is_what_the_published_code_computes(name):
    model, tensors, _ = golden_model(name)
    clip = from_open_clip(model)
    run = LiteralPass.of(clip, tensors["images"])
    for key in tensors:
        if key.startswith("second_order/"):
            layer, published = int(key.split("_")[-1]), tensors[key]
            for neuron in (0, clip.neurons - 1):
                found = literal_second_order(clip, run, layer, neuron, "official")
                error = (found - published[:, neuron]).abs().max() / published.abs().max()
                assert error < 1e-5


def test_every_check_is_there_and_passes(checks):
    subjects = {check.subject for check in checks if check.dtype != "fp64"}
    expected = {f"{what} output of block {j}" for what in ("attention", "MLP") for j in range(3)}
    expected |= {f"{c} effects of layer {layer}" for c in ("exact", "official") for layer in (0, 1)}
    assert subjects == expected | {"embedding"}
    assert len(checks) == 4 * len(subjects) + 1
    assert all(check.passed for check in checks)
    worst = {
        dtype: max(check.error for check in checks if check.dtype == dtype)
        for dtype in ("fp64", "fp32", "fp16", "bf16")
    }
    assert sorted(worst.values()) == list(worst.values())


def test_wrong_effects_are_seen(clip, monkeypatch):
    from secondlens.effects.value_paths import second_order

    monkeypatch.setattr("secondlens.verify.second_order", lambda *a: 1.01 * second_order(*a))
    failed = {(check.subject, check.dtype) for check in verify(clip) if not check.passed}
    effects = {f"{c} effects of layer {layer}" for c in ("exact", "official") for layer in (0, 1)}
    assert failed == {(subject, dtype) for subject in effects for dtype in ("fp64", "fp32")}


def test_a_wrong_activation_is_seen(clip):
    check = next(verify(clip, "quick_gelu"))
    assert (check.subject, check.passed) == ("activation is quick_gelu", False)
    assert check.error == pytest.approx(0.0203, abs=1e-4)


def test_an_activation_that_nobody_knows_is_refused(clip):
    with pytest.raises(SecondLensError, match="no activation function 'relu': choose one of gelu"):
        next(verify(clip, "relu"))


def test_a_model_of_one_block_has_no_effects_to_check():
    subjects = {check.subject for check in verify(from_open_clip(tiny_model(layers=1)))}
    assert "attention output of block 0" in subjects
    assert not any("effects" in subject for subject in subjects)


def test_half_precision_is_refused():
    with pytest.raises(SecondLensError, match=r"loaded as torch\.bfloat16: load it in fp32"):
        next(verify(from_open_clip(tiny_model(dtype=torch.bfloat16), check=False)))


def test_a_check_fails_above_its_tolerance_and_on_nan():
    errors = {1e-4: True, 2e-4: False, float("inf"): False, float("nan"): False}
    for error, passed in errors.items():
        assert Check(subject="x", dtype="fp32", error=error, tolerance=1e-4).passed is passed


def run(monkeypatch, clip, *arguments):
    monkeypatch.setattr("secondlens.models.loading.load", lambda *a, **k: clip)
    return CliRunner().invoke(main, ["verify", "demo", *arguments])


def test_the_table(clip, monkeypatch):
    result = run(monkeypatch, clip)
    assert result.exit_code == 0
    assert "tiny: largest error" in result.output
    assert "attention output of block 2" in result.output
    assert "45 of 45 checks passed" in result.output


def test_json(clip, checks, monkeypatch):
    result = run(monkeypatch, clip, "--json")
    report = json.loads(result.output)
    assert result.exit_code == 0 and report["passed"]
    assert (report["model"], report["activation"]) == ("tiny", "gelu")
    assert report["weights"] == clip.weights_hash
    assert [row["subject"] for row in report["checks"]] == [check.subject for check in checks]


def test_a_failed_check_exits_with_1(clip, monkeypatch):
    result = run(monkeypatch, clip, "--activation", "quick_gelu")
    assert result.exit_code == 1
    assert "2.0e-02 > 1e-06" in result.output
    assert "44 of 45 checks passed" in result.output
    result = run(monkeypatch, clip, "--json", "--activation", "quick_gelu")
    assert result.exit_code == 1 and not json.loads(result.output)["passed"]


def test_mistakes_exit_with_2():
    result = CliRunner().invoke(main, ["verify", "ViT-B-33"])
    assert result.exit_code == 2
    assert "did you mean" in result.stderr
