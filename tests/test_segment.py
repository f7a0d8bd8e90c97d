from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from oracle import Run, class_attention
from PIL import Image
from torchvision.transforms.functional import to_tensor

from secondlens.applications.segmentation.heat_maps import (
    LEGEND,
    colour_of,
    label_map,
    label_picture,
    outlined,
    overlay,
    standardise,
    with_names,
    with_scale,
)
from secondlens.applications.segmentation.segmenter import (
    BEST,
    PAPER,
    Recipe,
    Segmenter,
    encode,
)
from secondlens.applications.segmentation.segmenting import segment
from secondlens.commands.group import main
from secondlens.data.embedding import embed_texts
from secondlens.demo.scenes import World
from secondlens.effects.value_paths import second_order, value_paths
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, lambda p: to_tensor(p).double(), tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    return fit(clip, tiny_images(clip, 40, seed=9), top=5)


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 3)


@pytest.fixture(scope="module")
def texts(clip):
    return embed_texts(clip, ["a dog", "sea"])


def literally(clip, lens, images, text, recipe):
    """A raw heat-map [images, patches] with a loop over layers, neurons, patches and paths."""
    read = recipe.layers or (2,)
    count = recipe.neurons or round(recipe.share * 48 * len(read))
    found = []
    for layer in read:
        for n in range(clip.neurons):
            cosine = float(lens[layer].directions[n] @ text)
            found.append((abs(cosine) if recipe.choose == "absolute" else cosine, cosine, layer, n))
    run = Run(clip.model, images)
    maps = torch.zeros(len(images), 4, dtype=torch.float64)
    for _, cosine, layer, n in sorted(found, reverse=True)[:count]:
        paths = value_paths(clip, layer)[n] @ text
        for t in range(1, 5):
            value = run.activations[layer][:, t, n].detach()
            mean = lens[layer].activation_mean[:, n]
            if recipe.scale != "none":
                value = value - mean[t]
            if recipe.scale == "standard":
                value = value / mean[1:].square().mean().sqrt()
            if recipe.weigh == "effect":
                reached = 0
                for j in range(layer + 1, 4):
                    block, stream = run.blocks[j], run.streams[j]
                    sigma = (stream[:, t].var(-1, correction=0) + block.ln_1.eps).sqrt()
                    for h in range(3):
                        attended = class_attention(block, stream)[:, h, t]
                        reached += attended / sigma * paths[(j - layer - 1) * 3 + h]
                value = value * reached.detach()
            weight = {"sign": 1.0 if cosine > 0 else -1.0, "cosine": cosine}
            maps[:, t - 1] += weight.get(recipe.weigh, 1.0) * value / count
    return maps


@pytest.mark.parametrize(
    "recipe",
    [
        BEST,
        PAPER,
        replace(PAPER, layers=(0, 2), neurons=7, choose="positive"),
        Recipe(neurons=9, weigh="sign", scale="centred"),
        Recipe(layers=(1, 2), neurons=5, weigh="cosine", scale="standard"),
        Recipe(layers=(1, 2), neurons=11, weigh="effect", scale="none"),
        Recipe(layers=(2,), neurons=48, weigh="effect", scale="centred"),
    ],
    ids=str,
)
def test_heat_maps_equal_loops(clip, lens, images, texts, recipe):
    segmenter = Segmenter(clip, lens, recipe)
    encoded = encode(clip, images, segmenter.layers)
    found = segmenter.heat_maps(encoded, texts.expand(3, -1, -1)).flatten(2)
    for i, text in enumerate(texts):
        expected = literally(clip, lens, images, text, recipe)
        torch.testing.assert_close(found[:, i], expected, rtol=1e-9, atol=1e-12)


