import csv
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from secondlens import attack
from secondlens.applications.adversarial.attacks import attack_pairs, attacker
from secondlens.applications.adversarial.captioning import (
    Caption,
    TemplateCaptioner,
    captions,
    instructions,
    listed,
)
from secondlens.applications.adversarial.earlier import NEWER, OLD_NAMES
from secondlens.applications.adversarial.generation import METADATA, GeneratedImage, picture
from secondlens.applications.adversarial.judging import ExactJudge, RefereeJudge, Verdict, Zeroshot
from secondlens.applications.adversarial.runs import Report, Sample
from secondlens.applications.adversarial.selection import (
    NothingLeft,
    Pair,
    RandomSelector,
    SimilarSelector,
    choose,
    indirect,
    lemmas,
    mentions,
    selector,
)
from secondlens.applications.adversarial.sprites import FAMILIES, SpriteGenerator, Taxonomy
from secondlens.data.vocabularies import object_names, vocabulary, world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import BACKGROUNDS, COLOURS, NAMES, PLACES
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.fitting import fit
from secondlens.models.loading import load
from secondlens.paper.table3 import OURS, result_of, table3
from secondlens.words.describing import describe

PAIR = Pair(draw="cow", mistake_for="lion")


@pytest.fixture(scope="module")
def demo():
    clip = load("demo")
    lens = fit(clip, Scenes(World(), 31, 60), [4, 5])
    describe(clip, lens, world_vocabulary(), 12)
    return clip, lens


@pytest.fixture(scope="module")
def v(demo):
    texts = object_names().embed(demo[0])
    return texts[NAMES.index("lion")] - texts[NAMES.index("cow")]


# Language


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("Two horses in the snow", "horse", True),
        ("a seahorse", "horse", False),
        ("The WOLVES' den", "wolf", True),
        ("geese, and a mouse", "goose", True),
        ("a red fire truck parks", "fire trucks", True),
        ("a fire beside a truck", "fire truck", False),
        ("a bus", "buses", True),
        ("a horse's mane", "horse", True),
        ("", "horse", False),
        ("a horse", "", False),
    ],
)
def test_mentions(text, phrase, there):
    assert mentions(text, phrase) is there


def test_names_of_the_world_have_lemmas_of_their_own():
    known = {lemmas(name) for name in (*NAMES, *BACKGROUNDS)}
    assert len(known) == len(NAMES) + len(BACKGROUNDS)


def test_every_object_is_in_one_family():
    members = [name for names in FAMILIES.values() for name in names]
    assert sorted(members) == sorted(NAMES)
    close = Taxonomy().too_close(["ship", "boat", "shark", "sea", "blue"], "boat")
    assert close == [True, True, False, False, False]
    assert Taxonomy().too_close(["ship", "yacht"], "yacht") == [False, True]


# Words


def literal_scores(directions, codes, whole, v, count):
    """Eq. 6, one neuron and text at a time."""
    neurons = [(layer, n) for layer in directions for n in range(len(directions[layer]))]
    along = {key: float(directions[key[0]][key[1]] @ v) for key in neurons}
    strongest = sorted(neurons, key=lambda key: -abs(along[key]))[:count]
    scores = {}
    for layer, n in strongest:
        words = codes.code(layer, n) if whole else codes.words(layer, n)
        for text, weight in words:
            scores[text] = scores.get(text, 0) + weight * along[layer, n]
    return scores, strongest


@pytest.mark.parametrize("whole", [False, True])
def test_words_are_scored_as_in_equation_6(demo, v, whole):
    clip, lens = demo
    codes = lens.codes["world"]
    ours = selector(
        "second order", clip, lens, world_vocabulary(), codes, neurons=30, whole_codes=whole
    ).rank(v)
    directions = {layer: lens[layer].directions for layer in lens.layers}
    expected, strongest = literal_scores(directions, codes, whole, v, 30)
    positive = {text: score for text, score in expected.items() if score > 1e-6}
    found = {word.text: word.score for word in ours}
    assert {text for text in found if found[text] > 1e-6} == set(positive)
    assert found == pytest.approx({text: expected[text] for text in found}, abs=1e-5)
    scores = [word.score for word in ours]
    assert scores == sorted(scores, reverse=True)
    for word in ours[:5]:
        for layer, n, part in word.neurons:
            assert (layer, n) in strongest
            words = codes.code(layer, n) if whole else codes.words(layer, n)
            assert part == pytest.approx(
                dict(words)[word.text] * float(directions[layer][n] @ v), rel=1e-3
            )


