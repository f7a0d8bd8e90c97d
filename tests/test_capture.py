"""Reading a forward pass: what comes out, and that nothing stays behind."""

import threading

import oracle
import pytest
import torch
from models import sequence_first, tiny_images, tiny_model
from open_clip import convert_weights_to_lp

from secondlens.effects.capture import Capture, norm_statistics
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip


def pooled_of(clip, images, layers, **options):
    with Capture(clip, layers, **options) as capture:
        return capture.pool(clip.encode_image(images))


@pytest.fixture
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64, layers=4))


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks
    ]


def test_coefficients_by_definition(clip):
    images = tiny_images(clip)
    pooled = pooled_of(clip, images, [2, 0])
    run = oracle.Run(clip.model, images)
    assert list(pooled.coefficients) == [0, 2]
    for layer, coefficients in pooled.coefficients.items():
        assert coefficients.shape == (3, clip.heads * (clip.layers - 1 - layer), clip.neurons)
        expected, scales, means = [], [], []
        for j in range(layer + 1, clip.layers):
            stream, block = run.streams[j], run.blocks[j]
            sigma = (stream.var(-1, correction=0) + block.ln_1.eps).sqrt()
            rows = oracle.class_attention(block, stream) / sigma[:, None]
            expected.append(rows @ run.activations[layer])
            scales.append(rows.sum(-1))
            means.append((rows * stream.mean(-1)[:, None]).sum(-1))
        assert torch.allclose(coefficients, torch.cat(expected, 1), rtol=1e-10)
        assert torch.allclose(pooled.path_scales[layer], torch.cat(scales, 1), rtol=1e-10)
        assert torch.allclose(pooled.path_means[layer], torch.cat(means, 1), rtol=1e-8, atol=1e-12)
    sigma = (run.class_token.var(-1, correction=0) + run.tower.ln_post.eps).sqrt()
    assert torch.allclose(pooled.post_sigma, sigma)
    assert torch.allclose(pooled.post_mean, run.class_token.mean(-1))
    assert torch.allclose(pooled.scale, 1 / (sigma * run.representation.norm(dim=-1)))


def test_activations_are_kept_on_request(clip):
    images = tiny_images(clip)
    pooled = pooled_of(clip, images, [1], keep_activations=True)
    run = oracle.Run(clip.model, images)
    assert torch.equal(pooled.activations[1], run.activations[1])
    assert list(pooled.attention_over_sigma) == [2, 3]
    rebuilt = [pooled.attention_over_sigma[j] @ pooled.activations[1] for j in (2, 3)]
    assert torch.allclose(torch.cat(rebuilt, dim=1), pooled.coefficients[1])
    assert pooled_of(clip, images, [1]).activations == {}


def test_layers_do_not_depend_on_each_other(clip):
    images = tiny_images(clip)
    together = pooled_of(clip, images, [0, 1, 2])
    for layer in range(3):
        alone = pooled_of(clip, images, [layer])
        assert torch.allclose(together.coefficients[layer], alone.coefficients[layer], rtol=1e-12)
        assert torch.allclose(together.path_scales[layer], alone.path_scales[layer], rtol=1e-12)


@pytest.mark.parametrize("variant", ["final_ln_after_pool", "custom blocks", "sequence first"])
def test_the_kind_of_tower_does_not_matter(clip, variant):
    vision = {
        "final_ln_after_pool": {"final_ln_after_pool": True},
        "custom blocks": {"block_type": "custom"},
    }
    model = tiny_model(seed=9, dtype=torch.float64, layers=4, **vision.get(variant, {}))
    model.load_state_dict(clip.model.state_dict())
    other = from_open_clip(sequence_first(model) if variant == "sequence first" else model)
    images = tiny_images(clip, count=4)
    pooled, expected = (pooled_of(each, images, [0, 1]) for each in (other, clip))
    assert torch.allclose(pooled.coefficients[0], expected.coefficients[0], rtol=1e-10)
    assert torch.allclose(pooled.scale, expected.scale, rtol=1e-10)


def test_the_model_is_untouched(clip):
    images = tiny_images(clip)
    before, weights = clip.encode_image(images), clip.weights_hash
    with Capture(clip, [0, 2]) as capture:
        assert torch.equal(clip.encode_image(images), before)
        # the input, activations, later ln_1, ln_post
        assert len(hooks_of(clip.model)) == 1 + 2 + 3 + 1
        with pytest.raises(SecondLensError):
            capture.pool(before[:1])
    assert hooks_of(clip.model) == []
    with pytest.raises(ZeroDivisionError), Capture(clip, [0]):
        raise ZeroDivisionError
    assert hooks_of(clip.model) == []
    assert torch.equal(clip.encode_image(images), before)
    assert from_open_clip(clip.model).weights_hash == weights


def test_passes_follow_each_other(clip):
    first, second = tiny_images(clip), tiny_images(clip, count=2, seed=7)
    with Capture(clip, [1]) as capture:
        one = capture.pool(clip.encode_image(first))
        clip.encode_image(first)  # never pooled
        two = capture.pool(clip.encode_image(second))
    assert torch.equal(one.coefficients[1], pooled_of(clip, first, [1]).coefficients[1])
    assert torch.equal(two.coefficients[1], pooled_of(clip, second, [1]).coefficients[1])


