"""One pass over all images around the mean of a sample, in the precision of the model."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_images, tiny_model
from scale import TIMES

from secondlens.effects.capture import Capture
from secondlens.effects.centring import ALIGNED, CentredMap, ScaledPass
from secondlens.effects.value_paths import (
    extended_coefficients,
    image_scale,
    isometry,
    second_order,
    value_paths,
)
from secondlens.errors import SecondLensError
from secondlens.lens import shards
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.lens.moments import Centre
from secondlens.lens.plan import SAMPLE, make_plan
from secondlens.lens.ranking import Ranking, settle
from secondlens.models.open_clip.views import from_open_clip

IMAGES = 90
OPTIONS = {"layers": [0, 2], "top": 5, "batch_size": 8, "shard_size": 16, "store": "never"}


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64, layers=4), name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, IMAGES)


class Counted:
    """Rows of a tensor that count how often they are read; some cannot be."""

    def __init__(self, images, missing=()):
        self.images, self.missing, self.reads = images, missing, 0
        self.ids = [f"image-{i}" for i in range(len(images))]

    def load(self, index):
        self.reads += 1
        if index in self.missing:
            raise OSError("gone")
        return self.images[index]


def check_exact(clip, lens, images):
    """Means, energies and top images are those of all images, computed by brute force."""
    for layer in lens:
        effects = second_order(clip, images, layer)
        centred = effects - effects.mean(0)
        norms, order = centred.norm(dim=-1).sort(dim=0, descending=True, stable=True)
        fitted = lens[layer]
        torch.testing.assert_close(fitted.mean, effects.mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            fitted.energy, centred.square().sum(-1).mean(0), rtol=1e-8, atol=0
        )
        assert torch.equal(fitted.top_images, order[:5].T)
        torch.testing.assert_close(fitted.top_norms, norms[:5].T, rtol=1e-8, atol=0)
        for n in range(0, clip.neurons, 7):
            rows = centred[order[:5, n], n]
            first = torch.linalg.svd(rows, full_matrices=False).Vh[0]
            assert abs(float(first @ fitted.directions[n])) == pytest.approx(1)
        assert fitted.histogram.sum(1).eq(len(images)).all()


def test_images_are_read_once_beside_a_sample(clip, images):
    source, plans = Counted(images), []
    lens = fit(clip, source, sample=60, announce=plans.append, **OPTIONS)
    check_exact(clip, lens, images)
    assert lens.sample == plans[0].sample == 60
    chosen = [position for shard in plans[0].sampled_shards for position in shard]
    assert chosen == sorted(set(chosen)) and len(chosen) == 60 and chosen[-1] < IMAGES
    assert plans[0].passes == 1 and "and one of a sample of 60" in str(plans[0])
    again = source.reads - 60 - IMAGES
    assert again in (0, IMAGES), "what is not proven passes again, and nothing else does"
    of_sample = fit(clip, images[chosen], **OPTIONS)
    for layer in lens:
        for name in ("explained_all", "activation_mean"):
            ours, theirs = (getattr(each[layer], name) for each in (lens, of_sample))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_a_sample_does_not_prove_is_ranked_again(clip, images, monkeypatch, caplog):
    monkeypatch.setattr(shards, "SPARE", 1)
    source = Counted(images)
    with caplog.at_level(logging.WARNING):
        lens = fit(clip, source, sample=5, **OPTIONS)
    check_exact(clip, lens, images)
    assert source.reads == 5 + 2 * IMAGES
    assert "do not follow from a sample" in caplog.text


def test_a_sampled_fit_goes_on_and_is_saved(clip, images, tmp_path):
    class Fragile(Counted):
        def load(self, index):
            if self.reads == 70:
                raise KeyboardInterrupt
            return super().load(index)

    options = OPTIONS | {"sample": 40, "out": tmp_path / "lens"}
    with pytest.raises(KeyboardInterrupt):
        fit(clip, Fragile(images), **options)
    lens = fit(clip, Counted(images), **options)
    check_exact(clip, lens, images)
    assert Lens.load(tmp_path / "lens").sample == 40
    whole = fit(clip, images, **OPTIONS)
    assert whole.sample is None


def test_unreadable_pictures_of_a_sampled_fit(clip, images):
    missing = {3, 11, 50, 89}
    lens = fit(clip, Counted(images, missing), sample=30, **OPTIONS)
    assert set(lens.skipped) == {f"image-{i}" for i in missing}
    left = [i for i in range(IMAGES) if i not in missing]
    assert list(lens.image_ids) == [f"image-{i}" for i in left]
    check_exact(clip, lens, images[left])
    with pytest.raises(SecondLensError, match="none of the 30 sampled pictures could be read"):
        fit(clip, Counted(images, range(IMAGES)), sample=30, **OPTIONS)


def test_when_a_sample_is_taken(clip):
    def sample(count, **options):
        return make_plan(clip, count, [1], top=5, memory=2**30, **options).sample

    assert sample(SAMPLE) == SAMPLE and sample(SAMPLE + 1) == SAMPLE == sample(10**8)
    assert sample(10**5, store="float32") == sample(10**5, keep_coordinates=True) == 10**5
    assert sample(100, sample=10) == 10 and sample(10, sample=100) == 10
    with pytest.raises(SecondLensError, match="a sample needs at least 1 image, and it has 0"):
        sample(100, sample=0)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.1, 1.0]))
@settings(max_examples=30 * TIMES, derandomize=True, deadline=None)
def test_what_is_called_proven_is(seed, distance):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(40, 6, 3, generator=generator, dtype=torch.float64)
    off = distance * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    centre = Centre(mean=z.mean(0) + off, energy=torch.ones(6, dtype=torch.float64))
    ranking = Ranking(centre, 8)
    for positions in torch.arange(40).split(7):
        ranking.see((z[positions] - centre.mean).transpose(0, 1), positions)
    settled, proven = settle(ranking.ranked(), centre, 40, 4)
    centred = z - z.mean(0)
    norms, order = centred.norm(dim=-1).sort(dim=0, descending=True)
    torch.testing.assert_close(settled.centre.mean, z.mean(0))
    torch.testing.assert_close(settled.centre.energy, centred.square().sum(-1).mean(0))
    assert torch.equal(settled.top_images.images[proven], order[:4].T[proven])
    torch.testing.assert_close(settled.top_images.norms[proven], norms[:4].T[proven])
    gap = norms[3] - (centred + z.mean(0) - centre.mean).norm(dim=-1).sort(0).values[-8]
    assert proven[gap > off.norm(dim=-1) + 1e-3].all(), "nothing less than the bound is asked"


@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_centred_coordinates_within_the_bound(convention, dtype):
    clip = from_open_clip(tiny_model(dtype=torch.float64, layers=4))
    images = tiny_images(clip, 12)
    with Capture(clip, [1]) as capture:
        clip_pooled = capture.pool(clip.encode_image(images))
        seen = capture.read(clip.encode_image(images))
    found = isometry(value_paths(clip, 1, convention))
    coefficients = extended_coefficients(clip_pooled, 1, convention)
    scale = image_scale(clip_pooled, convention)
    z = found.coordinates(coefficients, scale)
    centre = z.mean(0)
    # what is added up over tokens, without the cancellation of its signs
    sizes = coefficients.abs()
    paths = clip_pooled.coefficients[1].shape[1]
    sizes[:, :paths] = torch.bmm(seen.all_rows, seen.activations[1].abs())
    lengths = found.transform.norm(dim=1)
    used = torch.einsum("nk,bkn->bn", lengths, sizes * scale[:, None, None])
    each = CentredMap(found.transform, dtype)
    each.centre_on(centre)
    product = each(ScaledPass(seen, convention, dtype), 1)
    assert 1 not in seen.activations, "they are let go"
    assert product.dtype == dtype and each.weights.shape[-1] % (8 if dtype != z.dtype else 1) == 0
    error = (product.double() * each.unit[:, None, None] - (z - centre).transpose(0, 1)).norm(
        dim=-1
    )
    u = torch.finfo(dtype).eps / 2
    bound = u * (4 * used.T + (centre.norm(dim=-1)[:, None] + (z - centre).norm(dim=-1).T))
    assert (error <= bound + 1e-12).all()
    assert ALIGNED == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_fit_in_half_precision_is_close_to_one_in_float64(clip, images, monkeypatch, dtype):
    """Norms by at most the rounding of a model in half precision, and the same neurons' images."""
    exact = fit(clip, images, sample=60, **OPTIONS)
    model = tiny_model(dtype=torch.float64, layers=4).to(dtype)
    half = from_open_clip(model, name="tiny")
    wide = fit(half, images.to(dtype), sample=60, **OPTIONS)
    monkeypatch.setattr(shards, "pooling_dtype", lambda clip: clip.dtype)
    low = fit(half, images.to(dtype), sample=60, **OPTIONS)
    for layer in exact:
        # pooling in half precision adds less than the model's own rounding does
        own = (wide[layer].top_norms - exact[layer].top_norms).abs().mean()
        added = (low[layer].top_norms - wide[layer].top_norms).abs().mean()
        assert added <= own
        along = (low[layer].directions * wide[layer].directions).sum(1)
        assert along.median() > 0.99
        assert low[layer].top_norms.dtype == torch.float32
