import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image

import secondlens as sl
from secondlens.applications.discovery import RIDGE, Discoverer, discover, metric
from secondlens.commands.group import main
from secondlens.demo.scenes import Scenes, World
from secondlens.effects.capture import Capture
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.sparse.pursuit import omp
from secondlens.words.describing import describe

TEXTS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def lens(clip):
    fitted = fit(clip, tiny_images(clip, 60, seed=9), top=6)
    describe(clip, fitted, TEXTS, 5)
    return fitted


@pytest.fixture(scope="module")
def image(clip):
    return tiny_images(clip, 1, seed=5)[0]


def active_effects(clip, lens, image, paper=False):
    """(layer, neuron) -> centred effect, materialised."""
    found = {}
    for layer in lens.layers:
        fitted = lens[layer]
        away = second_order(clip, image[None], layer)[0] - fitted.mean
        limit = fitted.threshold if paper else fitted.energy.sqrt()
        for n in range(clip.neurons):
            if away[n].norm() > limit[n]:
                r = fitted.directions[n]
                found[layer, n] = away[n] if paper else (away[n] @ r) * r
    return found


def test_words_are_the_code_of_the_summed_effects(clip, lens, image):
    effects = active_effects(clip, lens, image)
    rows = clip.encode_text(TEXTS)
    scale = metric(lens)
    atoms = F.normalize((rows - rows.mean(0)) @ scale, dim=1)
    total = torch.stack(list(effects.values())).sum(0) @ scale
    indices, weights = omp(total[None], atoms, 4, nonnegative=True)
    expected = {TEXTS[i]: w for i, w in zip(indices[0], weights[0], strict=True) if w > 0}
    words = discover(clip, lens, image, 4)
    # what `describe` normalises, discovery takes from the texts of the description
    found = {word.text: word.weight for word in words}
    assert found.keys() == expected.keys()
    for text, weight in expected.items():
        assert found[text] == pytest.approx(float(weight), abs=1e-6)
    assert [w.weight for w in words] == sorted(found.values(), reverse=True)
    assert {(c.layer, c.neuron) for c in words[0].neurons} == effects.keys()


def test_the_papers_form_sums_codes_times_norms(clip, lens, image):
    codes = lens.codes["texts"]
    expected = dict.fromkeys(TEXTS, 0.0)
    for (layer, n), effect in active_effects(clip, lens, image, paper=True).items():
        pairs = zip(codes.indices[layer][n], codes.coefficients[layer][n], strict=True)
        for text, weight in pairs:
            if text >= 0:
                expected[TEXTS[text]] += float(weight * effect.norm())
    words = discover(clip, lens, image, 5, paper=True)
    strongest = sorted((w for w in expected.values() if w > 0), reverse=True)[:5]
    assert [w.weight for w in words] == pytest.approx(strongest)
    assert all(w.weight == pytest.approx(expected[w.text]) for w in words)


@pytest.mark.parametrize("paper", [False, True])
def test_weights_split_over_neurons_heads_and_tokens(clip, lens, image, paper):
    for word in discover(clip, lens, image, 4, paper=paper):
        text, weight, neurons = word
        assert text == word.text
        assert repr(word) == f"Word({text!r}, {weight:.3g}, {len(neurons)} neurons)"
        assert sum(each.weight for each in neurons) == pytest.approx(weight, abs=1e-8)
        assert float(word.heads.sum()) == pytest.approx(weight, abs=1e-8)
        assert float(word.patches.sum()) + word.class_token == pytest.approx(weight, abs=1e-8)
        assert word.patches.shape == clip.grid
        assert word.heads.shape == (clip.layers, clip.heads)
        assert not word.heads[0].any()


def test_what_a_patch_carries_is_what_it_would_take_away(clip, lens, image):
    """A patch's part, by attention and activations alone: other patches' activations at zero."""
    discoverer = Discoverer(clip, lens)
    with Capture(clip, lens.layers, keep_activations=True) as capture:
        pooled = capture.pool(clip.encode_image(image[None]))
    effects = discoverer.centred_effects(pooled, 0)
    active = discoverer.active(effects)
    code = discoverer.code(effects, active, 3)
    words = discoverer(image[None], 3)[0]
    layer_parts = torch.zeros(len(code.indices), clip.tokens, dtype=torch.float64)
    for layer in lens.layers:
        u = discoverer.factors[layer].rows()
        later = range(layer + 1, clip.layers)
        attention = torch.cat([pooled.attention_over_sigma[j][0] for j in later])
        shared = 0
        for a, n in enumerate(active[layer].nonzero()[:, 0].tolist()):
            functional = code.functionals[layer][a]
            p = pooled.activations[layer][0, :, n]
            per_token = torch.einsum("kt,t,kd,wd->wt", attention, p, u[n], functional)
            layer_parts += per_token * pooled.scale[0]
            shared = shared + functional @ lens[layer].mean[n]
        layer_parts -= shared[:, None] / clip.tokens
    for word, expected in zip(words, layer_parts, strict=True):
        assert torch.allclose(word.patches.flatten(), expected[1:], atol=1e-10)