def test_random_neurons_are_the_seeds(demo, v):
    clip, lens = demo
    made = [
        selector("random neurons", clip, lens, world_vocabulary(), lens.codes["world"], seed=seed)
        for seed in (3, 3, 4)
    ]
    one, again, other = (each.rank(v) for each in made)
    assert one == again
    assert one != other


def test_similar_words_are_those_along_v(demo, v):
    clip, _ = demo
    texts = world_vocabulary()
    rows = texts.embed(clip)
    ranked = SimilarSelector(texts.labels, rows).rank(v)
    assert ranked[0].text == texts.labels[int((rows @ v).argmax())]
    assert "lion" in [word.text for word in ranked]
    assert all(word.score > 0 for word in ranked)


def test_indirect_directions_are_first_components_of_indirect_effects(demo, v):
    from secondlens.data.sources import Subset
    from secondlens.effects.ablated_runs import indirect as effects

    clip, lens = demo
    source = Subset(Scenes(World(), 31, 60), range(3))
    made = indirect(
        clip, lens, source, world_vocabulary(), lens.codes["world"], layers=[5], neurons=20
    )
    images = [source.load(i) for i in range(3)]
    neuron = 17
    rows = effects(clip, images, 5, [neuron], lens[5].activation_mean)[:, 0]
    away = rows - rows.mean(0)
    strongest = away[away.norm(dim=1).topk(2).indices]
    expected = torch.linalg.svd(strongest).Vh[0]
    assert abs(float(expected @ made.directions[neuron])) == pytest.approx(1, abs=1e-4)
    assert made.rank(v)


def test_chosen_words_name_no_class_and_nothing_like_the_wrong_one(v):
    labels = ("cow", "cows", "lion", "lions", "tiger", "sea", "ghost", "lamp")
    for seed in range(5):
        why = "no more than 2 words from cow to lion .of 8, 1 that cannot be drawn, 4 that name"
        with pytest.warns(SecondLensWarning, match=why):
            words = choose(
                RandomSelector(labels, seed), v, PAIR, Families(), 9, ("tiger", *labels[:6], "lamp")
            )
        assert {word.text for word in words} == {"sea", "lamp"}


class Families:
    name = "families"

    def too_close(self, words, to):
        return [word == "tiger" for word in words]


def test_no_word_left(v):
    with pytest.raises(NothingLeft, match="finds no word that pushes from cow to lion"):
        choose(RandomSelector(("cow", "tiger"), 0), v, PAIR, Taxonomy(), 5)


# Captions


def test_templates_draw_at_most_one_background():
    words = ["sea", "red", "lamp", "owl", "key", "night"]
    grounds = 0
    for text in TemplateCaptioner().write(PAIR, words, 60, 0):
        shown = [word for word in words if mentions(text, word)]
        assert text.startswith("a photo of a cow and ")
        assert len(shown) == 3
        assert len([word for word in shown if word in PLACES or word in COLOURS]) <= 1
        grounds += any(word in PLACES or word in COLOURS for word in shown)
    assert 0 < grounds < 60


def test_the_same_seed_writes_the_same():
    write = TemplateCaptioner().write
    assert write(PAIR, ["owl", "key", "sea", "red"], 5, 1) == write(
        PAIR, ["owl", "key", "sea", "red"], 5, 1
    )


class Says:
    name = "says"

    def __init__(self, *texts):
        self.texts, self.asked = texts, 0

    def write(self, pair, words, count, seed):
        self.asked += 1
        return list(self.texts)


