"""Steering and patching, against hooks on the model itself written out."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import (
    Unreadable,
    sequence_first,
    tiny_images,
    tiny_model,
    tiny_tokenizer,
    tiny_transformers_model,
)
from scipy.stats import spearmanr

import secondlens as sl
from secondlens.commands.group import main
from secondlens.demo.scenes import World
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers


@contextmanager
def altered(module, change):
    """Inside it, a module gives what `change` makes of its output."""
    handle = module.register_forward_hook(lambda module, inputs, output: change(output))
    yield
    handle.remove()


def seen(model, images, module):
    """What a module gives on images."""
    kept = []
    with torch.no_grad(), altered(module, lambda output: kept.append(output)):
        representation = model.visual(images)
    return representation, kept[0]


@pytest.fixture(scope="module", params=["plain", "layer scale"])
def model(request):
    scale = {"ls_init_value": 0.5} if request.param == "layer scale" else {}
    return tiny_model(dtype=torch.float64, **scale)


@pytest.fixture(scope="module")
def clip(model):
    return from_open_clip(model, tokenizer=tiny_tokenizer)


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 4)


def rows_of(clip, count=3):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(count, clip.dim, generator=generator, dtype=clip.compute_dtype)
    return F.normalize(rows, dim=-1)


# -- steering ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_steered_neurons_are_those_of_a_hook(model, clip, images, layer):
    rows, chosen = rows_of(clip), [3, 40, 3]
    found = sl.steer(clip, images, layer, [0.0, 1.0, -2.5], neurons=chosen, directions=rows)
    assert found.times == (0.0, 1.0, -2.5) and found.image_ids == ("0", "1", "2", "3")

    def scaled(amount):
        def change(output):
            output = output.clone()
            output[..., [3, 40]] *= amount
            return output

        return change

    for place, amount in enumerate(found.times):
        block = model.visual.transformer.resblocks[layer]
        with torch.no_grad(), altered(block.mlp.gelu, scaled(amount)):
            expected = F.normalize(model.visual(images), dim=-1) @ rows.T
        torch.testing.assert_close(found.after[place], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.after[1], found.before, rtol=0, atol=1e-14)
    assert (found.after[0] - found.before).abs().max() > 1e-4


@pytest.mark.parametrize("layer", [0, 2])
def test_a_direction_is_added_at_every_token(model, clip, images, layer):
    rows, direction = rows_of(clip), torch.linspace(-1, 1, clip.width, dtype=torch.float64)
    found = sl.steer(clip, images, layer, [0.0, 0.7], direction=direction, directions=rows)
    block = model.visual.transformer.resblocks[layer]
    with torch.no_grad(), altered(block, lambda output: output + 0.7 * direction):
        expected = F.normalize(model.visual(images), dim=-1) @ rows.T
    torch.testing.assert_close(found.after[1], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.after[0], found.before, rtol=0, atol=1e-14)


def test_a_neuron_off_is_its_indirect_effect_from_zero(clip, images):
    found = sl.steer(clip, images, 1, [0.0], neurons=[7], directions=torch.eye(clip.dim).double())
    nothing = torch.zeros(clip.tokens, clip.neurons, dtype=torch.float64)
    effect = sl.indirect(clip, images, 1, [7], nothing)[:, 0]
    without = F.normalize(found.before - effect, dim=-1)
    torch.testing.assert_close(found.after[0], without, rtol=0, atol=1e-13)


def test_scores_move_as_the_gradient_says(clip, images):
    rows, step = rows_of(clip), 1e-4
    found = sl.steer(clip, images, 0, [1 + step, 1 - step], neurons=[9], directions=rows)
    slope = (found.after[0] - found.after[1]) / (2 * step)
    whole = sl.paths_of(clip, images, 0, [9])[:, 0].sum(1)
    unit = F.normalize(clip.encode_image(images), dim=-1)
    across = whole - (whole * unit).sum(-1, keepdim=True) * unit  # a score has a unit embedding
    torch.testing.assert_close(slope, across @ rows.T, rtol=0, atol=1e-8)


def test_what_is_read_of_scores(clip):
    images, rows = tiny_images(clip, 9), rows_of(clip, 4)
    found = sl.steer(clip, images, 1, [6.0, -9.0], neurons=range(20), directions=rows, batch_size=4)
    for place in range(2):
        for text in range(4):
            before, after = found.before[:, text], found.after[place, :, text]
            expected = spearmanr(before, after).statistic
            assert float(found.rank_correlation[place, text]) == pytest.approx(expected, abs=1e-12)
            order = sorted(range(9), key=lambda i: -after[i])
            places = found.places_after[place, :, text].tolist()
            assert [places[i] for i in order] == list(range(9))
            change = float((after - before).mean())
            assert float(found.change[place, text]) == pytest.approx(change)
        best = [max(range(4), key=row.__getitem__) for row in found.after[place].tolist()]
        old = [max(range(4), key=row.__getitem__) for row in found.before.tolist()]
        flipped = sum(a != b for a, b in zip(best, old, strict=True)) / 9
        assert float(found.flipped[place]) == pytest.approx(flipped)
    assert found.flipped.max() > 0 and found.rank_correlation.min() < 0.99
    one = sl.steer(clip, images[:1], 1, [6.0], neurons=[1], directions=rows)
    assert one.rank_correlation.tolist() == [[1.0] * 4]


def test_texts_are_unit_rows(clip, images):
    found = sl.steer(clip, images, 1, [2.0], ["a ship", "no ship"], neurons=[1])
    rows = clip.encode_text(["a ship", "no ship"])
    again = sl.steer(clip, images, 1, [2.0], neurons=[1], directions=rows)
    assert torch.equal(found.after, again.after)


def test_mistakes_in_steering(clip, images):
    rows, row = rows_of(clip), torch.ones(clip.width, dtype=torch.float64)
    for arguments, options, message in (
        ((0, [2.0]), {}, "either neurons or a direction"),
        ((0, [2.0]), {"neurons": [1], "direction": row}, "either neurons or a direction"),
        ((0, [2.0]), {"neurons": []}, "nothing to steer"),
        ((0, [2.0]), {"neurons": [48]}, "no neuron 48"),
        ((3, [2.0]), {"neurons": [1]}, "no layer 3"),
        ((0, []), {"neurons": [1]}, "finite numbers"),
        ((0, [float("nan")]), {"neurons": [1]}, "finite numbers"),
        ((0, [2.0]), {"direction": row[1:]}, "is 24 finite numbers"),
        ((0, [2.0]), {"direction": row / 0}, "is 24 finite numbers"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.steer(clip, images, *arguments, directions=rows, **options)
    with pytest.raises(sl.SecondLensError, match="give texts or directions"):
        sl.steer(clip, images, 0, [2.0], neurons=[1])
    with pytest.raises(sl.SecondLensError, match="none of the pictures"):
        sl.steer(clip, Unreadable(), 0, [2.0], neurons=[1], directions=rows)


# -- patching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("tokens", [None, [0, 3]])
def test_patched_neurons_are_those_of_a_hook(model, clip, images, layer, tokens):
    block, donors = model.visual.transformer.resblocks[layer], images.flip(0)
    found = sl.patch(clip, images, donors, layer, neurons=[3, 40], tokens=tokens)
    donor, theirs = seen(model, donors, block.mlp.gelu)
    where = range(clip.tokens) if tokens is None else tokens

    def change(output):
        output = output.clone()
        for token in where:
            for neuron in (3, 40):
                output[:, token, neuron] = theirs[:, token, neuron]
        return output

    with torch.no_grad(), altered(block.mlp.gelu, change):
        expected = model.visual(images)
    torch.testing.assert_close(found.after, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.donor, donor, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.before, clip.encode_image(images), rtol=0, atol=1e-13)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("tokens", [None, [0, 2]])
def test_patched_heads_are_those_of_attention_written_out(model, clip, images, layer, tokens):
    attention = model.visual.transformer.resblocks[layer].attn
    donors = images.flip(0)
    found = sl.patch(clip, images, donors, layer, heads=[1], tokens=tokens)
    joined = []

    def literal(q, k, v, **_):
        """The module's own attention, with head 1 of the donor before the output matrix."""
        wq, wk, wv = attention.in_proj_weight.chunk(3)
        bq, bk, bv = attention.in_proj_bias.chunk(3)

        def split(x):
            return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

        heads = (split(x @ w.T + b) for x, w, b in ((q, wq, bq), (k, wk, bk), (v, wv, bv)))
        z = F.scaled_dot_product_attention(*heads)
        if joined:
            for token in range(clip.tokens) if tokens is None else tokens:
                z[:, 1, token] = joined[0][:, 1, token]
        joined.append(z.clone())
        return attention.out_proj(z.transpose(1, 2).flatten(2)), None

    attention.forward = literal
    with torch.no_grad():
        model.visual(donors)
        expected = model.visual(images)
    del attention.forward
    torch.testing.assert_close(found.after, expected, rtol=0, atol=1e-12)
    assert (found.after - found.before).abs().max() > 1e-4


