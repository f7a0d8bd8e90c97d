"""Compiled networks do what their programs say, and our mathematics is right on them.

The program, computed by its own formulas without a transformer, is the oracle for activations; a
second run of the network with a neuron at its mean is the oracle for effects.
"""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

import secondlens as sl
from secondlens.commands import main
from secondlens.effects.ablated_runs import stop_after
from secondlens.effects.all_paths import CLASSES
from secondlens.groundtruth import questions as scoring
from secondlens.groundtruth.attribution import finite_classes
from secondlens.groundtruth.bounds import true_edges
from secondlens.groundtruth.calibration import calibrated, isotonic
from secondlens.groundtruth.compiling import compiled
from secondlens.groundtruth.contestants import Claim, Contestant
from secondlens.groundtruth.exam import exam
from secondlens.groundtruth.networks import detector
from secondlens.groundtruth.page import drawing
from secondlens.groundtruth.pictures import basis, draw, filters, preprocess
from secondlens.groundtruth.program import IDLE, PARTS, SHARPNESS, THRESHOLD, run
from secondlens.groundtruth.questions import Answers
from secondlens.groundtruth.registry import contestants, networks
from secondlens.groundtruth.running import as_document, run_bench
from secondlens.groundtruth.wiring import path_edges

QUICK = ("keys", "norms")
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in networks.names
]
FEW = {"named": 200, "tested": 24}


