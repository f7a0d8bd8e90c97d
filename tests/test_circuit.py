"""Circuits: what goes into a node is what it does, sets are means of their pictures, and with the
whole graph the network is itself."""

import json

import pytest
import torch
from click.testing import CliRunner
from models import Unreadable
from small_world import noise, small, tiny

import secondlens as sl
from secondlens.applications.circuits.pruning import balanced, leading_on, strongest
from secondlens.applications.circuits.tracing import Aim, Tracer
from secondlens.commands.group import main
from secondlens.effects.edges import frozen_worth

LAYERS, NEURONS = 3, 8
EVERYTHING = {"nodes": LAYERS * NEURONS, "heads": 99, "edges": 10**6}


@pytest.fixture(scope="module")
def clip():
    return tiny()


@pytest.fixture(scope="module")
def pictures():
    return [noise(number) for number in range(6)]


@pytest.fixture(scope="module")
def means(clip, pictures):
    return sl.mean_of(clip, pictures)


def numbers(found):
    return {(each.source, each.receiver, each.kind): each.weight for each in found.edges}


@pytest.mark.parametrize("gain", ["secant", "tangent"])
@pytest.mark.parametrize("target", ["sea", ("sea", "road"), (2, 3)])
@pytest.mark.parametrize("size", [{"nodes": 6, "heads": 2, "edges": 30}, EVERYTHING])
def test_what_goes_in_is_what_it_does(clip, pictures, means, target, gain, size):
    found = sl.circuit(clip, None, pictures[:1], target, means, gain=gain, **size)
    assert len(found.neurons) <= size["nodes"]
    drawn = [each for each in found.edges if each.kind in ("value", "query", "key")]
    assert len(drawn) <= size["edges"]
    into = sum(edge.weight for edge in found.into("target"))
    assert into == pytest.approx(found.score - found.held, abs=1e-6)
    for node in found.neurons:
        assert sum(edge.weight for edge in found.into(node.id)) == pytest.approx(
            node.effect, abs=1e-6
        )
        assert sum(node.flows.values()) == pytest.approx(node.effect, abs=1e-6)
        assert node.kept == pytest.approx(
            sum(edge.weight for edge in found.out_of(node.id)), abs=1e-6
        )
    for edge in drawn:
        assert edge.kind != "value" or len(edge.heads) <= 3
    # every node leads on to the target or to a head
    ends = {"target", *(node.id for node in found.nodes if node.kind == "head")}
    for _ in range(LAYERS + 1):
        ends |= {edge.source for edge in drawn if edge.receiver in ends}
    assert {node.id for node in found.nodes if node.kind in ("neuron", "patch")} <= ends


def test_the_whole_graph_is_the_network(clip, pictures, means):
    found = sl.circuit(clip, None, pictures[:1], ("sea", "road"), means, **EVERYTHING)
    rows = clip.encode_text(["sea", "road"])
    embedding = torch.nn.functional.normalize(clip.encode_image(pictures[:1]), dim=-1)
    assert found.score == pytest.approx(float(embedding[0] @ (rows[0] - rows[1])), abs=1e-6)
    assert [each.attention for each in found.checks] == ["frozen", "free"]
    for check in found.checks:
        assert check.score == pytest.approx(found.score, abs=1e-5)
        assert check.share == pytest.approx(1, abs=1e-3)
    # nothing is pruned, and secants leave only where means of gains are not gains of means
    rest = sum(edge.weight for edge in found.edges if edge.kind == "rest")
    assert abs(rest) < 1e-5
    assert found.possible == 3 * NEURONS**2 + 3 * NEURONS + clip.tokens * (3 * NEURONS + 1)


def test_tangent_edges_are_those_between_neurons(clip, pictures, means):
    """With means of zero, they are parts of the classes of `paths`."""
    none = type(means)(
        images=1,
        activations={layer: torch.zeros_like(each) for layer, each in means.activations.items()},
        embedding=torch.zeros_like(means.embedding),
    )
    found = sl.circuit(clip, None, pictures[:1], "sea", none, gain="tangent", **EVERYTHING)
    paths = sl.paths(clip, pictures[:1], ["sea"])
    classes = paths.classes.index("mlp")
    for node in found.neurons:
        into_neurons = sum(
            edge.weight
            for edge in found.out_of(node.id)
            if ":" in edge.receiver and edge.kind == "value"
        )
        expected = float(paths[node.layer][0, 0, node.number, classes])
        assert into_neurons == pytest.approx(expected, abs=1e-6)
        assert node.flows["mlp"] == pytest.approx(expected, abs=1e-6)
        total = float(paths[node.layer][0, 0, node.number].sum())
        assert node.effect == pytest.approx(total, abs=1e-6)


