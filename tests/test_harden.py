import copy
import json
import shutil

import fake
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from on_devices import picture, tiny_clip
from small_world import noise, tiny

import secondlens as sl
from secondlens.applications.adversarial.runs import Attacked
from secondlens.applications.hardening.training import endless
from secondlens.commands.group import main
from secondlens.data.labelled import Labelled
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import object_names
from secondlens.errors import SecondLensError, UnsupportedModel

WORDS = ("sea", "road", "grass", "snow")
COUNT = 12


def attacks(count=COUNT, pairs=((0, 1), (2, 3), (1, 0))):
    drawn, rivals = zip(*(pairs[i % len(pairs)] for i in range(count)), strict=True)
    pictures = Labelled(
        name="attacks",
        source=InMemory([noise(i) for i in range(count)]),
        labels=drawn,
        classes=sl.vocabulary(WORDS),
    )
    return Attacked(pictures=pictures, rivals=rivals, words=())


USUAL = [noise(100 + i) for i in range(COUNT)]


def parameters(clip):
    return dict(clip.model.named_parameters())


def unit(clip, pixels):
    return F.normalize(clip.model.encode_image(pixels), dim=-1)


def test_steps_are_those_of_the_formula():
    """Whole sets in a batch, so that the order says nothing: plain torch gives the same weights."""
    clip, given = tiny(), attacks()
    training = sl.Training(blocks=1, steps=3, learning_rate=1e-3, keep=0.5, batch_size=COUNT)
    found = sl.harden(clip, given, USUAL, training=training)

    slow = copy.deepcopy(clip.model)
    block = slow.visual.transformer.resblocks[-1]
    trained = [*block.parameters(), *slow.visual.ln_post.parameters()]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0)
    pixels, plain = clip.prepare(given.pictures.source.pictures), clip.prepare(USUAL)
    k = clip.model.logit_scale.exp().detach()
    texts = given.pictures.classes.embed(clip)
    for step in range(3):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1, 1, 0.5 * (1 + np.cos(np.pi / 2)))[step]
        cosines = F.normalize(slow.encode_image(pixels), dim=-1) @ texts.T
        wrong = -(k * cosines).log_softmax(1)[range(COUNT), given.pictures.labels].mean()
        with torch.no_grad():
            before = unit(clip, plain)
        moved = 1 - (F.normalize(slow.encode_image(plain), dim=-1) * before).sum(1).mean()
        optimiser.zero_grad()
        (wrong + 0.5 * k * moved).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        assert found.losses[step] == pytest.approx((wrong.item(), moved.item()), abs=1e-4)
    for name, each in slow.named_parameters():
        here, there = parameters(found.clip)[name], each
        if name.endswith("in_proj_bias"):  # no output hangs on that of keys: its steps are rounding
            here, there = (rows.unflatten(0, (3, -1))[[0, 2]] for rows in (here, there))
        torch.testing.assert_close(here, there, atol=2e-4, rtol=0)


def test_nothing_but_the_last_blocks_and_their_norm_changes():
    clip = tiny()
    before = {name: each.clone() for name, each in parameters(clip).items()}
    found = sl.harden(clip, attacks(), USUAL, training=sl.Training(blocks=1, steps=2, batch_size=4))
    after = parameters(found.clip)
    changed = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert changed
    places = ("visual.transformer.resblocks.2.", "visual.ln_post.")
    assert all(name.startswith(places) for name in changed)
    assert all(torch.equal(each, before[name]) for name, each in parameters(clip).items())
    for name, each in after.items():
        assert each.grad is None and each.requires_grad == parameters(clip)[name].requires_grad
    assert found.before_hash == clip.weights_hash != found.clip.weights_hash


def test_the_same_seed_gives_the_same_weights():
    hashes = {
        seed: [
            sl.harden(
                tiny(), attacks(), USUAL, training=sl.Training(steps=2, batch_size=4, seed=seed)
            ).clip.weights_hash
            for _ in range(2)
        ]
        for seed in (0, 1)
    }
    assert hashes[0][0] == hashes[0][1] != hashes[1][0] == hashes[1][1]