def test_effects_of_all_neurons_add_up_over_patches_and_class_token(clip, lens, images, texts):
    """The maps of `effect` leave out the class token only, and the image's own scale."""
    recipe = Recipe(layers=(1,), neurons=48, weigh="effect", scale="none")
    segmenter = Segmenter(clip, lens, recipe)
    found = segmenter.heat_maps(encode(clip, images, [1]), texts.expand(3, -1, -1)).sum((2, 3))
    run = Run(clip.model, images)
    at_class = run.activations[1].clone()
    at_class[:, 1:] = 0
    sigma = (run.class_token.var(-1, correction=0) + 1e-5).sqrt()
    scale = sigma * run.representation.norm(dim=-1)
    whole = (second_order(clip, images, 1).sum(1) @ texts.T) * scale[:, None]
    paths = value_paths(clip, 1) @ texts.T
    own = 0
    for j in (2, 3):
        stream = run.streams[j][:, 0]
        token_sigma = (stream.var(-1, correction=0) + 1e-5).sqrt()
        for h in range(3):
            attended = class_attention(run.blocks[j], run.streams[j])[:, h, 0] / token_sigma
            own += attended[:, None] * (at_class[:, 0] @ paths[:, (j - 2) * 3 + h])
    torch.testing.assert_close(48 * found, (whole - own).detach(), rtol=1e-9, atol=1e-12)


def test_shares_are_of_the_layers_read(clip, lens):
    segmenter = Segmenter(clip, lens)
    assert (segmenter.layers, segmenter.neurons) == ([2], 5)
    paper = replace(PAPER, layers=(0, 1, 2))
    assert Segmenter(clip, lens, paper).neurons == round(200 * 144 / 9216)
    assert Segmenter(clip, lens, Recipe(layers=(0, 1, 2))).neurons == round(1000 * 144 / 9216)


def test_chosen_neurons_are_those_with_the_largest_projection(clip, lens, texts):
    segmenter = Segmenter(clip, lens, Recipe(layers=(1, 2), neurons=6))
    cosine = torch.cat([lens[1].directions, lens[2].directions]) @ texts[0]
    expected = sorted(range(96), key=lambda n: -abs(float(cosine[n])))[:6]
    assert segmenter.chosen(texts)[0].tolist() == expected


def test_segment_gives_what_it_was_asked_for(clip, lens, images, texts):
    noise = torch.rand(24, 40, 3, generator=torch.Generator().manual_seed(3))
    picture = Image.fromarray((255 * noise).byte().numpy())
    paper = segment(clip, lens, picture, "a dog", recipe=PAPER)
    assert (float(paper.min()), float(paper.max())) == (0, 1)
    one = segment(clip, lens, picture, "a dog")
    assert one.shape == paper.shape == (24, 40)
    several = segment(clip, lens, [picture, picture.resize((9, 9))], ["a dog", "sea"])
    assert [tuple(each.shape) for each in several] == [(2, 24, 40), (2, 9, 9)]
    torch.testing.assert_close(several[0][0], one)
    stacked = segment(clip, lens, images, "a dog")
    assert stacked.shape == (3, 16, 16)
    torch.testing.assert_close(segment(clip, lens, images[1], "a dog"), stacked[1])
    raw = literally(clip, lens, images, texts[0], BEST).unflatten(1, (2, 2))
    torch.testing.assert_close(stacked, standardise(raw.clamp(min=0), (16, 16)))


def test_positive_heat_starts_at_zero(clip, lens, images, texts):
    recipe = Recipe(neurons=9, weigh="cosine", positive=True)
    found = segment(clip, lens, images, "a dog", recipe=recipe)
    raw = literally(clip, lens, images, texts[0], recipe).unflatten(1, (2, 2))
    assert (raw < 0).any()
    torch.testing.assert_close(found, standardise(raw.clamp(min=0), (16, 16)))


def test_batches_of_any_size_give_the_same(clip, lens):
    many = tiny_images(clip, 70, seed=3)
    together = segment(clip, lens, many, "a dog")
    for i in (0, 31, 32, 69):
        torch.testing.assert_close(together[i], segment(clip, lens, many[i], "a dog"))


def test_against_subtracts_the_mean_of_other_texts(clip, lens, images, texts):
    found = segment(clip, lens, images, "a dog", against=["sea", "a dog"])
    segmenter = Segmenter(clip, lens)
    row = texts[0] - texts.mean(0)
    raw = segmenter.heat_maps(encode(clip, images, [2]), row.expand(3, 1, -1))[:, 0]
    torch.testing.assert_close(found, standardise(raw.clamp(min=0), (16, 16)))
    one = segment(clip, lens, images, "a dog", against="sea")
    torch.testing.assert_close(one, segment(clip, lens, images, "a dog", against=["sea"]))