def test_a_set_is_the_mean_of_its_pictures(clip, pictures, means):
    each = [sl.circuit(clip, None, [p], "sea", means, **EVERYTHING) for p in pictures[:2]]
    found = sl.circuit(clip, None, pictures[:2], "sea", means, **EVERYTHING)
    assert found.image_ids == ("0", "1") and not found.minus_ids
    alone = [numbers(one) for one in each]
    for edge in found.edges:
        if edge.kind == "error":
            continue
        key = (edge.source, edge.receiver, edge.kind)
        values = torch.tensor([one.get(key, 0) for one in alone])
        assert edge.weight == pytest.approx(float(values.mean()), abs=1e-6)
        if edge.kind != "rest":
            assert edge.spread == pytest.approx(float(values.std()), abs=1e-6)
    assert found.score == pytest.approx(sum(one.score for one in each) / 2, abs=1e-6)


def test_a_difference_of_two_sets(clip, pictures, means):
    one, other = (
        numbers(sl.circuit(clip, None, some, "sea", means, **EVERYTHING))
        for some in (pictures[:2], pictures[2:5])
    )
    found = sl.circuit(clip, None, pictures[:2], "sea", means, minus=pictures[2:5], **EVERYTHING)
    assert len(found.minus_ids) == 3 and not found.checks
    for key, weight in numbers(found).items():
        if key[2] in ("value", "query", "key"):
            assert weight == pytest.approx(one.get(key, 0) - other.get(key, 0), abs=1e-6)


def test_nodes_are_those_that_do_most_along_values_and_mlps(clip, pictures, means):
    whole = numbers(sl.circuit(clip, None, pictures[:1], "sea", means, **EVERYTHING))
    found = sl.circuit(clip, None, pictures[:1], "sea", means, nodes=5, heads=0, edges=10**6)
    assert len(found.neurons) == 5 and not [n for n in found.nodes if n.kind == "head"]
    for key, weight in numbers(found).items():
        if key[2] == "value":
            assert weight == pytest.approx(whole[key], abs=1e-6)
    tracer = Tracer(
        clip=clip,
        aim=Aim(name="sea", direction=clip.encode_text(["sea"])[0]),
        means=means.to(clip.projection),
        secant=True,
    )
    picture = tracer.picture(clip.prepare(pictures[:1]))
    worth = frozen_worth(picture.tower, picture.target)
    size = torch.cat([(worth[n] * picture.change[n]).sum(1)[0].abs() for n in range(LAYERS)])
    best = sorted(size.argsort(descending=True)[:5].tolist())
    assert [(n.layer, n.number) for n in found.neurons] == [divmod(each, NEURONS) for each in best]


def test_pruning_keeps_the_strongest_that_lead_on():
    weights = torch.tensor(
        [  # target, neuron 0, neuron 1, a head's query and key
            [0.0, 0.0, 5.0, 0.0, 0.0],
            [0.1, 0.0, 0.0, 0.0, 0.0],
            [3.0, 4.0, 0.5, 0.2, 0.0],
        ]
    )
    kept = leading_on(strongest(weights, 3), 2)
    # 5, 4 and 3 are the strongest; neuron 1 has no way on, and then neuron 0 has none
    assert kept.nonzero().tolist() == [[2, 0]]
    kept = leading_on(strongest(weights, 99), 2)
    assert torch.equal(kept, weights != 0)