def test_captions_that_may_be_used_are_kept():
    captioner = Says(
        "a cow beside a lamp",
        "a cow, a lamp and a lioness of a lion",
        "a lamp",
        "cows under lamps and keys",
        "a cow",
        "a cow beside a lamp",
    )
    kept = captions(captioner, PAIR, ["lamp", "key"], 2, 0)
    assert kept == [
        Caption(text="a cow beside a lamp", plain="a photo of a cow", words=("lamp",)),
        Caption(text="cows under lamps and keys", plain="a photo of a cow", words=("lamp", "key")),
    ]
    assert captioner.asked == 1
    assert len(captions(captioner, PAIR, ["lamp", "key"], 3, 0)) == 2
    assert captioner.asked == 4


def test_all_captions_filtered_out():
    with pytest.raises(
        NothingLeft, match=r"by says can be used \(3 without cow, 3 with lion, 3 wi"
    ):
        captions(Says("I'm sorry.", "a cow and a lion", "a cow"), PAIR, ["lamp"], 2, 0)


def test_lists_in_replies():
    reply = 'Sure:\n1. "A cow."\n 2) **A key**\n- a lamp\n* x\n\nno item\n3: last'
    assert listed(reply) == ["A cow.", "A key", "a lamp", "x", "last"]
    two = ["a cow by a lamp", "a cow, a key"]
    think = "1. First I should think of a cow\n2. then write a cow with a lamp"
    plain = "Here are the captions:\n\na cow by a lamp\n“a cow, a key”\n"
    for reply in (
        "**1. a cow by a lamp**\n**2. a cow, a key**",
        "**1.** *a cow by a lamp*\n**2.** *a cow, a key*",
        "> 1) a cow by a lamp\n> 2) a cow, a key",
        json.dumps(two),
        f"Sure:\n```json\n{json.dumps(two, indent=1)}\n```\nI hope [this] helps.".replace(
            "[this]", "this"
        ),
        json.dumps({"captions": [{"caption": each} for each in two]}),
        plain,
        f"<think>\n{think}\n</think>\n\n{plain}",
        f"{think}</think>{plain}",
        f"<Thinking>{think}</Thinking>1. a cow by a lamp\n2. a cow, a key",
    ):
        assert listed(reply) == two, reply
    for reply in ("", "I'm sorry, I can't help.", f"<think>\n{think}", "[1, 2]"):
        assert listed(reply) == []
    assert listed("- a 3-legged cow\n- 2 cows") == ["a 3-legged cow", "2 cows"]
    asked = instructions(PAIR, ["lamp", "key"], 7)
    assert all(part in asked for part in ("Write 7", "a cow", "lamp, key", "Never mention a lion"))


# Pictures


def test_without_the_words_all_else_is_equal():
    generator = SpriteGenerator()
    for seed in range(12):
        plain = generator.draw("a photo of a cow", "cow", seed)
        with_lamp = generator.draw("a lamp beside a cow", "cow", seed)
        on_sea = generator.draw("a photo of a cow and a lamp in the sea", "cow", seed)
        assert plain.shows[-1] == with_lamp.shows[-1]
        assert on_sea.shows[-1] == "sea"
        assert "cow" in plain.shows and "cow" in with_lamp.shows
        changed = torch.tensor(list(plain.image.tobytes())) != torch.tensor(
            list(with_lamp.image.tobytes())
        )
        # the lamp is in one place, so much of the picture is as it was
        assert 0.01 < changed.float().mean() < 0.5
        assert generator.draw("a lamp beside a cow", "cow", seed).image == with_lamp.image


def test_what_is_shown_is_what_is_mentioned():
    generator = SpriteGenerator()
    shown = generator.draw("a red cow, two owls and keys on a blue background", "cow", 3).shows
    assert shown[-1] == "blue"
    assert {"cow"} <= set(shown) <= {"cow", "owl", "key", "blue"}


def test_covered_objects_are_not_said_to_be_seen():
    generator = SpriteGenerator()
    seen = [
        generator.draw("a cow, a key, an owl and a lamp", "cow", seed).shows for seed in range(30)
    ]
    assert all("cow" in shows for shows in seen)
    counts = [len(shows) for shows in seen]
    assert max(counts) == 5