def test_metric(lens):
    scale = metric(lens).double()
    directions = torch.cat([lens[layer].directions for layer in lens.layers]).double()
    moment = directions.T @ directions
    moment *= len(moment) / moment.trace()
    identity = torch.eye(len(moment), dtype=torch.float64)
    assert torch.allclose(scale @ (moment + RIDGE * identity) @ scale, identity, atol=1e-8)


def test_synonyms_are_one_word(clip, lens, image):
    discoverer = Discoverer(clip, lens)
    plain = discoverer(image[None], 4)[0]
    first, last = (TEXTS.index(word.text) for word in (plain[0], plain[-1]))
    discoverer.centred[last] = discoverer.centred[first]
    merged = discoverer(image[None], 4)[0]
    assert [word.text for word in merged] == [word.text for word in plain[:-1]]
    assert merged[0].synonyms == (TEXTS[last],)
    assert merged[0].weight == pytest.approx(plain[0].weight + plain[-1].weight)
    assert torch.allclose(merged[0].patches, plain[0].patches + plain[-1].patches)
    assert sum(c.weight for c in merged[0].neurons) == pytest.approx(merged[0].weight, abs=1e-8)


def test_an_image_of_the_world_and_its_tensor_agree():
    clip = sl.load("demo")
    lens = sl.fit(clip, Scenes(World(), 81, 60), layers=[5])
    describe(clip, lens, "world", 8)
    picture = World().scene(82, objects=["ship"], background="sea").image
    from_picture = discover(clip, lens, picture, 5)
    from_tensor = discover(clip, lens, clip.prepare([picture])[0], 5)
    assert [w.text for w in from_picture] == [w.text for w in from_tensor]
    # the built-in vocabulary brings its prompts along: bare labels are other texts
    bare = discover(clip, lens, picture, 5, texts=list(lens.codes["world"].labels))
    assert [w.weight for w in bare] != [w.weight for w in from_picture]


def test_mistakes(clip, lens, image):
    for top in (0, 13):
        with pytest.raises(SecondLensError, match="top must lie between 1 and 12"):
            discover(clip, lens, image, top)
    undescribed = fit(clip, tiny_images(clip, 20), top=3)
    with pytest.raises(SecondLensError, match="no description yet"):
        discover(clip, undescribed, image)
    assert discover(clip, undescribed, image, 3, texts=TEXTS)
    with pytest.raises(SecondLensError, match="no description yet"):
        discover(clip, undescribed, image, 3, texts=TEXTS, paper=True)
    with pytest.raises(SecondLensError, match="other texts of the name"):
        discover(clip, lens, image, 3, texts=TEXTS[1:], paper=True)
    official = fit(clip, tiny_images(clip, 20), top=3, convention="official")
    with pytest.raises(SecondLensError, match="convention exact"):
        discover(clip, official, image, 3, texts=TEXTS)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discover")
    clip = sl.load("demo")
    lens = sl.fit(clip, Scenes(World(), 81, 60), layers=[5])
    describe(clip, lens, "world", 8)
    lens.save(folder / "lens")
    World().scene(83, objects=["dog"], background="red").image.save(folder / "a <b> dog.png")
    (folder / "no.png").write_text("no picture")
    return folder


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_command_writes_json_and_a_page(on_disk, tmp_path):
    photo = on_disk / "a <b> dog.png"
    arguments = ["discover", on_disk / "lens", photo, "--top", 4]
    result = run(*arguments, "--json", "--page", tmp_path / "words.html")
    assert result.exit_code == 0
    written = json.loads(result.stdout)["words"]
    words = discover(sl.load("demo"), Lens.load(on_disk / "lens"), Image.open(photo), 4)
    assert [each["text"] for each in written] == [word.text for word in words]
    assert written[0]["weight"] == pytest.approx(words[0].weight, rel=1e-5)
    page = (tmp_path / "words.html").read_text()
    assert "a &lt;b&gt; dog.png" in page
    assert "<b> dog" not in page
    assert page.count("<li>") == len(words)
    assert "http" not in page.replace("http-equiv", "")
    shown = run(*arguments, "--paper")
    assert shown.exit_code == 0
    assert "strongest neurons" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["HERE/lens", "HERE/missing.png"], "cannot be read as a picture"),
        (["HERE/lens", "HERE/no.png"], "cannot be read as a picture"),
        (["HERE", "HERE/a <b> dog.png"], "holds no lens"),
        (["HERE/lens", "HERE/a <b> dog.png", "--texts", "nowhere"], "no vocabulary"),
        (["HERE/lens", "HERE/a <b> dog.png", "--top", "0"], "--top"),
        (["HERE/lens", "HERE/a <b> dog.png", "--top", "1000"], "top must lie between"),
        (["HERE/lens", "HERE/a <b> dog.png", "--page", "HERE/none/x.html"], "no folder"),
        (["HERE/lens", "HERE/a <b> dog.png", "--model", "demo-twin"], "other weights"),
    ],
)
def test_mistakes_are_one_sentence(on_disk, arguments, message):
    before = sorted(on_disk.rglob("*"))
    result = run("discover", *(a.replace("HERE", str(on_disk)) for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(on_disk.rglob("*")) == before