def test_attacks_are_learnt_and_usual_pictures_stay():
    clip, given = tiny(), attacks(pairs=((0, 1), (2, 3)))
    free, held = (
        sl.harden(
            clip,
            given,
            USUAL,
            training=sl.Training(blocks=3, steps=40, learning_rate=4e-3, keep=keep, batch_size=6),
        )
        for keep in (0.0, 3.0)
    )
    assert all(moved == 0 for _, moved in free.losses)
    assert free.losses[-1][0] < 0.3 * free.losses[0][0]
    result = sl.resistance(clip, free.clip, given)
    assert result.right.after == 1 and result.called_wrong.after == result.nearer_wrong.after == 0

    def moved(other):
        rows = [F.normalize(each.encode_image(USUAL), dim=-1) for each in (clip, other)]
        return float((1 - (rows[0] * rows[1]).sum(1)).mean())

    assert moved(held.clip) < 0.5 * moved(free.clip)


def test_what_attacks_do_is_counted():
    before, after, given = tiny(), tiny(seed=1), attacks()
    found = sl.resistance(before, after, given)
    texts = given.pictures.classes.embed(before)
    counts = np.zeros((2, 3, COUNT))
    for m, clip in enumerate((before, after)):
        for i, image in enumerate(given.pictures.source.pictures):
            cosines = F.normalize(clip.encode_image([image]), dim=-1) @ texts.T
            drawn, rival = given.pictures.labels[i], given.rivals[i]
            best = int(cosines.argmax())
            counts[m, :, i] = (best == rival, cosines[0, rival] > cosines[0, drawn], best == drawn)
    for row, each in enumerate((found.called_wrong, found.nearer_wrong, found.right)):
        shares = counts[:, row].mean(1)
        assert (each.before, each.after) == pytest.approx(tuple(shares))
        assert each.change[0] == pytest.approx(shares[1] - shares[0])
        # whole pairs are drawn again: three here, so that all 27 resamples can be listed
        sums = [(counts[1, row] - counts[0, row])[pair::3].mean() for pair in range(3)]
        means = [
            np.mean(drawn) for drawn in np.array(np.meshgrid(sums, sums, sums)).reshape(3, -1).T
        ]
        assert min(means) - 1e-9 <= each.change[1] <= each.change[2] <= max(means) + 1e-9
    assert (found.count, found.pairs) == (COUNT, 3)
    assert (counts[0] != counts[1]).any()


def test_a_model_that_is_the_same_changes_nothing():
    clip = tiny()
    found = sl.resistance(clip, clip, attacks(pairs=((0, 1),)))
    assert found.pairs == 1 and found.right.change == (0, 0, 0)


class Torn(InMemory):
    """Pictures of which some cannot be read."""

    def __init__(self, count, torn):
        super().__init__([noise(i) for i in range(count)])
        self.torn = torn

    def load(self, index):
        if index in self.torn:
            raise OSError("torn")
        return super().load(index)


def test_batches_go_round_and_leave_out_what_cannot_be_read():
    clip, seed = tiny(), np.random.SeedSequence(0)
    batches = endless(Torn(8, {3}), clip, 4, seed)
    seen = [position for _ in range(4) for position in next(batches).positions]
    assert sorted(seen) == sorted([*(set(range(8)) - {3})] * 2)
    small = next(endless(Torn(3, set()), clip, 8, seed))
    assert len(small.positions) == 8 and set(small.positions) == {0, 1, 2}
    with pytest.raises(SecondLensError, match="none of the pictures to train on"):
        next(endless(Torn(2, {0, 1}), clip, 2, seed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 4}, "3 blocks, and 4 cannot be trained"),
        ({"blocks": 0}, "at least one block"),
        ({"learning_rate": 0.0}, "learning rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning rate must be above 0"),
        ({"keep": -1.0}, "0 or more"),
        ({"seed": -1}, "a seed is 0 or more"),
    ],
)
def test_settings_that_train_nothing_are_refused(options, message):
    with pytest.raises(SecondLensError, match=message):
        sl.harden(tiny(), attacks(), USUAL, training=sl.Training(**options))


def test_models_that_cannot_be_trained_are_refused():
    half = tiny()
    half.model.half()
    with pytest.raises(SecondLensError, match="half precision"):
        sl.harden(half, attacks(), USUAL)
    with pytest.raises(UnsupportedModel, match="text"):
        sl.harden(tiny().text, attacks(), USUAL)