def test_pictures_are_read_again_only_if_they_are_the_same(tmp_path):
    path = tmp_path / "one.png"
    generator = Counting()
    drawn = picture(generator, "a cow", "cow", 4, path)
    again = picture(generator, "a cow", "cow", 4, path)
    assert generator.drawn == 1
    assert (again.image.tobytes(), again.shows) == (drawn.image.tobytes(), ("cow", "sea"))
    with Image.open(path) as file:
        written = json.loads(file.info[METADATA])
    assert written["caption"] == "a cow"
    assert written["seed"] == 4
    picture(generator, "a cow", "cow", 5, path)
    path.write_bytes(path.read_bytes()[:40])
    picture(generator, "a cow", "cow", 5, path)
    assert generator.drawn == 3
    assert [each.name for each in tmp_path.iterdir()] == ["one.png"]


class Counting:
    name, knows = "counting", None

    def __init__(self):
        self.drawn = 0

    def draw(self, caption, subject, seed):
        self.drawn += 1
        return GeneratedImage(image=Image.new("RGB", (8, 8), (seed, 0, 0)), shows=("cow", "sea"))


# Verdicts


def test_margins_and_the_best_of_all(demo):
    clip, _ = demo
    texts = object_names().embed(clip)
    images = [World().scene(77, i).image for i in range(3)]
    found = Zeroshot(clip, NAMES, texts, PAIR)(images)
    unit = F.normalize(clip.encode_image(images), dim=1)
    for row, verdict in zip(unit, found, strict=True):
        scores = {name: float(row @ text) for name, text in zip(NAMES, texts, strict=True)}
        assert verdict.margin == pytest.approx(scores["lion"] - scores["cow"], abs=1e-5)
        assert verdict.best == max(scores, key=scores.get)


def test_checks():
    image = World().scene(1, 1).image
    shows = [("cow", "sea"), ("lion", "cow", "sea"), ("sea",)]
    drawings = [GeneratedImage(image=image, shows=each) for each in shows]
    assert ExactJudge()(drawings, PAIR) == [True, False, False]
    with pytest.raises(SecondLensError, match="name a referee"):
        ExactJudge()([GeneratedImage(image=image)], PAIR)


def test_the_referee_says_what_it_sees():
    twin = load("demo-twin")
    referee = RefereeJudge(twin, NAMES, object_names().embed(twin))
    generator, pair = SpriteGenerator(), Pair(draw="cow", mistake_for="ship")
    cows = [generator.draw("a cow", "cow", seed) for seed in range(8)]
    ships = [generator.draw("a ship", "ship", seed) for seed in range(8)]
    assert sum(referee(cows, pair)) > sum(referee(ships, pair)) + 4
    # neither class is shown, though one of them must be the likelier of the two
    owls = [generator.draw("an owl", "owl", seed) for seed in range(8)]
    decided = Zeroshot(twin, NAMES, object_names().embed(twin), pair)
    said = decided([each.image for each in owls])
    assert referee(owls, pair) == [verdict.best == "cow" for verdict in said]
    assert not all(verdict.wrong for verdict in said) and sum(referee(owls, pair)) <= 1


def test_the_attacked_model_is_no_referee(demo, tmp_path):
    clip, lens = demo
    itself = RefereeJudge(clip, NAMES, object_names().embed(clip))
    with pytest.raises(SecondLensError, match="the referee is demo itself, which is attacked"):
        attack(clip, lens, "cow", "lion", tmp_path / "out", judge=itself)


def sample(margin, plain_margin, best="cow", counted=True):
    return Sample(
        file="", plain_file="", caption="", plain="", words=(), seed=0, margin=margin,
        plain_margin=plain_margin, best=best, plain_best="cow", counted=counted,
    )  # fmt: skip


