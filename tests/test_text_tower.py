"""The text tower as a model of its own, against what its own modules compute."""

import fake  # noqa: F401, a device
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import TEXT, randomise, tiny_model, tiny_tokenizer
from open_clip.model import CLIP, CustomTextCLIP
from test_readers import linear, mixed

import secondlens as sl
from secondlens.commands.group import main
from secondlens.data.texts import texts_in
from secondlens.explorer.opening import open_lens, tower_of
from secondlens.models.checks import parity_errors
from secondlens.report.page import model_view
from secondlens.verify import LiteralPass, literal_second_order, verify

VISION = {"image_size": 16, "patch_size": 8, "width": 24, "head_width": 8, "layers": 2}
TOWERS = {
    "causal, largest id": None,
    "custom, largest id": {"pool_type": "argmax"},
    "custom, last token, no mask": {"pool_type": "last", "no_causal_mask": True},
    "custom, projection with a bias": {"pool_type": "last", "proj_bias": True},
}
TOWER = pytest.mark.parametrize("tower", TOWERS)
TEXTS = ["a dog on grass", "red", "the sign says ship", "snow and a cat"]
PRECISE = {"rtol": 1e-9, "atol": 1e-12}


def built(tower, dtype=torch.float64):
    options = TOWERS[tower]
    torch.manual_seed(0)
    text = TEXT | {"layers": 3}
    kind = CLIP if options is None else CustomTextCLIP
    model = kind(12, dict(VISION), text | (options or {}))
    randomise(model)
    model = model.to(dtype).eval()
    return model, sl.from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny").text


def own(model):
    return model if isinstance(model, CLIP) else model.text


@torch.no_grad()
def literal(model, ids, layer, neuron):
    """[texts, dim]: the value paths of one neuron, by torch's own attention and mask."""
    tower, seen = own(model), {}
    blocks = tower.transformer.resblocks
    handles = [
        block.ln_1.register_forward_pre_hook(lambda m, x, j=j: seen.update({j: x[0]}))
        for j, block in enumerate(blocks)
    ]
    handles += [
        blocks[layer].mlp.c_proj.register_forward_pre_hook(lambda m, x: seen.update(p=x[0])),
        tower.ln_final.register_forward_pre_hook(lambda m, x: seen.update(post=x[0])),
    ]
    length = model.encode_text(ids).norm(dim=-1, keepdim=True)
    for handle in handles:
        handle.remove()
    write = seen["p"][:, :, neuron, None] * blocks[layer].mlp.c_proj.weight[:, neuron]
    total = 0
    for j in range(layer + 1, len(blocks)):
        block = blocks[j]
        normalised = block.ln_1(seen[j])
        rows = block.attn(
            normalised, normalised, normalised,
            attn_mask=tower.attn_mask, need_weights=True, average_attn_weights=False,
        )[1]  # fmt: skip
        total = total + mixed(block.attn, rows, linear(block.ln_1, seen[j], write))
    last = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None)) == "last"
    place = torch.full((len(ids),), ids.shape[1] - 1) if last else ids.argmax(-1)
    read = linear(tower.ln_final, seen["post"], total)[torch.arange(len(ids)), place]
    projection = tower.text_projection
    weight = projection.weight.T if isinstance(projection, torch.nn.Linear) else projection
    return read @ weight / length


@TOWER
def test_second_order_effects_are_those_of_the_towers_own_modules(tower):
    model, clip = built(tower)
    ids = tiny_tokenizer(TEXTS)
    assert clip.reads_texts and clip.last_effect_layer == 1
    for layer in (0, 1):
        found = sl.second_order(clip, TEXTS, layer)
        for neuron in (0, 9, clip.neurons - 1):
            expected = literal(model, ids, layer, neuron)
            torch.testing.assert_close(found[:, neuron], expected, **PRECISE)


@TOWER
def test_what_the_view_rebuilds_and_what_verify_writes_out_agree(tower):
    _, clip = built(tower)
    assert max(parity_errors(clip).values()) < 1e-10
    run_ = LiteralPass.of(clip, clip.prepare(TEXTS))
    for neuron in (1, 6):
        slow = literal_second_order(clip, run_, 0, neuron)
        torch.testing.assert_close(sl.second_order(clip, TEXTS, 0)[:, neuron], slow, **PRECISE)
    assert all(check.error <= check.tolerance for check in verify(clip))


@TOWER
def test_embeddings_are_those_of_the_model(tower):
    model, clip = built(tower)
    with torch.no_grad():
        expected = model.encode_text(tiny_tokenizer(TEXTS))
    torch.testing.assert_close(clip.encode_image(TEXTS), expected)