@pytest.fixture(scope="module")
def small():
    """An exam of each network with few pictures, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = exam(networks[name](), **FEW)
        return made[name]

    return get


# -- pictures and programs ---------------------------------------------------------------------


def test_filters_read_amounts_off_pictures_of_8_bits():
    pictures = draw(("ring", "dots", "red", "blue"), 12, 0, marked=0.6, tinted=0.6)
    seen = torch.stack([preprocess(pictures.load(number)) for number in range(12)]).double()
    assert torch.equal(seen, pictures.values)
    patches = seen.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for name in basis():
        read = (patches * filters()[name]).sum((-3, -2, -1))
        amounts = pictures.amounts.get(name, torch.zeros_like(read))
        torch.testing.assert_close(read, amounts, rtol=0, atol=1e-12)


def test_no_two_pictures_are_equal_and_a_seed_gives_the_same():
    one, two = (draw(("ring",), 200, 5, marked=0.05, tinted=0) for _ in range(2))
    assert torch.equal(one.values, two.values)
    assert len({row.tobytes() for row in one.values.flatten(1).numpy()}) == 200
    with pytest.raises(sl.SecondLensError, match="no 200 different pictures"):
        draw(("ring",), 200, 5, marked=0, tinted=0)


def test_there_are_enough_networks_units_parts_and_contestants():
    programs = [member() for member in networks]
    assert len(programs) >= 12 and sum(len(each.units) for each in programs) >= 200
    assert {unit.part for each in programs for unit in each.units} == set(PARTS)
    assert {unit.acts for each in programs for unit in each.units} == {*CLASSES, None}
    assert len([each for each in contestants if not each().by_truth]) >= 8
    assert all(member.name == member().name for member in networks)


@pytest.mark.parametrize("name", networks.names)
def test_every_activation_is_within_1e_6_of_its_definition(name, small):
    given = small(name)
    defined = run(given.program, given.testing)
    for unit in given.units:
        layer, number = given.program.numbers[unit.name]
        found = given.stopped[layer].activation[:, :, number]
        torch.testing.assert_close(found, defined.activations[unit.name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", networks.names)
def test_units_fire_on_their_features_and_on_nothing_else(name, small):
    """By the labels of the pictures alone."""
    given = small(name)
    for unit in given.units:
        layer, number = given.program.numbers[unit.name]
        found = given.stopped[layer].activation[:, :, number]
        if unit.part in IDLE:
            assert float(found.std(0).max()) < 1e-6
            continue
        holds = torch.stack([given.testing.has(each) for each in unit.features]).any(0).any(1)
        assert float(found[~holds].abs().sum()) < 1e-6
        assert not holds.any() or float(found[holds].max()) > 1


def test_a_detector_fires_as_much_as_there_is_of_its_mark(small):
    given = small("marks")
    for unit in given.units:
        found = given.stopped[0].activation[:, 1:, given.program.numbers[unit.name][1]]
        amount = given.testing.amounts[unit.name]
        wanted = torch.where(amount > 0, SHARPNESS * (amount - THRESHOLD), 0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_embeddings_are_what_the_words_are_read_from(small):
    """Of all networks but those whose units write to LayerNorms."""
    for name in ("keys", "queries", "relay", "superposed"):
        given = small(name)
        found = given.clip.encode_image(given.pixels) @ given.directions.T
        defined = run(given.program, given.testing)
        wanted = torch.stack([defined.words[word] for word in given.words], dim=1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_seed_turns_the_network_and_leaves_its_units_as_they_are(small):
    given = small("keys")
    other = compiled(given.program, 7)
    same = compiled(given.program, given.seed)
    assert other.weights_hash != given.clip.weights_hash == same.weights_hash
    for layer in range(given.program.layers):
        found = stop_after(other, given.pixels, layer).activation
        torch.testing.assert_close(found, given.stopped[layer].activation, rtol=0, atol=1e-6)


def test_mistakes_in_programs_are_told():
    program = networks["marks"]()
    unit = program.units[0]
    for wrong, message in (
        ({"units": (unit, unit)}, "two units of marks are called horizontal stripes"),
        ({"units": (replace(unit, layer=9),)}, "marks has no layer 9 for horizontal stripes"),
        ({"units": (replace(unit, part="magic"),)}, "no part 'magic': there are detector"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            replace(program, **wrong)
    crowd = tuple(detector("ring", f"slot {n}", name=f"unit {n}") for n in range(96))
    with pytest.raises(sl.SecondLensError, match="a stream of width 96 holds 95"):
        compiled(replace(program, units=crowd))
    with pytest.raises(sl.SecondLensError, match="the network knows no text 'a horse'"):
        compiled(program).encode_text(["a horse"])


# -- our mathematics on known networks -----------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_classes_of_finite_paths_are_those_of_the_design_and_add_up_to_ablations(name, small):
    given = small(name)
    classes = finite_classes(given)
    for number, (unit, word) in enumerate(zip(given.units, given.main_words, strict=True)):
        own, true = classes[:, word, number], given.ablated[:, word, number]
        if unit.acts is None:
            assert float(given.ablated[:, :, number].std(0).max()) < 1e-3
            continue
        if true.std() < 1e-6:
            continue  # it fires on none of these few pictures
        assert scoring.correlation(own.sum(-1), true) > 0.99
        assert CLASSES[int(own.std(0).argmax())] == unit.acts


def test_value_paths_are_the_whole_effect_where_only_values_carry_it(small):
    given = small("marks")
    found = contestants["value path"]().effects(given)
    for number, word in enumerate(given.main_words):
        claimed, true = found[:, word, number], given.ablated[:, word, number]
        if given.testing.has(given.units[number].features[0]).any():
            assert scoring.correlation(claimed, true) > 0.999
            assert float(claimed.std()) == pytest.approx(float(true.std()), rel=0.05)
    for name in ("feeding", "relay"):
        given = small(name)
        assert float(sl.second_order(given.clip, given.pixels, 0).abs().max()) < 1e-9


def test_gradients_times_activations_are_the_sum_of_all_classes_of_paths(small):
    given = small("keys")
    found = contestants["gradient x activation"]().effects(given)
    paths = sl.paths(given.clip, given.testing, directions=given.directions)
    summed = given.of_units(lambda layer, own: paths[layer][:, :, own].sum(-1))
    torch.testing.assert_close(found, summed, rtol=1e-6, atol=1e-9)


def test_undone_units_have_value_effects_that_norms_take_away(small):
    given = small("norms")
    layer, number = given.program.numbers["fine checkerboard undone by LayerNorm"]
    along = given.directions[[given.words.index("brightness")]]
    mean = given.means[layer]
    found = sl.finite_paths(given.clip, given.pixels, layer, [number], mean, directions=along)
    spread = found.effects[:, 0, 0].std(0)
    value, norm = spread[CLASSES.index("value")], spread[CLASSES.index("norm")]
    assert float(value) > 1e-3
    torch.testing.assert_close(value, norm, rtol=0.01, atol=0)
    assert float(found.total.std()) < 0.1 * float(value)


@pytest.mark.parametrize("name", [m.name for m in networks if m().edges])
def test_our_edges_are_those_of_the_program(name, small):
    given = small(name)
    found = path_edges(given)
    true = true_edges(given) > 0
    assert float(found[~true].max()) < 1e-9 * float(found.max())
    # a reader may hardly fire on any of these few pictures
    assert float(found[true].min()) > float(found[~true].max())


# -- questions ---------------------------------------------------------------------------------


def test_the_oracle_is_right_and_chance_is_not():
    found = run_bench(["pairs", "idle", "hidden cue"], ["oracle", "random"], **FEW)
    for row in found.rows:
        if row.contestant == "oracle":
            assert row.score.value == pytest.approx(1) and not row.wrong, row.question
        elif row.question in ("effect", "name precision", "path"):
            assert row.score.value < 0.4, row.question
    again = run_bench(["pairs", "idle", "hidden cue"], ["oracle", "random"], **FEW)
    assert as_document(found) == as_document(again)


def test_the_value_path_fails_where_other_paths_carry_the_effect(small):
    given = small("keys")
    value, every = (
        scoring.effect(given, Answers(effects=contestants[name]().effects(given)))
        for name in ("value path", "all paths")
    )
    assert all(item.value == 0 for item in value if item.group == "key")
    assert min(item.value for item in value if item.group == "value") > 0.99
    assert min(item.value for item in every) > 0.99


def test_names_are_scored_by_what_was_planted(small):
    given = small("pairs")
    first = given.units[0].features
    names = [[Claim(feature=first[0], evidence=1), Claim(feature="star", evidence=0)]]
    names += [[]] * (len(given.units) - 1)
    said = scoring.answers(Contestant(names=lambda exam: names), given)
    assert [item.value for item in scoring.name_precision(given, said)] == [1, 0]
    recall = [item.value for item in scoring.name_recall(given, said)]
    assert sum(recall) == 1 and len(recall) == sum(len(u.features) for u in given.units)
    assert scoring.two_features(given, said)[0].value == 0
    assert scoring.idle_unnamed(given, said) == [] and scoring.effect(given, said) is None


def test_cues_are_scored_by_the_area_under_the_roc_curve(small):
    given = small("hidden cue")
    said = scoring.answers(contestants["random"](), given)
    found = scoring.cue(given, said)
    margin = said.effects[:, given.words.index("ship")] - said.effects[:, given.words.index("cow")]
    there = given.testing.has("dots").any(1)
    score = (margin[there].mean(0) - margin[~there].mean(0)).abs()
    wanted = roc_auc_score([unit.cue for unit in given.units], score)
    assert sum(item.value for item in found) / len(found) == pytest.approx(wanted)


def test_isotonic_regression_is_that_of_scikit_learn_but_for_its_prior():
    generator = torch.Generator().manual_seed(0)
    evidence = torch.rand(200, generator=generator).tolist()
    right = (torch.rand(200, generator=generator) < torch.tensor(evidence)).tolist()
    levels, shares = isotonic(list(zip(evidence, right, strict=True)))
    wanted = IsotonicRegression().fit_transform(evidence, right)
    mean = (sum(right) + 1) / 202
    for each, value in zip(evidence, wanted, strict=True):
        place = int((levels <= each).sum()) - 1
        size = sum(abs(value - other) < 1e-12 for other in wanted)
        assert shares[place] == pytest.approx((value * size + mean) / (size + 1))


def test_calibration_learns_on_other_networks_alone():
    good = {str(n): [(0.9, True)] * 9 + [(0.1, False)] * 9 for n in range(4)}
    found = calibrated(good)
    assert len(found.true) == 72 and abs(found.gap) < 0.01 and found.error < 0.05
    surprised = calibrated({"a": [(0.9, True)] * 20, "b": [(0.9, False)] * 20})
    assert surprised.error > 0.7
    assert calibrated({"a": [(0.9, True)]}) is None


def test_a_contestant_is_added_in_30_lines():
    """The example of docs/groundtruth.md is this one."""

    def loud(exam):
        def answer(layer, numbers):
            peak = exam.stopped[layer].activation.amax(1)[:, numbers]
            return peak[:, None].expand(-1, len(exam.words), -1)

        return exam.of_units(answer)

    contestants.register("peak", lambda: Contestant(effects=loud), help="the largest activation")
    found = run_bench(["marks"], ["peak", "random"], **FEW)
    assert found.row("effect", "peak").score.value > found.row("effect", "random").score.value
    assert found.row("name recall", "peak") is None


def test_mistakes_in_what_is_run_are_told():
    for given, message in (
        (([],), "a bench needs networks and contestants"),
        ((["mark"],), r"no network 'mark' \(did you mean marks\?\)"),
        ((["marks"], ["oracel"]), r"no contestant 'oracel' \(did you mean oracle\?\)"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            run_bench(*given)
    with pytest.raises(sl.SecondLensError, match="too few: give at least 100 and 2"):
        run_bench(["marks"], named=99)


# -- what people see ---------------------------------------------------------------------------


def test_a_drawing_has_every_unit_and_every_edge():
    program = networks["everything"]()
    found = drawing(program)
    texts = [box.text for box in found.boxes]
    assert all(unit.name in texts for unit in program.units)
    assert sum(line.kind == "edge" for line in found.lines) == len(program.edges)
    assert all(box.x + 175 <= found.width and box.y < found.height for box in found.boxes)
    assert ("disc key", "red") in program.outputs and (
        "look for frames",
        "green",
    ) in program.outputs


def test_the_command_prints_tables_and_writes_a_page_and_results(tmp_path):
    few = ("--named", "200", "--tested", "48", "--contestant", "oracle", "--contestant", "random")
    command = ["groundtruth", "run", "--network", "idle", *few, "--out", str(tmp_path / "new")]
    shown = CliRunner().invoke(main, command, catch_exceptions=False)
    assert shown.exit_code == 0 and "What units respond to" in shown.stdout
    document = json.loads((tmp_path / "new" / "results.json").read_text())
    assert document["units"] == 16 and document["idle"] == 10
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.count("<svg") == 1 and "dead 3" in page and "http" not in page.split("</style>")[1]
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_the_command_lists_networks_and_asks_for_some():
    listed = CliRunner().invoke(main, ["groundtruth", "list", "--json"], catch_exceptions=False)
    assert set(json.loads(listed.stdout)) == set(networks.names)
    for wrong, message in (
        (["run"], "no networks are chosen"),
        (["run", "--all", "--network", "keys"], "exclude each other"),
    ):
        said = CliRunner().invoke(main, ["groundtruth", *wrong])
        assert said.exit_code == 2 and message in said.stderr