def test_a_loss_that_is_not_finite_ends_it():
    broken = tiny()
    with torch.no_grad():
        broken.blocks[-1].module.mlp.c_fc.weight.fill_(torch.nan)
    with pytest.raises(SecondLensError, match="not finite after 1 step"):
        sl.harden(broken, attacks(), USUAL, training=sl.Training(steps=1))


def test_a_model_on_a_device_is_trained_there():
    given = Attacked(
        pictures=Labelled(
            name="attacks",
            source=InMemory([picture(i) for i in range(4)]),
            labels=(0, 2, 0, 2),
            classes=sl.vocabulary(WORDS),
        ),
        rivals=(1, 3, 1, 3),
        words=(),
    )
    usual = [picture(10 + i) for i in range(4)]
    training = sl.Training(steps=2, batch_size=4)

    def trained(device):
        clip = tiny_clip(device)
        found = sl.harden(clip, given, usual, training=training)
        assert found.clip.device == clip.device
        result = sl.resistance(clip, found.clip, given)
        return found.losses, found.clip.encode_image(usual).cpu(), result

    losses, rows, result = trained("cpu")
    # gradients are computed by the fake on its first device alone
    with fake.machine(float64=False):
        other_losses, other_rows, other_result = trained("fake:0")
    np.testing.assert_allclose(other_losses, losses, atol=1e-4)
    torch.testing.assert_close(other_rows, rows, atol=1e-3, rtol=0)
    assert (other_result.count, other_result.pairs) == (result.count, result.pairs) == (4, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two attacks on the embedded model."""
    folder = tmp_path_factory.mktemp("place")
    clip = sl.load("demo")
    lens = sl.fit(clip, [noise(i) for i in range(20)], [5])
    sl.describe(clip, lens, sl.vocabulary("world"), 4)
    for name, pair in (("attacks", ("cow", "lion")), ("held-out", ("ship", "bus"))):
        sl.attack(clip, lens, *pair, folder / name, images=4, captions=1)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["harden", *map(str, arguments)])


SHORT = ("--drawn", 8, "--steps", 2, "--batch-size", 2)


def test_the_command_writes_a_checkpoint_that_is_the_trained_model(place, tmp_path):
    out = tmp_path / "out"
    result = run(*(place / "attacks", "--test", place / "held-out", *SHORT, "--out", out, "--json"))
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert json.loads((out / "harden.json").read_text()) == {
        key: value for key, value in said.items() if key != "checkpoint"
    }
    assert {each["library"] for each in said["saved"]} == {"open_clip", "transformers"}
    assert all(each["images"] < 1e-5 and each["texts"] < 1e-5 for each in said["saved"])
    saved = sl.load(f"local-dir:{out / 'open_clip'}")
    demo = sl.load("demo")
    assert saved.weights_hash != demo.weights_hash
    held_out = sl.attacked(place / "held-out", object_names())
    found = sl.resistance(demo, saved, held_out)
    assert said["resistances"][0]["right"]["after"] == found.right.after
    card = (out / "README.md").read_text()
    assert "trained on attacks" in card and "held-out" in card and "usual" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{place}/attacks", "--test", "{place}/attacks"), "shares pictures with what is trained"),
        (("{place}",), None),
        (("{place}/attacks", "--model", "ViT-B-32"), "name some with --usual"),
        (("{place}/attacks", "--template", "x {}"), "--template is for --usual"),
        (("{place}/attacks", "--blocks", 9, *SHORT), "8 blocks, and 9 cannot be trained"),
        (("{place}/attacks", "--groups", "weather", *SHORT), "no groups by weather"),
        (("{place}/nothing", *SHORT), "no finished attack"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(place, tmp_path, arguments, message):
    if message is None:  # a test inside what is trained on
        arguments, message = (*arguments, "--test", "{place}/held-out"), "shares pictures"
    out = tmp_path / "out"
    result = run(*(str(each).replace("{place}", str(place)) for each in arguments), "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not out.exists()


def test_a_damaged_attack_is_told(place, tmp_path):
    shutil.copytree(place / "attacks", tmp_path / "torn")
    (tmp_path / "torn" / "report.json").write_text("{", encoding="utf-8")
    result = run(tmp_path / "torn", *SHORT, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
