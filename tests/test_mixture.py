"""Mixed maps and presence, against their formulas and a logistic regression of others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision.transforms.functional import to_tensor

import secondlens as sl
from secondlens.applications.segmentation.baselines.first_order import textspan
from secondlens.applications.segmentation.baselines.last_block import nac_clip, sclip
from secondlens.applications.segmentation.heat_maps import standardise
from secondlens.applications.segmentation.mixture import MixedMaps, Mixture, even
from secondlens.applications.segmentation.presence import (
    PresenceReader,
    _logistic,
    most_lost,
    presence_readings,
    temperature,
)
from secondlens.applications.segmentation.refinement import fine_dilations, followed, pamr
from secondlens.applications.segmentation.segmenter import Recipe, Segmenter, encode
from secondlens.applications.segmentation.windows import boxes_of, joined
from secondlens.data.vocabularies import vocabulary
from secondlens.effects.capture import Capture
from secondlens.effects.token_effects import TokenReader
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip

ZEROS, ONES = (0.0,) * 5, (1.0,) * 5
WORDS = ("cat", "dog", "sea", "owl", "sky")


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4), to_tensor, tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, tiny_images(clip, 30, seed=9), top=4)


def noise_picture(seed, width=20, height=18):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


# Mixtures


def test_mixed_maps_are_the_sum_of_even_ones(clip, lens):
    images, recipe = tiny_images(clip, 2), Recipe(share=0.5)
    texts = clip.encode_text(["cat", "dog", "sea"])[None].expand(2, -1, -1)
    mixture = Mixture(neurons=2.0, patches=0.25, heads=0.5, recipe=recipe)
    segmenter = Segmenter(clip, lens, recipe)
    readings = (
        (2.0, segmenter.heat_maps(encode(clip, images, segmenter.layers), texts)),
        (0.25, sclip(clip, images, texts, residual=False)),
        (0.5, textspan(clip, images, texts)),
    )
    expected = torch.zeros(2, 3, 2, 2)
    for weight, maps in readings:
        for image in range(2):
            cut = [[max(float(each), 0) for each in one.flatten()] for one in maps[image]]
            squares = [sum(each**2 for each in one) / 4 for one in cut]
            together = (sum(squares) / 3) ** 0.5
            for text in range(3):
                size = (squares[text] ** 0.5) ** 0.75 * together**0.25
                expected[image, text] += weight * torch.tensor(cut[text]).view(2, 2) / (size or 1)
    found = MixedMaps(clip, lens, mixture).maps(images, texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    alone = MixedMaps(clip, lens, Mixture(patches=0.0, heads=0.0, recipe=recipe))
    torch.testing.assert_close(alone.maps(images, texts), even(readings[0][1]))


def test_a_map_that_is_nowhere_above_0_is_0():
    maps = torch.stack([-torch.ones(2, 2), torch.ones(2, 2)])[None]
    assert torch.equal(even(maps)[0, 0], torch.zeros(2, 2))
    assert float(even(maps)[0, 1].min()) > 0


def test_one_map_is_divided_by_its_root_mean_square():
    maps = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.3
    cut = maps.clamp(min=0)
    expected = cut / cut.square().mean((-2, -1), keepdim=True).sqrt()
    torch.testing.assert_close(even(maps), expected)


def test_a_strong_map_stays_stronger():
    maps = torch.ones(1, 2, 2, 2) * torch.tensor([1.0, 16.0])[None, :, None, None]
    ratio = even(maps)[0, 1] / even(maps)[0, 0]
    torch.testing.assert_close(ratio, torch.full((2, 2), 2.0))


@pytest.mark.parametrize("given", [{"patches": -1.0}, {"neurons": 0.0, "patches": 0.0, "heads": 0}])
def test_weights_are_checked(given):
    with pytest.raises(SecondLensError, match="give weights from 0 on, and one above it"):
        Mixture(**{name: float(each) for name, each in given.items()})


@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [
        ((64, 64), (8, 8), (1, 2, 4, 8)),
        ((224, 224), (7, 7), (1, 2, 4, 8, 16, 32)),
        ((224, 224), (16, 16), (1, 2, 4, 8)),
        ((5, 5), (5, 5), (1,)),
    ],
)
def test_distances_go_down_to_pixels(size, grid, expected):
    assert fine_dilations(size, grid) == expected


def test_maps_follow_edges():
    """A step in the picture that runs through patches is where the map steps in the end."""
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[..., 6:] = 1
    coarse = torch.zeros(1, 1, 4, 4)
    coarse[..., 2:], coarse[..., 1] = 1, 0.5
    found = followed(coarse, pixels)[0, 0]
    assert found[:, :6].max() < found[:, 6:].min()
    resized = F.interpolate(coarse, (16, 16), mode="bilinear")
    step = resized[0, 0, 8, 6] - resized[0, 0, 8, 5]
    assert found[8, 6] - found[8, 5] > 3 * step > 0
    torch.testing.assert_close(found, pamr(pixels, resized, dilations=(1, 2, 4))[0, 0])


# Presence


@torch.no_grad()
def test_readings_are_log_probabilities_and_shares(clip, lens):
    pictures = [noise_picture(seed) for seed in range(2)]
    rows = clip.encode_text(list(WORDS))
    texts, among = rows[:2], rows[1:]
    found = PresenceReader(clip, lens)(pictures, texts, among, windows=2)
    scale = temperature(clip)
    assert scale == pytest.approx(float(clip.model.logit_scale.exp()))

    def log_probability(scale, vector, text):
        rivals = [scale * float(vector @ row) for k, row in enumerate(rows) if k not in (0, text)]
        own = scale * float(vector @ rows[text])
        return own - float(torch.tensor([own, *rivals]).logsumexp(0))

    def shares(tokens, text):
        """What the text has of the weights that tokens vote for, and of what they send."""
        centre = among.mean(0)
        unit = [F.normalize(row - centre, dim=0) for row in rows]
        own_weight = own_sent = 0.0
        weights, sent = [0.0] * 4, [0.0] * 4
        for token in tokens:
            along = [float(token @ each) for each in unit]
            warmth = 0.35 * float(np.std(along[1:]))
            rivals = sum(np.exp(along[k] / warmth) for k in range(1, 5) if k != text)
            mine = np.exp(along[text] / warmth)
            own_weight += mine / (mine + rivals) * along[text]
            own_sent += max(along[text], 0)
            for k in range(1, 5):
                whole = sum(np.exp(each / warmth) for each in along[1:])
                weights[k - 1] += np.exp(along[k] / warmth) / whole * along[k]
                sent[k - 1] += max(along[k], 0)
        total = sum(max(each, 0) for each in weights)
        return [
            float(np.log(max(max(own_weight, 0) / total, 1e-6))),
            float(np.log(max(own_sent / sum(sent), 1e-6))),
        ]

    squares = [each.resize((16, 16), Image.Resampling.BICUBIC) for each in pictures]
    layers = lens.late_layers(clip)
    with Capture(clip, layers, keep_activations=True) as capture:
        pooled = capture.pool(clip.encode_image(squares))
    effects = TokenReader(clip, lens.token_means(clip, layers)).read(pooled).sent
    for index, picture in enumerate(pictures):
        square = picture.resize((16, 16), Image.Resampling.BICUBIC)
        whole = F.normalize(clip.encode_image([square])[0], dim=0)
        boxes = [(x, y, x + 13, y + 12) for y in (0, 6) for x in (0, 7)]
        crops = [picture.crop(box).resize((16, 16), Image.Resampling.BICUBIC) for box in boxes]
        seen = F.normalize(clip.encode_image(crops), dim=1)
        maps = nac_clip(clip, [square], rows[None])[0].flatten(1)
        for text in range(2):
            expected = [
                log_probability(scale, whole, text),
                max(log_probability(scale, each, text) for each in seen),
            ]
            likely = []
            for place in range(4):
                logits = 40 * maps[:, place]
                kept = [k for k in range(5) if k == text or k > 0]
                likely.append(float(logits[text] - logits[kept].logsumexp(0)))
            expected.append(max(likely))  # 8 % of four patches are one
            expected += shares(effects[index], text)
            assert found[index, text].tolist() == pytest.approx(expected, abs=2e-4)


def test_weights_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    readings = generator.normal(size=(400, 3))
    there = readings @ [2.0, 1.0, -0.5] + generator.normal(size=400) > 1
    found = _logistic(torch.from_numpy(readings), torch.from_numpy(there))
    # its C is that of a sum over cases: ours is a mean
    fitted = LogisticRegression(C=1 / (2e-4 * 400), class_weight="balanced", tol=1e-8)
    expected = fitted.fit(readings, there).coef_[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


def told(count):
    return [(noise_picture(seed), {WORDS[seed % 5]}) for seed in range(count)]


def test_the_level_loses_the_share_that_may_be_lost(clip, lens, tmp_path):
    words = vocabulary(list(WORDS))
    presence = sl.tune_presence(clip, lens, told(20), words, lost=0.25)
    readings, there = presence_readings(clip, lens, told(20), words)
    assert there.sum() == 20 and readings.shape == (20, 5, 5)
    lost = (~presence.present(readings.double()) & there).sum()
    assert lost == most_lost(20, 0.25) == 1
    presence.save(tmp_path / "presence.json")
    assert sl.Presence.load(tmp_path / "presence.json") == presence


@pytest.mark.parametrize(
    ("there", "lost", "expected"), [(650, 0.05, 21), (20, 0.25, 1), (20, 0.05, 0), (1, 0.99, 0)]
)
def test_chance_is_allowed_for(there, lost, expected):
    """With one more, the interval, written out, would reach beyond the share."""
    found = most_lost(there, lost)
    assert found == expected
    z = 1.959963984540054
    ends = []
    for k in (found, found + 1):
        centre, spread = k + z * z / 2, z * (k * (there - k) / there + z * z / 4) ** 0.5
        ends.append((centre + spread) / (there + z * z))
    assert ends[1] > lost
    assert ends[0] <= lost or found == 0


@pytest.mark.parametrize(
    ("pictures", "lost", "message"),
    [
        ([], 0.05, "no pictures to tune on"),
        ([(noise_picture(0), {"cow"})], 0.05, "'cow' is in a picture and not among the words"),
        ([(noise_picture(0), set())], 0.05, "some must be in pictures and some not"),
        ([(noise_picture(0), {"cat"})], 1.0, "a share of 1.0 cannot be lost"),
    ],
)
def test_what_presence_is_tuned_on_is_checked(clip, lens, pictures, lost, message):
    with pytest.raises(SecondLensError, match=message):
        sl.tune_presence(clip, lens, pictures, vocabulary(list(WORDS)), lost=lost)


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"means": [1], "deviations": [1]}'])
def test_another_file_is_no_presence(content, tmp_path):
    path = tmp_path / "presence.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SecondLensError, match="does not say when a text is there"):
        sl.Presence.load(path)


# Both in pictures


def test_a_mixture_in_pictures(clip, lens):
    pictures = [noise_picture(0), noise_picture(1, 30, 17)]
    texts, others = ["cat", "dog"], list(WORDS[2:])
    given = (clip, lens, pictures, texts)
    found = sl.segment(*given, against=others, recipe=Mixture(), colours=True)
    assert [tuple(each.shape) for each in found] == [(2, 18, 20), (2, 17, 30)]
    rows = clip.encode_text(texts) - clip.encode_text(others).mean(0)
    square = [each.resize((16, 16), Image.Resampling.BICUBIC) for each in pictures]
    pixels = clip.prepare(square)
    raw = MixedMaps(clip, lens).maps(pixels, F.normalize(rows, dim=1).expand(2, -1, -1))
    expected = standardise(followed(raw, pixels)[1], (17, 30), positive=True)
    torch.testing.assert_close(found[1], expected)
    plain = sl.segment(*given[:2], pictures[1], "cat", against=others, recipe=Mixture())
    torch.testing.assert_close(plain, standardise(raw[1, 0], (17, 30), positive=True))


def test_colours_are_followed_in_each_window(clip, lens):
    picture = noise_picture(0, 24, 24)
    recipe = Recipe(positive=False)
    found = sl.segment(clip, lens, picture, "cat", recipe=recipe, colours=True, windows=2)
    boxes = boxes_of(24, 24, 2)
    seen = [picture.crop(box).resize((16, 16), Image.Resampling.BICUBIC) for box in boxes]
    pixels = clip.prepare(seen)
    texts = clip.encode_text(["cat"]).expand(4, 1, -1)
    maps = followed(Segmenter(clip, lens, recipe).maps(pixels, texts), pixels)
    torch.testing.assert_close(found, standardise(joined(maps, boxes, (24, 24)), (24, 24))[0])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_map_of_what_is_not_there_is_0(clip, lens, as_tensor):
    presence = sl.tune_presence(clip, lens, told(20), vocabulary(list(WORDS)), lost=0.25)
    pictures = tiny_images(clip, 4) if as_tensor else [noise_picture(seed) for seed in range(4)]
    given = (clip, lens, pictures, ["cat", "dog"])
    nothing, everything, some = (
        sl.segment(*given, among=WORDS, presence=replace(presence, level=level))
        for level in (1e9, -1e9, presence.level)
    )
    read = PresenceReader(clip, lens)(
        pictures, clip.encode_text(["cat", "dog"]), clip.encode_text(list(WORDS))
    )
    for index, plain in enumerate(sl.segment(*given)):
        assert not nothing[index].any()
        assert torch.equal(everything[index], plain)
        for text, here in enumerate(presence.present(read)[index]):
            assert torch.equal(some[index][text], plain[text] * here)


def test_presence_needs_other_words(clip, lens):
    presence = sl.Presence(means=ZEROS, deviations=ONES, weights=ONES, level=0.0)
    with pytest.raises(SecondLensError, match="is told among other words: give among"):
        sl.segment(clip, lens, noise_picture(0), "cat", presence=presence)
