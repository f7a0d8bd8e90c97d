"""Attention scores and their parts, against parts taken out of the stream of the model itself."""

import json
from itertools import product

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner
from models import sequence_first, tiny_images, tiny_model, tiny_transformers_model
from PIL import Image

import secondlens as sl
from secondlens.commands.group import main
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.effects import attention_reasons
from secondlens.effects.attention_reasons import strongest
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers
from secondlens.words.summary import label

HEAD, NEURONS = 1, 48


@pytest.fixture(scope="module", params=["plain", "layer scale"])
def model(request):
    scale = {"ls_init_value": 0.5} if request.param == "layer scale" else {}
    return tiny_model(dtype=torch.float64, **scale)


@pytest.fixture(scope="module")
def clip(model):
    return from_open_clip(model)


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 1)


class Literal:
    """Scores of a block's head from the streams of its query and key tokens, whose LayerNorm scales
    are those of the unchanged stream."""

    def __init__(self, model, images, layer):
        self.run = oracle.Run(model, images)
        self.block, self.stream = self.run.blocks[layer], self.run.streams[layer][0]
        self.norm = oracle.frozen_norm(self.block.ln_1, self.stream)

    def rows(self, query_stream, key_stream):
        attention = self.block.attn
        wq, wk, _ = attention.in_proj_weight.chunk(3)
        bq, bk, _ = attention.in_proj_bias.chunk(3)
        width = wq.shape[0] // attention.num_heads
        here = slice(HEAD * width, (HEAD + 1) * width)
        q = (self.norm(query_stream) @ wq.T + bq)[:, here]
        k = (self.norm(key_stream) @ wk.T + bk)[:, here]
        return (q @ k.T / width**0.5).detach()

    def part(self, place, layer):
        """What one neuron, or a rest but the biases, writes to the stream, [tokens, width]."""
        if place < layer * NEURONS:
            return self.run.neuron_write(place // NEURONS, place % NEURONS)[0]
        rest = place - layer * NEURONS
        if rest == 0:
            return self.run.streams[0][0]
        block = self.run.blocks[rest - 1]
        gamma = getattr(block.ls_1, "gamma", 1)
        written = self.run.streams[rest][0] - self.run.writes[rest - 1][0]
        return written - self.run.streams[rest - 1][0] - gamma * block.attn.out_proj.bias


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("query", [0, 3])
def test_parts_are_what_the_score_loses_without_them(model, clip, images, layer, query):
    literal = Literal(model, images, layer)
    whole, stream = literal.rows(literal.stream, literal.stream), literal.stream
    found = sl.why_attention(clip, images, layer, HEAD, 2, query=query)
    torch.testing.assert_close(found.scores, whole[query], rtol=0, atol=1e-12)
    assert found.score == pytest.approx(float(whole[query, 2]), abs=1e-12)
    expected = ("embedding", *(f"attention of layer {i}" for i in range(layer)), "biases")
    assert found.rests == expected
    for total in (found.by_query.sum(), found.by_key.sum(), found.by_group.sum()):
        assert float(total) == pytest.approx(found.score, abs=1e-10)
    some = [0, 5, layer * NEURONS - 1, layer * NEURONS, layer * NEURONS + 1]
    for place in some:
        without = stream - literal.part(place, layer)
        lost = (whole - literal.rows(without, stream))[query, 2]
        assert float(found.by_query[place]) == pytest.approx(float(lost), abs=1e-12)
        lost = (whole - literal.rows(stream, without))[query, 2]
        assert float(found.by_key[place]) == pytest.approx(float(lost), abs=1e-12)
    for n, m in product(some, some):
        a, b = (stream - literal.part(place, layer) for place in (n, m))
        both = whole - literal.rows(a, stream) - literal.rows(stream, b) + literal.rows(a, b)
        pair = float(found.query_parts[n] @ found.key_parts[m])
        assert pair == pytest.approx(float(both[query, 2]), abs=1e-12)
    names = (*found.rests, *(f"neurons of layer {i}" for i in range(layer)))
    assert found.groups == names
    neurons = found.query_parts[:NEURONS].sum(0) @ found.key_parts[-1]
    place = names.index("neurons of layer 0"), names.index("biases")
    assert float(found.by_group[place]) == pytest.approx(float(neurons))


def test_all_pairs_and_rests_add_up(clip, images):
    """Every pair written out, with the rests, is the score."""
    found = sl.why_attention(clip, images, 2, 0, 4)
    every = found.query_parts @ found.key_parts.T
    assert every.shape == (2 * NEURONS + 4, 2 * NEURONS + 4)
    assert float(every.sum()) == pytest.approx(found.score, abs=1e-10)
    torch.testing.assert_close(found.by_query, every.sum(1))
    torch.testing.assert_close(found.by_key, every.sum(0))
    pairs = found.pairs(10**4)
    assert len(pairs) == (2 * NEURONS) ** 2
    inside = every[: 2 * NEURONS, : 2 * NEURONS]
    assert sum(pair.score for pair in pairs) == pytest.approx(float(inside.sum()), abs=1e-10)
    for pair in pairs[::97]:
        (a, n), (b, m) = pair.query, pair.key
        assert pair.score == pytest.approx(
            float(every[a * NEURONS + n, b * NEURONS + m]), abs=1e-13
        )
    best = inside.abs().flatten().sort(descending=True).values[:20]
    assert [abs(pair.score) for pair in found.pairs()] == pytest.approx(best.tolist())


def test_a_row_is_where_it_looks_above_the_mean(clip, images):
    row = sl.why_attention(clip, images, 2, 0)
    expected = (row.attention @ row.scores) - row.scores.mean()
    assert row.score == pytest.approx(float(expected), abs=1e-12) and row.score > 0
    for total in (row.by_query.sum(), row.by_key.sum(), row.by_group.sum()):
        assert float(total) == pytest.approx(row.score, abs=1e-10)
    torch.testing.assert_close(row.attention, sl.attention(clip, images)[0, 2, 0, 0])
    # a pair at every token is that pair at each of them
    pair = row.pairs(1)[0]
    for token, value in enumerate(row.over_tokens(pair).tolist()):
        at = sl.why_attention(clip, images, 2, 0, token)
        query, key = (layer * NEURONS + neuron for layer, neuron in (pair.query, pair.key))
        assert value == pytest.approx(float(at.query_parts[query] @ at.key_parts[key]), abs=1e-13)
    assert pair.score == pytest.approx(float(row.weights @ row.over_tokens(pair)), abs=1e-13)


def test_a_contrast_drops_what_is_the_same_everywhere(clip, images):
    plain = sl.why_attention(clip, images, 1, 2, 3)
    there = sl.why_attention(clip, images, 1, 2, 3, contrast=True)
    mean = float(plain.attention @ plain.scores)
    assert there.score == pytest.approx(plain.score - mean, abs=1e-12)
    # the log of attention differs from the score by a number of its row alone
    logs = plain.attention.log()
    expected = float(logs[3] - plain.attention @ logs)
    assert float(there.by_key.sum()) == pytest.approx(expected, abs=1e-10)


def test_the_first_block_reads_the_embedding_alone(clip, images):
    found = sl.why_attention(clip, images, 0, 0, 1)
    assert found.rests == ("embedding", "biases") and found.pairs() == []
    assert float(found.by_key.sum()) == pytest.approx(found.score, abs=1e-12)


@pytest.mark.parametrize("held", [1, 40, 2**23])
@pytest.mark.parametrize("top", [1, 7, 5000])
def test_the_strongest_products_are_found_in_parts(monkeypatch, held, top):
    monkeypatch.setattr(attention_reasons, "PAIRS_AT_A_TIME", held)
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(n, 4, generator=generator) ** 3 for n in (30, 50))
    values, rows, columns = strongest(query, key, top)
    every = query @ key.T
    torch.testing.assert_close(values, every[rows, columns])
    expected = every.flatten()[every.abs().flatten().argsort(descending=True)[:top]]
    torch.testing.assert_close(values, expected)