@pytest.mark.filterwarnings("ignore:.* longer than the context")
def test_a_lens_of_texts_is_fitted_described_searched_and_opened(tmp_path):
    _, clip = built("causal, largest id", torch.float32)
    texts = [f"{a} {b}" for a in ("dog", "cat", "ship", "sun") for b in ("on snow", "in red", "by")]
    lens = sl.fit(clip, texts, top=4, out=tmp_path / "lens")
    assert lens.image_ids == tuple(texts) and lens.model["tower"] == "text"
    effects = sl.second_order(clip, texts, 0)
    torch.testing.assert_close(lens[0].mean, effects.mean(0), rtol=1e-4, atol=1e-6)
    lens = sl.Lens.load(tmp_path / "lens")
    lens.check_model(clip)
    strongest = (effects[:, 5] - lens[0].mean[5]).norm(dim=-1).argmax()
    assert lens[0].top_images[5, 0] == strongest
    described = sl.describe(clip, lens, ["dog", "cat", "snow", "red"], k=2)
    assert len(described.words(0, 5)) == 2
    assert len(sl.search(clip, lens, "dog", top=3)) == 3


def test_the_explorer_shows_texts_as_texts_without_heat_maps(tmp_path):
    clip = sl.load("demo").text
    texts = [
        f"a {name} on {place}" for name in ("dog", "cat", "ship") for place in ("snow", "sand")
    ]
    lens = sl.fit(clip, texts, [1], top=2)
    sl.describe(clip, lens, ["dog", "cat", "sea", "snow", "sand"], 2)
    lens.save(tmp_path / "lens")
    assert tower_of(tmp_path / "lens") == "text"
    atlas, live = open_lens(tmp_path / "lens", clip, None, None, say=lambda _: None)
    assert live is None and atlas.model()["tower"] == "text" and atlas.model()["images"] == 6
    seen = atlas.survey.layers[1]
    assert (np.asarray(seen.images) >= 0).any() and not np.asarray(seen.heat).any()
    ids = clip.prepare(texts[:1])[0]
    assert clip.words_of(ids) == texts[0]
    page = np.asarray(model_view(clip)(ids))
    assert page.shape == (192, 192, 3) and page.min() < 64 and page.max() == 255


def test_commands_take_the_text_tower(tmp_path):
    texts, lens = tmp_path / "texts.txt", tmp_path / "lens"
    texts.write_text("".join(f"a {each} on grass\n" for each in ("dog", "cat", "ship", "sun")))

    def run(*arguments):
        done = CliRunner().invoke(main, [str(each) for each in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    run("fit", texts, "--tower", "text", "--layers", "1", "--out", lens)
    (tmp_path / "words.txt").write_text("dog\ncat\nship\nsun\n")
    run("describe", lens, "--tower", "text", "--texts", tmp_path / "words.txt", "-k", "2")
    assert "dog" in run("search", lens, "dog", "--tower", "text")
    refused = CliRunner().invoke(main, ["fit", str(texts), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    unplanned = CliRunner().invoke(main, ["plan", "500", "--tower", "text"])
    assert unplanned.exit_code == 2 and "fit with --tower text" in unplanned.output


def test_lenses_of_the_two_towers_are_not_each_others():
    model = tiny_model()
    clip = sl.from_open_clip(model, tokenizer=tiny_tokenizer)
    images = torch.randn(6, 3, 16, 16)
    lens = sl.fit(clip, images, top=2)
    lens.check_model(clip)
    with pytest.raises(sl.SecondLensError, match="other weights"):
        lens.check_model(clip.text)


def test_files_of_texts_have_one_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a dog\n\n  a cat \na dog\n", encoding="utf-8")
    with pytest.warns(sl.SecondLensWarning, match="2 of 4 lines .* empty or repeat another"):
        assert texts_in(path).ids == ["a dog", "a cat"]


@TOWER
def test_an_accelerator_agrees_with_the_cpu(tower):
    model, clip = built(tower, torch.float32)
    there = sl.from_open_clip(model.to("fake:0"), tokenizer=tiny_tokenizer).text
    found = sl.second_order(there, TEXTS, 0), sl.direct(there, TEXTS, 1)
    assert all(each.device.type == "fake" for each in found)
    _, clip = built(tower, torch.float32)
    expected = sl.second_order(clip, TEXTS, 0), sl.direct(clip, TEXTS, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-6)


def test_texts_whose_ends_are_not_seen_are_told():
    clip = sl.load("demo").text
    texts = ["a dog", "a very long text about " + "a red dog and a blue cat and " * 4 + "a ship"]
    with pytest.warns(sl.SecondLensWarning, match="1 of 2 texts are longer than the context"):
        sl.fit(clip, texts, [1], top=2)


def test_what_is_not_a_text_is_told_in_a_sentence(tmp_path):
    _, clip = built("causal, largest id")
    for images, words in (
        ("a dog", "not one"),
        (["a", " "], "text 1 is"),
        ([], "no images"),
        (tmp_path / "none.txt", "none.txt is not one"),
    ):
        with pytest.raises(sl.SecondLensError, match=words):
            sl.fit(clip, images, top=1)
    with pytest.raises(sl.SecondLensError, match="takes texts in a list"):
        sl.second_order(clip, "a dog", 0)
    wordless = sl.from_open_clip(clip.model).text
    with pytest.raises(sl.SecondLensError, match="came without a tokenizer"):
        sl.fit(wordless, TEXTS, top=1)
    with pytest.raises(sl.UnsupportedModel, match="reads texts"):
        sl.indirect(clip, TEXTS, 0, [0], torch.zeros(clip.tokens, clip.neurons))