def test_rates_are_of_pictures_that_count():
    samples = (
        sample(0.1, -0.1, "lion"),
        sample(0.1, 0.1),
        sample(-0.1, 0.1),
        sample(-0.1, -0.1),
        sample(0.1, -0.1, counted=False),
    )
    report = Report(pair=PAIR, settings={}, words=(), samples=samples)
    assert repr(report).endswith("2 of 4 pictures fool)")
    rates = report.rates()
    counts = {name: (rate["count"], rate["of"]) for name, rate in rates.items()}
    assert counts == {
        "fooled": (2, 4),
        "flipped": (1, 4),
        "chosen of all": (1, 4),
        "fooled without words": (2, 4),
    }
    assert Verdict(margin=1e-9, best="").wrong and not Verdict(margin=0.0, best="").wrong


# Runs


def test_a_run_is_in_its_folder_and_goes_on(demo, tmp_path):
    clip, lens = demo
    out = tmp_path / "run"
    generator = Interrupted(after=5)
    asked = {"images": 6, "captions": 2, "image_generator": generator}
    with pytest.raises(KeyboardInterrupt):
        attack(clip, lens, "cow", "lion", out, **asked)
    assert len(list(out.rglob("*.png"))) == 5
    assert not (out / "report.json").exists()
    generator.left = 100
    report = attack(clip, lens, "cow", "lion", out, **asked)
    assert generator.left == 100 - 7
    whole = attack(
        clip,
        lens,
        "cow",
        "lion",
        tmp_path / "whole",
        images=6,
        captions=2,
        image_generator=generator,
    )
    assert whole.samples == report.samples
    assert attack(clip, lens, "cow", "lion", out, **asked) == report
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["margin"]) for row in rows] == [sample.margin for sample in report.samples]
    written = json.loads((out / "report.json").read_text())
    assert written["rates"]["flipped"]["count"] == sum(s.flipped for s in report.counted)
    page = (out / "gallery.html").read_text()
    assert page.count("<article") == 6
    assert "Words were chosen by second-order effects, captions written\nby templates" in page
    assert "judged by the truth of the drawn scene" in page
    assert "http" not in page.replace("http-equiv", "")


class Interrupted(SpriteGenerator):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def draw(self, caption, subject, seed):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().draw(caption, subject, seed)


def test_a_step_can_be_run_again_with_other_words(demo, tmp_path):
    clip, lens = demo
    first = attack(clip, lens, "cow", "lion", tmp_path / "run", images=2, captions=2)
    words = json.loads((tmp_path / "run" / "words.json").read_text())
    words["words"] = [{"text": "lamp", "score": 1.0, "neurons": []}]
    (tmp_path / "run" / "words.json").write_text(json.dumps(words))
    second = attack(clip, lens, "cow", "lion", tmp_path / "run", images=2, captions=2)
    assert {sample.caption for sample in second.samples} == {"a photo of a cow and a lamp"}
    assert [sample.plain_margin for sample in second.samples] == [
        s.plain_margin for s in first.samples
    ]


def test_deleted_pictures_are_drawn_again(demo, tmp_path):
    clip, lens = demo
    first = attack(clip, lens, "cow", "lion", tmp_path / "run", images=2, captions=1)
    for folder in ("images", "plain"):
        path = tmp_path / "run" / folder / "00001.png"
        drawn = path.read_bytes()
        path.unlink()
        assert attack(clip, lens, "cow", "lion", tmp_path / "run", images=2, captions=1) == first
        assert path.read_bytes() == drawn


def test_texts_are_escaped_on_the_page(demo, tmp_path):
    clip, lens = demo
    evil = "a cow beside a lamp <script>alert(1)</script>"
    attack(
        clip,
        lens,
        "cow",
        "lion",
        tmp_path / "run",
        images=1,
        captions=1,
        words=200,
        captioner=Says(evil),
    )
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_every_pair(demo, tmp_path):
    clip, lens = demo
    made = attacker(clip, lens, images=1, captions=1)
    stubborn = replace(made, steps=replace(made.steps, captioner=NeverLions()))
    reports, left_out = attack_pairs(stubborn, ["cow", "lion", "owl"], tmp_path / "all")
    assert len(reports) == 4
    assert {pair.draw for pair in left_out} == {"lion"}
    index = (tmp_path / "all" / "index.html").read_text()
    assert index.count("gallery.html") == 4
    assert "none of the captions" in index
    with pytest.raises(SecondLensError, match="two different classes"):
        attack_pairs(made, ["cow", "cow"], tmp_path / "other")
    with pytest.raises(SecondLensError, match="no class 'yeti'"):
        attack_pairs(made, ["cow", "yeti"], tmp_path / "other")


