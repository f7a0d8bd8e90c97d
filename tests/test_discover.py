import json
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image

import secondlens as sl
from secondlens.applications.discovery import finding
from secondlens.applications.discovery.finding import Discoverer, discover
from secondlens.commands.group import main
from secondlens.demo.scenes import Scenes, World
from secondlens.effects.capture import Capture
from secondlens.effects.value_paths import path_factors, second_order
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.describing import describe
from secondlens.words.voting import vote

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


def token_effects(clip, lens, image):
    """Sum over neurons of what each token sends, one neuron and path at a time: [tokens, dim]."""
    with Capture(clip, [2], keep_activations=True) as capture:
        pooled = capture.pool(clip.encode_image(image[None]))
    sent = {}
    for layer in [2]:  # a quarter of four layers
        u = path_factors(clip, layer).rows()
        attention = torch.cat([pooled.attention_over_sigma[j][0] for j in range(layer + 1, 4)])
        away = pooled.activations[layer][0] - lens[layer].activation_mean
        for n in range(clip.neurons):
            through = attention[:, :, None] * away[:, n, None] * u[n][:, None]
            sent[layer, n] = through * pooled.scale[0]  # paths, tokens, dim
    return sent


def votes_of(sent, atoms):
    """weights[word], shares[token, word], by the formula."""
    total = torch.stack([each.sum(0) for each in sent.values()]).sum(0)
    along = total @ atoms.T
    shares = torch.zeros_like(along)
    for t, row in enumerate(along):
        cosine = row / total[t].norm()
        spread = ((cosine - cosine.mean()) ** 2).mean().sqrt()
        e = (cosine / (0.35 * spread)).exp()
        shares[t] = e / e.sum()
    return (shares * along).sum(0), shares


def atoms_of(clip):
    rows = clip.encode_text(TEXTS)
    return F.normalize(rows - rows.mean(0), dim=1)


def test_tokens_vote_for_words(clip, lens, image, monkeypatch):
    monkeypatch.setattr(finding, "SYNONYM", 1.0)
    weights, _ = votes_of(token_effects(clip, lens, image), atoms_of(clip))
    expected = {TEXTS[i]: float(weights[i]) for i in weights.topk(4).indices if weights[i] > 0}
    words = discover(clip, lens, image, 4)
    assert {word.text: word.weight for word in words} == pytest.approx(expected, abs=1e-9)
    assert [w.weight for w in words] == sorted((w.weight for w in words), reverse=True)


def test_a_word_splits_over_neurons_heads_and_tokens(clip, lens, image, monkeypatch):
    monkeypatch.setattr(finding, "SYNONYM", 1.0)
    atoms, sent = atoms_of(clip), token_effects(clip, lens, image)
    _, shares = votes_of(sent, atoms)
    for word in discover(clip, lens, image, 4):
        w = TEXTS.index(word.text)
        parts = {
            each: torch.einsum("ktd,d,t->kt", through, atoms[w], shares[:, w])
            for each, through in sent.items()
        }
        heads = torch.zeros(clip.layers, clip.heads, dtype=torch.float64)
        for (layer, _), part in parts.items():
            heads[layer + 1 :] += part.sum(1).reshape(-1, clip.heads)
        tokens = torch.stack([part.sum(0) for part in parts.values()]).sum(0)
        own = {each: float(part.sum()) for each, part in parts.items()}
        told = {(each.layer, each.neuron): each.weight for each in word.neurons}
        assert told == pytest.approx({each: own[each] for each in told}, abs=1e-9)
        assert min(told.values()) >= max(v for each, v in own.items() if each not in told)
        assert word.others == pytest.approx(sum(own.values()) - sum(told.values()), abs=1e-9)
        assert word.active == len(own)
        assert torch.allclose(word.heads.double(), heads, atol=1e-6)
        assert torch.allclose(word.patches.flatten(), tokens[1:], atol=1e-9)
        assert word.class_token == pytest.approx(float(tokens[0]), abs=1e-9)


def test_a_token_votes_alike_whatever_its_length():
    generator = torch.Generator().manual_seed(2)
    sent = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    atoms = F.normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=1)
    one, other = vote(sent, atoms, 6), vote(3 * sent, atoms, 6)
    assert torch.equal(one.indices, other.indices)
    assert torch.allclose(3 * one.weights, other.weights)
    silent = vote(torch.zeros(5, 8, dtype=torch.float64), atoms, 6)
    assert not len(silent.indices)