def test_balanced_edges_bring_what_is_wanted():
    """What is lost by bars alone is of one sign; with shifted bars nothing is, for as few edges."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(400, 50, generator=generator) ** 3 + 0.1
    weights[torch.rand(400, 50, generator=generator) < 0.1] = 0
    wanted = weights.sum(0)
    count = 2000
    kept = balanced(weights, wanted, count)
    assert 0.9 * count < kept.sum() <= count and not kept[weights == 0].any()
    off = ((weights * kept).sum(0) - wanted).abs().mean()
    plain = ((weights * strongest(weights, count)).sum(0) - wanted).abs().mean()
    assert off < 0.1 * plain
    # of each receiver and sign, the strongest
    for column, over in zip(weights.T, kept.T, strict=True):
        for sign in (1, -1):
            size = column * sign
            if over[size > 0].any():
                assert size[over & (size > 0)].min() >= size[~over & (size > 0)].max()
    assert torch.equal(balanced(weights, wanted, 10**6), weights != 0)
    assert balanced(weights, wanted, 1).sum() <= 1


def test_the_fewest_edges_that_keep_a_share(clip, pictures, means):
    asked = (clip, None, pictures[:2], ("sea", "road"), means)
    sizes = []
    for share in (0.5, 0.99):
        found = sl.circuit(*asked, nodes=LAYERS * NEURONS, share=share)
        check = found.checks[0]
        assert check.attention == "frozen" and abs(1 - check.share) <= 1 - share + 1e-6
        drawn = [each for each in found.edges if each.kind in ("value", "query", "key")]
        assert {each.kind for each in drawn} == {"value"}
        sizes.append(len(drawn))
    whole = sl.circuit(*asked, **EVERYTHING)
    every = len([each for each in whole.edges if each.kind == "value"])
    assert 0 < sizes[0] < sizes[1] <= every and sizes[0] < every / 2
    with pytest.raises(
        sl.SecondLensError, match=r"between the 1 neurons keep at most .* more nodes"
    ):
        sl.circuit(*asked, nodes=1, share=1.0)


def test_the_page_of_numbers_is_plain(clip, pictures, means):
    found = sl.circuit(clip, None, pictures[:1], "sea", means, nodes=4, heads=1, edges=20)
    document = json.loads(json.dumps(found.document()))
    assert {each["id"] for each in document["nodes"]} >= {"target", "rest", "error"}
    ids = {each["id"] for each in document["nodes"]}
    assert all({each["source"], each["receiver"]} <= ids for each in document["edges"])
    assert found.node("target").effect == pytest.approx(found.score - found.held)
    with pytest.raises(KeyError):
        found.node("9:9")


def test_mistakes(clip, pictures, means):
    for target, options, message in (
        (3, {}, "explains a text"),
        (("sea", 3), {}, "explains a text"),
        ((3, 0), {}, "no layer 3"),
        ((0, 8), {}, "no neuron 8"),
        (torch.zeros(3), {}, "12 finite numbers"),
        ("sea", {"nodes": 0}, "at least 1 node"),
        ("sea", {"edges": 0}, "at least 1 node and 1 edge"),
        ("sea", {"gain": "none"}, "secant"),
        ("sea", {"share": 0.0}, "above 0 and at most 1"),
        ((0, 1), {"share": 0.5}, "leave out `share`"),
        ("sea", {"share": 0.5, "minus": pictures}, "leave out `share`"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.circuit(clip, None, pictures[:1], target, means, **options)
    with pytest.raises(sl.SecondLensError, match="could be read"):
        sl.circuit(clip, None, Unreadable(), "sea", means)
    with pytest.raises(sl.SecondLensError, match="could be read"):
        sl.mean_of(clip, Unreadable())


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("circuit")
    (folder / "photos").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / "photos" / f"{number}.png")
    pictures[0].save(folder / "photo.png")
    sl.fit(tiny(), folder / "photos", [0, 1], top=2).save(folder / "lens")
    return folder


def run(folder, *arguments):
    chosen = ("circuit", folder / "lens", *arguments, "--model", "tiny:8")
    with small():
        return CliRunner().invoke(main, [str(each) for each in chosen])


def test_command(folder, clip, pictures, means):
    asked = (folder / "photo.png", "--text", "sea", "--rather-than", "road")
    asked = (*asked, "--against", folder / "photos", "--nodes", 6, "--edges", 40)
    result = run(folder, *asked, "--page", folder / "page.html", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    lens = sl.Lens.load(folder / "lens")
    expected = sl.circuit(clip, lens, pictures[:1], ("sea", "road"), means, nodes=6, edges=40)
    assert found["score"] == pytest.approx(expected.score, abs=1e-6)
    assert len(found["edges"]) == len(expected.edges)
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Why sea above road" in page and "http://www.w3.org/2000/svg" in page
    # nothing is fetched: the only address is a name space
    assert page.count("http:") == 1 and "https:" not in page
    result = run(folder, *asked, "--top", 3, "--share", 0.5)
    assert result.exit_code == 0, result.output
    assert "sea above road" in result.output and "attention free" in " ".join(result.output.split())


def test_command_for_sets_and_neurons(folder):
    asked = ("--against", folder / "photos", "--nodes", 6, "--json")
    result = run(folder, folder / "photos", "--neuron", "1:3", *asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["image_ids"]) == 6 and found["target"] == "neuron 1:3"
    assert all(each["layer"] < 1 for each in found["nodes"] if each["kind"] == "neuron")
    result = run(
        *(folder, folder / "photo.png", "--text", "sea", "--minus", folder / "photos"),
        *(*asked, "--page", folder / "difference.html"),
    )
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["minus_ids"]) == 6
    assert "less 6 other pictures" in (folder / "difference.html").read_text(encoding="utf-8")


def test_mistakes_of_the_command(folder):
    for arguments, message in (
        ((folder / "photo.png",), "either --text or --neuron"),
        ((folder / "photo.png", "--neuron", "1:2", "--rather-than", "a"), "needs a --text"),
        ((folder / "photo.png", "--text", "a"), "--against"),
        ((folder / "photo.png", "--neuron", "1:2", "--share", 0.5), "--share is of a --text"),
        ((folder / "no.png", "--text", "a", "--against", folder / "photos"), "no folder or file"),
    ):
        result = run(folder, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
    assert not (folder / "no").exists()