def test_classes_that_cannot_be_drawn_are_left_out(demo, tmp_path):
    clip, lens = demo
    made = attacker(clip, lens, classes=["cow", "zebra", "sea"], images=1, captions=1)
    reports, left_out = attack_pairs(made, ["cow", "zebra", "sea"], tmp_path / "all")
    assert {report.pair.draw for report in reports} == {"cow"}
    assert {pair.draw for pair in left_out} == {"zebra", "sea"}
    assert "cannot draw 'zebra'" in left_out[Pair(draw="zebra", mistake_for="cow")]
    with pytest.raises(
        SecondLensError, match=r"none of the pairs could be attacked: .* cannot draw 'zebra'"
    ):
        attack_pairs(made, ["zebra", "sea"], tmp_path / "none")


class NeverLions(TemplateCaptioner):
    def write(self, pair, words, count, seed):
        return [] if pair.draw == "lion" else super().write(pair, words, count, seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw": "lion"}, "cannot be mistaken for itself"),
        ({"draw": "yeti"}, "no class 'yeti'"),
        ({"layers": [6]}, "layer 6 is not in this lens"),
        ({"neurons": 0}, "at least one layer and one neuron"),
        ({"images": 0}, "at least one word, one caption and one image"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"texts": "imagenet"}, "no description 'imagenet'"),
    ],
)
def test_mistakes(demo, tmp_path, options, message):
    clip, lens = demo
    given = {"draw": "cow", "mistake_for": "lion", "out": tmp_path / "out", **options}
    with pytest.raises(SecondLensError, match=message):
        attack(clip, lens, **given)
    assert not (tmp_path / "out" / "images").exists()


class Called(TemplateCaptioner):
    def __init__(self, name):
        super().__init__()
        self.name = name


class Ended(Exception):
    """What a generator raises in the middle of an attack."""


class Ending(SpriteGenerator):
    def draw(self, caption, subject, seed):
        if seed == 1:
            raise Ended
        return super().draw(caption, subject, seed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("chat:parrot", "chat:parrot"),
        ("chat:/home/ada/models/parrot", "chat:parrot"),  # as version 0.1 wrote it
        ("chat:ac /dc", "chat:ac /dc"),  # what only looks like a path
    ],
)
def test_an_interrupted_attack_with_shortened_names_goes_on(demo, tmp_path, before, after):
    clip, lens = demo
    options = {"images": 2, "captions": 1, "captioner": Called(after)}
    whole = attack(clip, lens, "cow", "lion", tmp_path / "whole", **options)
    with pytest.raises(Ended):
        attack(
            *(clip, lens, "cow", "lion", tmp_path / "run"),
            **options | {"captioner": Called(before), "image_generator": Ending()},
        )
    (drawn,) = (tmp_path / "run" / "images").iterdir()
    inode = drawn.stat().st_ino
    resumed = attack(clip, lens, "cow", "lion", tmp_path / "run", **options)
    assert resumed == whole
    assert drawn.stat().st_ino == inode


def test_an_attack_names_the_settings_that_changed(demo, tmp_path):
    clip, lens = demo
    options = {"images": 1, "captions": 1}
    attack(clip, lens, "cow", "lion", tmp_path / "run", **options)
    for changes, said in (
        ({"seed": 1}, "seed 0 and not 1"),
        ({"images": 2, "neurons": 7}, "images 1 and not 2, neurons 100 and not 7"),
        ({"captioner": Called("me")}, "captioner template and not me"),
        ({"classes": ["cow", "lion"]}, "class names objects and not texts, class texts .*"),
        (
            {"classes": vocabulary(NAMES, name="objects", templates=["a {}"])},
            "class texts [0-9a-f]{8}… and not [0-9a-f]{8}…",
        ),
    ):
        with pytest.raises(SecondLensError, match=rf"another attack, with {said}: name"):
            attack(clip, lens, "cow", "lion", tmp_path / "run", **options | changes)