@pytest.mark.parametrize("layer", [0, 1])
def test_patched_tokens_are_those_of_a_hook(model, clip, images, layer):
    block, donors = model.visual.transformer.resblocks[layer], images.flip(0)
    found = sl.patch(clip, images, donors, layer, tokens=[2, 4])
    _, theirs = seen(model, donors, block)

    def change(output):
        output = output.clone()
        output[:, 2], output[:, 4] = theirs[:, 2], theirs[:, 4]
        return output

    with torch.no_grad(), altered(block, change):
        expected = model.visual(images)
    torch.testing.assert_close(found.after, expected, rtol=0, atol=1e-13)
    length = found.before.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.effect, (expected - found.before) / length)
    # every token makes the donor, and its own make the picture
    whole = sl.patch(clip, images, donors, layer, tokens=range(clip.tokens))
    torch.testing.assert_close(whole.after, whole.donor, rtol=0, atol=1e-13)
    torch.testing.assert_close(whole.carried, torch.ones(4).double())
    same = sl.patch(clip, images, images, layer, tokens=[1])
    assert same.effect.abs().max() < 1e-14 and same.carried.isnan().all()


VIEWS = {
    "sequence first": lambda: from_open_clip(sequence_first(tiny_model())),
    "transformers": lambda: from_transformers(tiny_transformers_model()),
    "half": lambda: from_open_clip(tiny_model(dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_family(view):
    clip = VIEWS[view]()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    donors = images.clone()
    donors[:, :, 8:] = 0  # the patches of the lower half
    found = sl.patch(clip, images, donors, 1, tokens=range(clip.tokens))
    torch.testing.assert_close(found.after, found.donor)
    heads = sl.patch(clip, images, donors, 0, heads=range(clip.heads))
    assert heads.after.dtype == torch.float32 and heads.effect.abs().max() > 1e-3
    own = sl.patch(clip, images, images, 0, heads=range(clip.heads))
    assert torch.equal(own.after, own.before)
    for module in clip.model.modules():
        assert not module._forward_hooks and "forward" not in vars(module)


def test_mistakes_in_patching(clip, images):
    for arguments, options, message in (
        ((images, 0), {}, "nothing to patch"),
        ((images, 0), {"neurons": []}, "nothing to patch"),
        ((images, 0), {"neurons": [1], "tokens": []}, "nothing to patch"),
        ((images, 0), {"neurons": [1], "heads": [1]}, "drop one of them"),
        ((images, 0), {"neurons": [48]}, "no neuron 48"),
        ((images, 0), {"heads": [3]}, "block 0 has no head 3"),
        ((images, 0), {"tokens": [-1]}, r"no token -1: .* the 2 x 2 patches are 1 to 4"),
        ((images, 3), {"neurons": [1]}, "no layer 3"),
        ((images[1:], 0), {"neurons": [1]}, "4 images, and 3 donors"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.patch(clip, images, *arguments, **options)


# -- the command -------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        World().scene(3, i).image.save(folder / f"{i}.png")
    return folder


def test_steer_command(photos, tmp_path):
    options = ("--times", 0, "--times", 4, "--text", "a dog", "--text", "a ship")
    result = run("steer", photos, "--neuron", "5:12", "--neuron", "5:40", *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    clip = sl.load("demo")
    rows = clip.encode_text(["a dog", "a ship"])
    expected = sl.steer(clip, str(photos), 5, [0.0, 4.0], neurons=[12, 40], directions=rows)
    assert found["texts"] == ["a dog", "a ship"] and len(found["images"]) == 5
    assert found["before"]["scores"] == pytest.approx(expected.before.numpy(), abs=1e-5)
    for place, after in enumerate(found["after"]):
        assert after["times"] == expected.times[place]
        assert after["scores"] == pytest.approx(expected.after[place].numpy(), abs=1e-5)
        assert after["change"] == pytest.approx(expected.change[place].numpy(), abs=1e-5)
    result = run("steer", photos, "--neuron", "5:12", "--times", 30, "--text", "a dog")
    assert result.exit_code == 0 and "30 times" in result.output and "a dog" in result.output

    np.save(tmp_path / "row.npy", clip.blocks[5].neuron_rows[12].numpy())
    pushed = ("--direction", tmp_path / "row.npy", "--layer", 5, "--times", 2)
    result = run("steer", photos, *pushed, "--text", "a dog", "--json")
    expected = sl.steer(
        *(clip, str(photos), 5, [2.0]),
        direction=clip.blocks[5].neuron_rows[12],
        directions=clip.encode_text(["a dog"]),
    )
    (after,) = json.loads(result.stdout)["after"]
    assert after["scores"] == pytest.approx(expected.after[0].numpy(), abs=1e-5)


def test_mistakes_of_the_command(photos, tmp_path):
    (tmp_path / "text.npy").write_text("a dog")
    np.save(tmp_path / "table.npy", np.ones((2, 3)))
    np.save(tmp_path / "short.npy", np.ones(3))
    at = ("--layer", 5, "--text", "a dog", "--direction")
    for arguments, message in (
        ((photos,), "either --neuron or --direction"),
        ((photos, "--neuron", "5"), "a layer and a number"),
        ((photos, "--neuron", "5:1", "--neuron", "4:1"), "within one layer"),
        ((photos, "--neuron", "5:1", "--layer", 5), "--layer says where"),
        ((photos, "--direction", tmp_path / "short.npy"), "--layer says where"),
        ((photos, "--neuron", "5:1", "--text", "a", "--texts", "world"), "not both"),
        ((photos, "--neuron", "9:1"), "no layer 9"),
        ((photos, "--neuron", "5:1", "--times", "nan"), "finite numbers"),
        ((photos, *at, tmp_path / "text.npy"), "cannot be read as a .npy file"),
        ((photos, *at, tmp_path / "none.npy"), "cannot be read as a .npy file"),
        ((photos, *at, tmp_path / "table.npy"), "one row of fractional numbers"),
        ((photos, *at, tmp_path / "short.npy"), "a direction to steer along"),
        (("--neuron", "5:1", "--model", "ViT-B-32"), "needs IMAGES, --text"),
    ):
        result = run("steer", *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) <= 2