def test_a_pass_that_broke_off_is_forgotten(clip):
    images = tiny_images(clip)

    def fail(*arguments):
        raise ZeroDivisionError

    with Capture(clip, [1]) as capture:
        handle = clip.blocks[3].module.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            clip.encode_image(images)
        handle.remove()
        pooled = capture.pool(clip.encode_image(images))
    assert torch.equal(pooled.coefficients[1], pooled_of(clip, images, [1]).coefficients[1])


def test_pool_needs_a_pass(clip):
    images = tiny_images(clip)
    representation = clip.encode_image(images)
    with Capture(clip, [1]) as capture:
        with pytest.raises(SecondLensError, match="no complete forward pass"):
            capture.pool(representation)
        capture.pool(clip.encode_image(images))
        with pytest.raises(SecondLensError, match="no complete forward pass"):
            capture.pool(representation)
        clip.encode_image(images)
    with pytest.raises(SecondLensError, match="no complete forward pass"):
        capture.pool(representation)


@pytest.mark.parametrize(
    "spoil",
    [lambda r: r / r.norm(dim=-1, keepdim=True), lambda r: r.flip(0), lambda r: r[:2]],
    ids=["normalised", "of other images", "of fewer images"],
)
def test_pool_checks_whose_representation_it_is(clip, spoil):
    with Capture(clip, [1]) as capture:
        representation = clip.encode_image(tiny_images(clip))
        with pytest.raises(SecondLensError, match="the last forward pass gave"):
            capture.pool(spoil(representation))
        capture.pool(representation)


def test_overlapping_passes_are_refused(clip):
    images, errors = tiny_images(clip), []

    def encode():
        try:
            clip.encode_image(images)
        except SecondLensError as error:
            errors.append(str(error))

    def interrupt(*arguments):
        handle.remove()
        thread = threading.Thread(target=encode)
        thread.start()
        thread.join()

    with Capture(clip, [0]) as capture:
        handle = clip.blocks[2].module.register_forward_hook(interrupt)
        pooled = capture.pool(clip.encode_image(images))
    assert len(errors) == 1 and "overlap" in errors[0]
    assert torch.equal(pooled.coefficients[0], pooled_of(clip, images, [0]).coefficients[0])

    def nest(*arguments):
        handle.remove()
        clip.encode_image(images)

    with Capture(clip, [0]):
        handle = clip.blocks[2].module.register_forward_hook(nest)
        with pytest.raises(SecondLensError, match="overlap"):
            clip.encode_image(images)


@pytest.mark.parametrize(
    ("layer", "value", "where"),
    [(1, torch.nan, "the activations of layer 1"), (2, torch.inf, "the activations of layer 2")],
)
def test_nan_and_infinity_name_their_layer(clip, layer, value, where):
    def spoil(module, inputs, output):
        output[0, 1, 5] = value

    handle = clip.blocks[layer].activation.register_forward_hook(spoil)
    with (
        Capture(clip, [0, 1, 2]) as capture,
        pytest.raises(SecondLensError, match=f"NaN or infinity in {where}:"),
    ):
        capture.pool(clip.encode_image(tiny_images(clip)))
    handle.remove()


def test_nan_elsewhere_is_named_too(clip):
    images = tiny_images(clip)
    images[0, 0, 0, 0] = torch.nan
    with (
        Capture(clip, [2]) as capture,
        pytest.raises(SecondLensError, match="the activations of layer 2"),
    ):
        capture.pool(clip.encode_image(images))
    with torch.no_grad():
        clip.ln_post.bias[0] = torch.nan
    with Capture(clip, [2]) as capture, pytest.raises(SecondLensError, match="in the output:"):
        capture.pool(clip.encode_image(tiny_images(clip)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [([], "no layers to capture"), ([0, 3], "is the last of"), ([0, 9], "no layer 9")],
)
def test_layers_are_checked(clip, layers, message):
    with pytest.raises(SecondLensError, match=message):
        Capture(clip, layers)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)], ids=str
)
def test_low_precision_models_give_close_coefficients(dtype, tolerance):
    images = tiny_images(tiny_model())
    exact = pooled_of(from_open_clip(tiny_model()), images, [0, 1])
    model = tiny_model()
    convert_weights_to_lp(model, dtype)
    for low in (model, tiny_model(dtype=dtype)):
        pooled = pooled_of(from_open_clip(low), images, [0, 1])
        for layer in (0, 1):
            error = pooled.coefficients[layer] - exact.coefficients[layer]
            assert pooled.coefficients[layer].dtype == torch.float32
            assert error.abs().max() < tolerance * exact.coefficients[layer].abs().max()
        assert torch.allclose(pooled.scale, exact.scale, rtol=tolerance)


def test_autocast_does_not_reach_the_sums():
    clip = from_open_clip(tiny_model())
    images = tiny_images(clip)
    exact = pooled_of(clip, images, [0])
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooled_of(clip, images, [0])
    assert pooled.coefficients[0].dtype == pooled.scale.dtype == torch.float32
    assert torch.allclose(pooled.scale, exact.scale, rtol=5e-2)


def test_no_gradient_is_kept(clip):
    with Capture(clip, [0]) as capture:
        pooled = capture.pool(clip.model.visual(tiny_images(clip)))
    assert not pooled.coefficients[0].requires_grad
    assert not pooled.scale.requires_grad


def test_norm_statistics_far_from_zero():
    states = 1e3 + torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    mean, sigma = norm_statistics(states, 1e-5)
    expected = (states.double().var(-1, correction=0) + 1e-5).sqrt().float()
    assert torch.allclose(mean, states.mean(-1))
    assert torch.allclose(sigma, expected, rtol=1e-5)