def test_an_attack_names_the_settings_of_its_parts_that_changed(demo, tmp_path):
    clip, lens = demo
    twin = load("demo-twin")

    def judge(weights):
        made = RefereeJudge(twin, NAMES, object_names().embed(twin))
        made.facts = {"weights": weights}
        return made

    def options(weights):
        return {"images": 1, "captions": 1, "judge": judge(weights)}

    attack(clip, lens, "cow", "lion", tmp_path / "run", **options("ab" * 32))
    with pytest.raises(SecondLensError, match="judge weights abababab… and not cdcdcdcd…: name"):
        attack(clip, lens, "cow", "lion", tmp_path / "run", **options("cd" * 32))


def test_an_attack_names_the_description_that_changed(demo, tmp_path):
    clip, lens = demo
    attack(clip, lens, "cow", "lion", tmp_path / "run", images=1, captions=1)
    other = replace(lens, codes={})
    describe(clip, other, world_vocabulary(), 11)
    with pytest.raises(SecondLensError, match=r"with lens description .{9} and not .{9}: name"):
        attack(clip, other, "cow", "lion", tmp_path / "run", images=1, captions=1)


def test_a_run_without_the_newer_settings_goes_on_and_still_names_the_others(demo, tmp_path):
    clip, lens = demo
    run, asked = tmp_path / "run", {"images": 2, "captions": 1}
    whole = attack(clip, lens, "cow", "lion", run, **asked)
    settings = json.loads((run / "attack.json").read_text())
    older = {key: value for key, value in settings.items() if key not in NEWER}
    assert len(older) < len(settings)
    (run / "attack.json").write_text(json.dumps(older))
    (run / "images" / "00001.png").unlink()
    kept = (run / "images" / "00000.png").stat().st_mtime_ns
    assert attack(clip, lens, "cow", "lion", run, **asked) == whole
    assert (run / "images" / "00000.png").stat().st_mtime_ns == kept
    with pytest.raises(SecondLensError, match="another attack, with seed 0 and not 1: name"):
        attack(clip, lens, "cow", "lion", run, **asked, seed=1)
    (run / "attack.json").write_text("{}")  # nothing that any version wrote
    with pytest.raises(SecondLensError, match="another attack, with draw none and not cow"):
        attack(clip, lens, "cow", "lion", run, **asked)


def test_another_attack_in_the_folder(demo, tmp_path):
    clip, lens = demo
    attack(clip, lens, "cow", "lion", tmp_path / "run", images=1, captions=1)
    with pytest.raises(SecondLensError, match="another attack, with seed 0 and not 1: name"):
        attack(clip, lens, "cow", "lion", tmp_path / "run", images=1, captions=1, seed=1)
    words = (tmp_path / "run" / "words.json").read_text()
    for name, damage in (
        *(("words", text) for text in ("{", "[]", '{"words": [{"text": "lamp"}]}')),
        *(("captions", text) for text in ("[1]", "{}")),
        *(("verdicts", text) for text in ("1", '{"samples": [{}]}')),
        ("attack", "[]"),
    ):
        path = tmp_path / "run" / f"{name}.json"
        whole = path.read_text()
        path.write_text(damage)
        with pytest.raises(SecondLensError, match=rf"{name}\.json is damaged"):
            attack(clip, lens, "cow", "lion", tmp_path / "run", images=1, captions=1)
        path.write_text(whole)
    assert (tmp_path / "run" / "words.json").read_text() == words
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(SecondLensError, match="exists already"):
        attack(clip, lens, "cow", "lion", tmp_path / "else", images=1)