def test_standardise_scales_each_map_and_knows_constants():
    maps = torch.tensor(
        [[[1.0, 3.0], [1.0, 3.0]], [[0.1, 0.1], [0.1, 0.1]], [[-5, -5], [-5, -9.0]]]
    )
    found = standardise(maps, (2, 2))
    assert found.tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 0]]]
    large = standardise(maps, (64, 7))
    assert large[1].abs().max() == 0
    assert large.isfinite().all()
    assert torch.equal(large[0].amin((-2, -1)), torch.tensor(0.0))
    assert torch.equal(large[0].amax((-2, -1)), torch.tensor(1.0))
    expected = F.interpolate(maps[None, :1], (64, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large[0], (expected[0, 0] - 1) / 2)


def test_label_map_takes_the_hottest_text_or_none():
    heat = torch.tensor([[[0.9, 0.4, 0.5]], [[0.8, 0.3, 0.7]]])
    assert label_map(heat).tolist() == [[1, 0, 2]]
    assert label_map(heat, threshold=0.35).tolist() == [[1, 1, 2]]
    picture = label_picture(label_map(heat))
    assert [picture.getpixel((x, 0)) for x in range(3)] == [1, 0, 2]
    with pytest.raises(SecondLensError, match="at most 255"):
        label_picture(torch.full((1, 1), 256))


def test_overlay_colours_what_is_hot_and_checks_sizes():
    picture = Image.new("RGB", (2, 1), (0, 0, 255))
    found = overlay(picture, torch.tensor([[0.0, 1.0]]))
    assert found.getpixel((0, 0)) == (0, 0, 255)
    # three quarters of the yellow at the end of the scale
    assert found.getpixel((1, 0)) == pytest.approx((180, 187, 88), abs=3)
    legend = with_scale(found, "a dog")
    assert legend.size == (256, 1 + LEGEND) and legend.getpixel((1, 0)) == found.getpixel((1, 0))
    with pytest.raises(SecondLensError, match="1 x 2 pixels and the picture 2 x 1"):
        overlay(picture, torch.zeros(2, 1))


def test_outlines_are_drawn_in_the_colours_of_texts():
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[5:20, 5:30], labels[22:38, 31:58] = 1, 2
    picture = Image.new("RGB", (60, 40), (100, 100, 100))
    found = outlined(picture, labels)
    assert found.getpixel((0, 0)) == (100, 100, 100)
    for text, (left, top), middle in ((0, (5, 5), (17, 12)), (1, (31, 22), (44, 30))):
        assert found.getpixel((left, top)) == colour_of(text)
        mixed = [round(0.3 * c + 0.7 * 100) for c in colour_of(text)]
        assert found.getpixel(middle) == pytest.approx(tuple(mixed), abs=2)
    named = with_names(found, ["a dog", "the sea, " * 40])
    assert named.size == (256, 40 + 2 * LEGEND)
    assert named.getpixel((12, 40 + LEGEND // 2)) == colour_of(0)
    with pytest.raises(SecondLensError, match="60 x 40 pixels and the picture 40 x 60"):
        outlined(picture.rotate(90, expand=True), labels)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts"),
        (["a dog", "  "], "a text with nothing in it"),
        ("", "a text with nothing in it"),
        ("a dog on the grass", "longer than tiny can read"),
    ],
)
def test_bad_texts(clip, lens, images, texts, message):
    with pytest.raises(SecondLensError, match=message):
        segment(clip, lens, images, texts)


def test_a_text_that_just_fits_is_read(clip):
    """Seven letters and the end mark fill the context of eight."""
    assert len(embed_texts(clip, ["seaside"])) == 1
    with pytest.raises(SecondLensError, match="longer"):
        embed_texts(clip, ["seasides"])


def test_bad_images_and_recipes(clip, lens, images):
    with pytest.raises(SecondLensError, match="no images"):
        segment(clip, lens, [], "a dog")
    with pytest.raises(SecondLensError, match="1 x 5000 pixels"):
        segment(clip, lens, Image.new("RGB", (1, 5000)), "a dog")
    with pytest.raises(SecondLensError, match="have 48 neurons, not 49"):
        segment(clip, lens, images, "a dog", recipe=Recipe(neurons=49))
    with pytest.raises(SecondLensError, match="layer 3 is not in this lens"):
        Segmenter(clip, lens, Recipe(layers=(3,)))
    with pytest.raises(SecondLensError, match="0 windows show nothing"):
        segment(clip, lens, images, "a dog", windows=0)
    with pytest.raises(SecondLensError, match="4 x 4 pixels has no room for 5 windows"):
        segment(clip, lens, Image.new("RGB", (4, 4)), "a dog", windows=5)
    other = from_open_clip(tiny_model(seed=5, dtype=torch.float64, layers=4))
    with pytest.raises(SecondLensError, match="other weights"):
        Segmenter(other, lens)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"neurons": 0}, "0 neurons make no heat-map"),
        ({"share": 0.0}, "a share of 0.0 of the neurons"),
        ({"share": 1.5}, "a share of 1.5 of the neurons"),
        ({"layers": ()}, "no layers make no heat-map"),
    ],
)
def test_recipes_that_cannot_be_followed(choices, message):
    with pytest.raises(SecondLensError, match=message):
        Recipe(**choices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("choose", "choose is 'best': choose one of absolute, positive"),
        ("weigh", "weigh is 'best': choose one of equal, sign, cosine, effect"),
        ("scale", "scale is 'best': choose one of none, centred, standard"),
    ],
)
def test_choices_that_do_not_exist(name, message):
    recipe = Recipe()
    # types are checked in tests, before the recipe itself can object
    object.__setattr__(recipe, name, "best")
    with pytest.raises(SecondLensError, match=message):
        recipe.__post_init__()