VIEWS = {
    "sequence first": lambda: from_open_clip(sequence_first(tiny_model())),
    "transformers": lambda: from_transformers(tiny_transformers_model()),
    "half": lambda: from_open_clip(tiny_model(dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_family(view):
    clip = VIEWS[view]()
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = sl.why_attention(clip, image, 2, 1, 3)
    assert found.scores.dtype == torch.float32
    tolerance = 0.05 if view == "half" else 1e-4
    assert float(found.by_query.sum()) == pytest.approx(found.score, abs=tolerance)
    torch.testing.assert_close(found.attention, sl.attention(clip, image)[0, 2, 1, 0])


def test_mistakes(clip, images):
    for arguments, options, message in (
        ((images, 3, 0), {}, "no layer 3"),
        ((images, 1, 3), {}, "block 1 has no head 3"),
        ((images, 1, 0, 5), {}, "no token 5"),
        ((images, 1, 0), {"query": -1}, "no token -1"),
        ((images, 1, 0), {"contrast": True}, "name the token"),
        ((torch.cat([images, images]), 1, 0), {}, "one image at a time, not 2"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.why_attention(clip, *arguments, **options)
    with pytest.raises(sl.SecondLensError, match="at least 1 pair"):
        sl.why_attention(clip, images, 1, 0).pairs(0)


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("why")
    clip, scenes = sl.load("demo"), Scenes(World(), FIT_SEED, 60)
    lens = sl.fit(clip, scenes, layers=[4])
    sl.describe(clip, lens, world_vocabulary(), 4)
    lens.save(folder / "lens")
    World().scene(4, 0).image.save(folder / "photo.png")
    return folder


def run(folder, *arguments):
    chosen = ("--layer", 6, "--head", 1, *arguments)
    return CliRunner().invoke(main, ["why-attention", *map(str, (folder / "photo.png", *chosen))])


def test_command(folder):
    clip, lens = sl.load("demo"), sl.Lens.load(folder / "lens")
    asked = ("--token", 9, "--query", 3, "--contrast", "--lens", folder / "lens", "--json")
    result = run(folder, *asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    photo = Image.open(folder / "photo.png")
    expected = sl.why_attention(clip, [photo], 6, 1, 9, query=3, contrast=True)
    assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    assert found["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    for side in ("as_query", "as_key"):
        assert sum(each[side] for each in found["groups"]) == pytest.approx(
            found["score"], abs=1e-3
        )
    assert len(found["pairs"]) == 10
    assert found["pairs"][0]["score"] == pytest.approx(expected.pairs(1)[0].score, abs=1e-5)
    codes = lens.codes["world"]
    for each in found["neurons"]["looked_at"]:
        layer, neuron = each["neuron"]
        assert each["score"] == pytest.approx(
            float(expected.by_key[layer * 768 + neuron]), abs=1e-4
        )
        assert each["words"] == (label(lens, layer, neuron) if layer == 4 else "")
    described = json.loads(run(folder, *asked, "--description", "world").stdout)
    for each in described["neurons"]["looked_at"]:
        layer, neuron = each["neuron"]
        words = codes.words(layer, neuron, 3) if layer == 4 else []
        assert all(text in each["words"] for text, _ in words) and bool(words) == bool(
            each["words"]
        )


def test_command_shows_tables_and_a_heat_map(folder, tmp_path):
    result = run(folder, "--heat-map", tmp_path / "heat.png", "--top", 2)
    assert result.exit_code == 0, result.output
    assert "higher where it looks" in result.output and "neurons of layer 5" in result.output
    assert result.output.count("L4 #") + result.output.count("L3 #") > 0
    with Image.open(tmp_path / "heat.png") as picture:
        shown = np.asarray(picture.convert("RGB"), dtype=int)
        assert picture.size == (64, 64)
    attention = sl.attention(sl.load("demo"), [Image.open(folder / "photo.png")])[0, 6, 1, 0, 1:]
    row, column = divmod(int(attention.argmax()), 8)
    yellow = np.abs(shown - (240, 249, 33)).sum(2)
    hottest = divmod(int(yellow.argmin()), 64)
    assert (hottest[0] // 8, hottest[1] // 8) == (row, column)
    first = CliRunner().invoke(
        main, ["why-attention", str(folder / "photo.png"), "--layer", "0", "--head", "0"]
    )
    assert first.exit_code == 0 and "Strongest" not in first.output


def test_mistakes_of_the_command(folder):
    for arguments, message in (
        (("--token", 65), "no token 65"),
        (("--contrast",), "name the token"),
        (("--description", "world"), "--description is of a lens"),
        (("--lens", folder), "holds no lens"),
        (("--heat-map", folder / "no" / "a.png"), "there is no folder"),
    ):
        result = run(folder, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