def test_a_lens_described_with_other_texts_of_the_name(demo, tmp_path):
    clip, lens = demo
    other = tmp_path / "world.txt"
    other.write_text("lamp\nkey\n")
    with pytest.raises(SecondLensError, match="described with other texts of the name world"):
        attack(clip, lens, "cow", "lion", tmp_path / "out", texts=other)


def test_a_run_folder_that_cannot_be_written(demo, tmp_path):
    clip, lens = demo
    (tmp_path / "file").touch()
    with pytest.raises(SecondLensError, match="cannot be written to"):
        attack(clip, lens, "cow", "lion", tmp_path / "file" / "run", images=1)


# Table 3


class Later(TemplateCaptioner):
    """Writes in the runs of some seeds alone."""

    def __init__(self, seeds):
        super().__init__()
        self.seeds = seeds

    def write(self, pair, words, count, seed):
        return super().write(pair, words, count, seed) if seed in self.seeds else []


def test_table3_of_runs_that_are_not_whole(demo, tmp_path):
    clip, lens = demo
    made = attacker(clip, lens, images=1, captions=1, captioner=Later({1}))
    result = table3(made, [("cow", "lion")], tmp_path / "some", seeds=2)
    assert result.rows[0]["method"] == OURS
    why = f"{OURS} left out a run of cow → lion: none of the captions by template can be used"
    assert any(note.startswith(why) for note in result.notes)
    assert len(list((tmp_path / "some").rglob("seed-1/second-order/gallery.html"))) == 1
    assert not list((tmp_path / "some").rglob("seed-0/second-order/gallery.html"))
    silent = attacker(clip, lens, images=1, captions=1, captioner=Later(()))
    with pytest.raises(SecondLensError, match="none of the pairs could be attacked"):
        table3(silent, [("cow", "lion")], tmp_path / "none", seeds=1)


def test_methods_on_other_pairs_have_no_difference_to_ours(demo):
    made = attacker(*demo, images=1, captions=1)
    reports = {
        pair: [Report(pair=pair, settings={}, words=(), samples=(sample(0.1, -0.1),))]
        for pair in (PAIR, Pair(draw="owl", mistake_for="lion"))
    }
    ours, other = ({pair: reports[pair]} for pair in reports)
    rows = result_of(made, {OURS: ours, "random words": other}, 1).rows
    assert [row["ours − this"] for row in rows] == [None, None]


def test_other_models_need_parts(demo, tmp_path):
    clip, lens = demo
    stranger = replace(clip, name="ViT-B-32")
    with pytest.raises(SecondLensError, match="an attack on ViT-B-32 needs classes"):
        attack(stranger, lens, "cow", "lion", tmp_path / "out")


def test_old_names_work_and_say_the_new_ones(demo, tmp_path):
    clip, lens = demo
    with pytest.warns(FutureWarning, match="option drawer of attack is called image_generator"):
        report = attack(
            *(clip, lens, "cow", "lion", tmp_path / "run"),
            images=1,
            captions=1,
            drawer=SpriteGenerator(),
        )
    with pytest.warns(FutureWarning, match="called report.samples now"):
        assert report.shots == report.samples


def test_a_run_folder_of_version_0_1_goes_on(demo, tmp_path):
    """Its files have the old keys, and its pictures say who drew them under the old one."""
    clip, lens = demo
    asked = {"images": 2, "captions": 1}
    new = attack(clip, lens, "cow", "lion", tmp_path / "run", **asked)
    back = {new: old for old, new in OLD_NAMES.items()}
    for name in ("attack", "verdicts"):
        path = tmp_path / "run" / f"{name}.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({back.get(key, key): value for key, value in document.items()}))
    for path in (tmp_path / "run").rglob("*.png"):
        with Image.open(path) as image:
            facts = json.loads(image.info["secondlens"])
            facts["drawer"] = facts.pop("image_generator")
            text = PngInfo()
            text.add_itxt("secondlens", json.dumps(facts))
            image.save(path, pnginfo=text)
    (tmp_path / "run" / "images" / "00000.png").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.png")}
    again = attack(clip, lens, "cow", "lion", tmp_path / "run", **asked)
    assert again == new
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