def test_the_papers_form_sums_codes_times_norms(clip, lens, image):
    codes = lens.codes["texts"]
    expected = dict.fromkeys(TEXTS, 0.0)
    for layer in lens.layers:
        fitted = lens[layer]
        away = second_order(clip, image[None], layer)[0] - fitted.mean
        for n in (away.norm(dim=1) > fitted.threshold).nonzero()[:, 0].tolist():
            pairs = zip(codes.indices[layer][n], codes.coefficients[layer][n], strict=True)
            for text, weight in pairs:
                if text >= 0:
                    expected[TEXTS[text]] += float(weight * away[n].norm())
    words = discover(clip, lens, image, 5, paper=True)
    strongest = sorted((w for w in expected.values() if w > 0), reverse=True)[:5]
    assert [w.weight for w in words] == pytest.approx(strongest)
    assert all(w.weight == pytest.approx(expected[w.text]) for w in words)


@pytest.mark.parametrize("paper", [False, True])
def test_weights_are_the_sums_of_their_parts(clip, lens, image, paper):
    for word in discover(clip, lens, image, 4, paper=paper):
        text, weight, neurons = word
        assert text == word.text
        assert repr(word) == f"Word({text!r}, {weight:.3g}, {word.active} neurons)"
        parts = sum(each.weight for each in neurons) + word.others
        assert parts == pytest.approx(weight, abs=1e-8)
        assert float(word.heads.sum()) == pytest.approx(weight, abs=1e-6)
        assert float(word.patches.sum()) + word.class_token == pytest.approx(weight, abs=1e-8)
        assert word.patches.shape == clip.grid
        assert word.heads.shape == (clip.layers, clip.heads)
        assert not word.heads[0].any()


def test_synonyms_are_one_word(clip, lens, image, monkeypatch):
    discoverer = Discoverer(clip, lens)
    monkeypatch.setattr(finding, "CANDIDATES", 1)
    monkeypatch.setattr(finding, "SYNONYM", 1.0)
    plain = discoverer(image[None], 4)[0]
    first, last = (TEXTS.index(word.text) for word in (plain[0], plain[-1]))
    alike = discoverer.atoms[first] @ discoverer.atoms[last]
    others = [
        float(discoverer.atoms[TEXTS.index(a.text)] @ discoverer.atoms[TEXTS.index(b.text)])
        for a, b in combinations(plain, 2)
    ]
    pairs = sorted(others, reverse=True)
    monkeypatch.setattr(finding, "SYNONYM", (pairs[0] + pairs[1]) / 2)
    merged = discoverer(image[None], 4)[0]
    assert len(merged) == len(plain) - 1 and alike <= pairs[0]
    (both,) = [word for word in merged if word.synonyms]
    members = [word for word in plain if word.text in (both.text, *both.synonyms)]
    assert both.text == members[0].text and both.synonyms == (members[1].text,)
    assert both.weight == pytest.approx(sum(word.weight for word in members))
    assert torch.allclose(both.patches, members[0].patches + members[1].patches)
    parts = sum(each.weight for each in both.neurons) + both.others
    assert parts == pytest.approx(both.weight, abs=1e-8)


@pytest.mark.filterwarnings("ignore:the 4 axes leave out")
@pytest.mark.parametrize("paths", ["value", "all"])
@pytest.mark.parametrize("paper", [False, True])
def test_many_pictures_are_found_as_each_alone(clip, paths, paper):
    images = tiny_images(clip, 7, seed=5)
    axes = None if paths == "value" else 4
    fitted = fit(clip, tiny_images(clip, 30, seed=9), top=3, paths=paths, axes=axes).over(paths)
    describe(clip, fitted, TEXTS, 5)
    together = discover(clip, fitted, images, 3, paper=paper, batch_size=3)
    assert len(together) == 7
    for image, words in zip(images, together, strict=True):
        alone = discover(clip, fitted, image, 3, paper=paper)
        assert [w.text for w in words] == [w.text for w in alone]
        assert [w.weight for w in words] == pytest.approx([w.weight for w in alone], abs=1e-12)


def test_a_folder_is_read_and_what_cannot_be_is_told(clip, lens, tmp_path):
    demo = sl.load("demo")
    own = sl.fit(demo, Scenes(World(), 81, 60), layers=[5])
    for i in range(3):
        World().scene(i, objects=["dog"]).image.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_text("no picture")
    with pytest.warns(SecondLensWarning, match=r"no words for 1\.png \("):
        found = discover(demo, own, tmp_path, 3, texts="world")
    assert [len(words) for words in found] == [3, 0, 3]
    assert found[2][0].text == discover(demo, own, tmp_path / "2.png", 3, texts="world")[0].text


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
    with pytest.raises(SecondLensError, match="one word leaves nothing to choose from"):
        discover(clip, undescribed, image, 1, texts=TEXTS[:1])
    with pytest.raises(SecondLensError, match="no layers have no neurons"):
        discover(clip, lens, image, layers=[])
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
