import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny_images, tiny_model, tiny_tokenizer
from open_clip.model import resize_pos_embed
from PIL import Image

import secondlens as sl
from secondlens.applications.segmentation.segmenting import segment
from secondlens.applications.segmentation.windows import boxes_of, cut, joined
from secondlens.errors import SecondLensError
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.resizing import resized


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64, layers=3), tokenizer=tiny_tokenizer)


def test_a_larger_model_is_open_clips_with_its_position_embedding_resized(clip):
    rows, _ = clip.grid
    side = clip.image_size[0] // rows
    larger = resized(clip, 2 * rows * side)
    assert larger.grid == (2 * rows, 2 * rows)
    other = tiny_model(dtype=torch.float64, layers=3, image_size=2 * rows * side)
    state = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    resize_pos_embed(state, other, antialias=False)
    other.load_state_dict(state)
    images = tiny_images(other, 2)
    expected = from_open_clip(other)
    # open_clip interpolates in float32
    torch.testing.assert_close(
        larger.encode_image(images), expected.encode_image(images), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        sl.second_order(larger, images, 0),
        sl.second_order(expected, images, 0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_weights_stay_and_so_do_lenses(clip):
    larger = resized(clip, 2 * clip.image_size[0])
    assert larger.weights_hash == clip.weights_hash
    lens = sl.fit(clip, tiny_images(clip, 12), top=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *larger.image_size, generator=generator, dtype=torch.float64)
    heat = segment(larger, lens, images, "a dog")
    assert heat.shape == (2, *larger.image_size)
    assert heat.isfinite().all()


def test_the_same_size_is_the_same_model(clip):
    images = tiny_images(clip, 2)
    same = resized(clip, *clip.image_size)
    assert same.encode_image(images).equal(clip.encode_image(images))


def test_preprocessing_normalises_as_the_model_does():
    clip = load("demo")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    torch.testing.assert_close(resized(clip, 64).prepare([picture]), clip.prepare([picture]))
    assert resized(clip, 96, 64).prepare([picture]).shape == (1, 3, 96, 64)


def test_preprocessing_travels_to_processes_that_decode():
    clip = resized(load("demo"), 96)
    picture = Image.new("RGB", (64, 64), "red")
    sent = pickle.loads(pickle.dumps(clip.preprocess))
    assert torch.equal(sent(picture), clip.prepare([picture])[0])


@pytest.mark.parametrize("pixels", [0, 63, -64])
def test_sides_are_whole_patches(clip, pixels):
    with pytest.raises(SecondLensError, match="no multiple of that"):
        resized(clip, pixels)


def test_sizes_that_attention_cannot_hold_are_refused(clip):
    side = clip.image_size[0] // clip.grid[0]
    with pytest.raises(SecondLensError, match="16,641 patches: take a size of at most 16,384"):
        resized(clip, 129 * side)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (64, 64), (50, 301)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_windows_cover_every_pixel(height, width, count):
    seen = np.zeros((height, width), dtype=int)
    for left, upper, right, lower in boxes_of(height, width, count):
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        seen[upper:lower, left:right] += 1
    assert seen.min() >= 1
    assert len(boxes_of(height, width, count)) == count**2


def test_windows_that_agree_join_to_what_they_show():
    """Maps with a value for each pixel: windows on a picture show parts of it."""
    picture = torch.randn(1, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    boxes = boxes_of(9, 12, 2)
    maps = cut(F.pad(picture, (0, 0, 0, 0, 0, 1)), [boxes], (6, 8))[:, :2]
    torch.testing.assert_close(joined(maps, boxes, (9, 12)), picture[0])


def test_windows_are_what_segmenting_each_and_averaging_gives(clip):
    lens = sl.fit(clip, tiny_images(clip, 12), top=3)
    rng = np.random.default_rng(0)
    height, width = 2 * clip.image_size[0], 3 * clip.image_size[1]
    image = torch.from_numpy(rng.normal(size=(1, 3, height, width)))
    heat = segment(clip, lens, image, ["a dog", "a cat"], windows=2)
    assert heat.shape == (1, 2, height, width)
    one = segment(clip, lens, image, "a cat", windows=2)
    torch.testing.assert_close(one[0], heat[0, 1])
    assert heat.amin() == 0 and heat.amax() == 1


@pytest.mark.parametrize(("windows", "message"), [(0, "show nothing"), (20, "no room")])
def test_windows_are_checked(clip, windows, message):
    lens = sl.fit(clip, tiny_images(clip, 12), top=3)
    with pytest.raises(SecondLensError, match=message):
        segment(clip, lens, [Image.new("RGB", (10, 10))], "a dog", windows=windows)