@pytest.fixture(scope="module")
def demo_lens(tmp_path_factory):
    """A lens of the embedded model over a few scenes."""
    from secondlens.demo.scenes import Scenes, World
    from secondlens.models.loading import load

    out = tmp_path_factory.mktemp("demo") / "lens"
    fit(load("demo"), Scenes(World(), 5, 12), [5, 6], top=3, out=out)
    return out


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read(path):
    with Image.open(path) as image:
        return image.copy()


def test_the_command_writes_heat_mask_overlay_and_labels(demo_lens, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    World().scene(4, objects=["dog"], background="sea").image.resize((50, 30)).save(photo)
    result = run(
        *("segment", demo_lens, photo, "--text", "a dog", "--text", "the sea", "--out", out),
        *("--paper", "--layers", "all", "--neurons", 20, "--threshold", 0.4),
    )
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    each = {f"{n}-{kind}.png" for n in (1, 2) for kind in ("heat", "mask", "overlay")}
    assert names == each | {"labels.png", "outlines.png"}
    heat, mask = (read(out / f"1-{kind}.png") for kind in ("heat", "mask"))
    assert heat.size == mask.size == (50, 30)
    assert heat.getextrema() == (0, 255)
    for x in range(0, 50, 7):
        if abs(heat.getpixel((x, 9)) - 0.4 * 255) > 1:
            assert (mask.getpixel((x, 9)) == 255) == (heat.getpixel((x, 9)) > 0.4 * 255)
    assert "1: a dog:" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LENS", "PHOTO", "--text", "", "--out", "OUT"], "a text with nothing in it"),
        (["LENS", "PHOTO", "--text", "a dog " * 40, "--out", "OUT"], "longer than demo can read"),
        (["LENS", "LONG", "--text", "dog", "--out", "OUT"], "1 x 5000 pixels"),
        (["LENS", "nothing.png", "--text", "dog", "--out", "OUT"], "cannot be read as a picture"),
        (["LENS", "PHOTO", "--text", "dog", "--out", "LENS"], "exists already"),
        (["LENS", "PHOTO", "--text", "dog", "--out", "OUT", "--layers", "2"], "layer 2 is not in"),
        (["PHOTO", "PHOTO", "--text", "dog", "--out", "OUT"], "holds no lens"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(arguments, message, demo_lens, tmp_path):
    places = {"LENS": demo_lens, "OUT": tmp_path / "out"}
    places |= {"PHOTO": tmp_path / "photo.png", "LONG": tmp_path / "long.png"}
    Image.new("RGB", (30, 30)).save(places["PHOTO"])
    Image.new("RGB", (1, 5000)).save(places["LONG"])
    result = run("segment", *(places.get(a, a) for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
