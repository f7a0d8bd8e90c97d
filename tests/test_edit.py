"""Edits written into weights: against runs that hold activations, and in plain libraries."""

import copy
import json
from functools import partial

import open_clip
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer, tiny_transformers_model
from small_world import noise, prepared

import secondlens as sl
from secondlens.applications.editing.checkpoints import compared, document, save_card, save_models
from secondlens.applications.editing.outcomes import outcome
from secondlens.applications.editing.saving import save_open_clip, save_transformers
from secondlens.applications.editing.streams import RIDGE
from secondlens.applications.editing.weights import SECOND_ORDER, TOKEN_MEANS
from secondlens.commands.group import main
from secondlens.data.labelled import Labelled
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError, UnsupportedModel
from secondlens.models.conversion import as_open_clip, as_transformers

NEURONS = ((0, 3), (2, 5), (2, 7))
PATHS = ((0, 3, 2, 1), (0, 4, 2, 1), (1, 5, 3, 2))


def wrapped(**options):
    model = tiny_model(dtype=torch.float64, layers=4, **options)
    return sl.from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def clip():
    return wrapped()


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, tiny_images(clip, 40, seed=9), top=6)


def held_inside(clip, images, means, strength):
    """Embeddings with activations drawn to means inside the run, module by module."""

    def draw(layer, module, inputs):
        activation = inputs[0].clone()
        for (at, n), mean in means.items():
            if at == layer:
                activation[..., n] = (1 - strength) * activation[..., n] + strength * mean
        return (activation,)

    hooks = [
        block.mlp_output.register_forward_pre_hook(partial(draw, layer))
        for layer, block in enumerate(clip.blocks)
    ]
    try:
        return clip.encode_image(images)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}, {"quick_gelu": True}])
@pytest.mark.parametrize("strength", [1.0, 0.25, 2.0])
def test_a_neuron_is_held_exactly(options, strength):
    clip = wrapped(**options)
    lens = sl.fit(clip, tiny_images(clip, 12, seed=9), top=3)
    before, images = clip.weights_hash, tiny_images(clip, 5)
    plain = clip.encode_image(images)
    found = sl.edit(clip, lens, sl.Edit(neurons=NEURONS, strength=strength))
    for (layer, n), mean in found.means.items():
        assert mean == pytest.approx(float(lens[layer].activation_mean[:, n].mean()))
    wanted = held_inside(clip, images, found.means, strength)
    torch.testing.assert_close(found.clip.encode_image(images), wanted, rtol=0, atol=1e-10)
    assert (wanted - plain).norm() > 1e-3
    # the model itself is as it was
    assert clip.weights_hash == before == found.before_hash != found.clip.weights_hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_and_families(dtype):
    model = tiny_transformers_model().to(dtype)
    clip = sl.from_transformers(model, name="tiny")
    images = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    lens = sl.fit(clip, images, top=3)
    found = sl.edit(clip, lens, sl.Edit(neurons=((0, 3), (1, 7))), images)
    wanted = held_inside(clip, images, found.means, 1.0)
    near = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    unit = [F.normalize(x.float(), dim=-1) for x in (found.clip.encode_image(images), wanted)]
    assert (unit[0] - unit[1]).abs().max() < near
    assert found.clip.dtype == dtype


def test_distances_are_those_of_runs(clip, lens):
    """Both aims, made literally: runs at token means, and materialised second-order effects."""
    images = tiny_images(clip, 7, seed=3)
    found = sl.edit(clip, lens, sl.Edit(neurons=NEURONS, strength=1.5), images)
    unit = partial(F.normalize, dim=-1)
    plain, new = unit(clip.encode_image(images)), unit(found.clip.encode_image(images))
    means = {(at, n): lens[at].activation_mean[:, n] for at, n in NEURONS}
    aims = {TOKEN_MEANS: unit(held_inside(clip, images, means, 1.5))}
    effects = torch.stack([sl.second_order(clip, images, at)[:, n] for at, n in NEURONS]).sum(0)
    aims[SECOND_ORDER] = unit(plain - 1.5 * (effects - effects.mean(0)))
    assert [each.aim for each in found.distances] == list(aims)
    for each in found.distances:
        aim = aims[each.aim]
        assert each.moved == pytest.approx(float((aim - plain).square().sum(1).mean().sqrt()))
        assert each.missed == pytest.approx(float((aim - new).square().sum(1).mean().sqrt()))


def test_a_path_is_the_best_guess_of_its_head(clip, lens):
    """The least-squares fit, made by a library from what modules saw, and written by hand."""
    images, (layer, n, j, h) = tiny_images(clip, 6, seed=4), PATHS[0]
    found = sl.edit(clip, lens, sl.Edit(paths=(PATHS[0],)), images)
    seen = {}
    block = clip.blocks[j]
    hooks = [
        clip.blocks[layer].mlp_output.register_forward_pre_hook(
            lambda module, inputs: seen.update(p=inputs[0][..., n])
        ),
        block.ln_1.register_forward_hook(
            lambda module, inputs, output: seen.update(x=inputs[0], y=output)
        ),
    ]
    clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    sigma = (seen["x"].var(-1, correction=0) + block.ln_1.eps).sqrt()
    looks = sl.attention(clip, images)[:, j, h, 0]
    y, q = seen["y"].flatten(0, 1), (seen["p"] / sigma).flatten()
    weight = (looks / looks.sum()).flatten()
    mean, level = weight @ y, weight @ q
    ridge = RIDGE * (weight @ (y - mean).square()).mean()
    rows = torch.cat([(y - mean) * weight.sqrt()[:, None], ridge.sqrt() * torch.eye(24).double()])
    goal = torch.cat([(q - level) * weight.sqrt(), torch.zeros(24).double()])
    beta = torch.linalg.lstsq(rows, goal).solution
    guess = level + (y - mean) @ beta
    left = (weight @ (q - guess).square()) / (weight @ (q - level).square())
    assert found.explained[PATHS[0]] == pytest.approx(1 - float(left))
    w = clip.blocks[layer].neuron_rows[n]
    u = block.value[h] @ (block.ln_1.weight * (w - w.mean())).detach()
    changed = copy.deepcopy(clip.model)
    attention = changed.visual.transformer.resblocks[j].attn
    part = slice(2 * 24 + 8 * h, 2 * 24 + 8 * (h + 1))
    with torch.no_grad():
        attention.in_proj_weight[part] -= torch.outer(u, beta)
        attention.in_proj_bias[part] += u * (beta @ mean)
        torch.testing.assert_close(found.clip.encode_image(images), changed.encode_image(images))


def test_paths_come_near_to_what_was_wanted(clip, lens):
    images = tiny_images(clip, 40, seed=5)
    # what the last block carries goes nowhere else
    (distance,) = sl.edit(clip, lens, sl.Edit(paths=((2, 4, 3, 1),)), images).distances
    assert distance.aim == SECOND_ORDER
    assert 0 < distance.share < 0.6
    found = sl.edit(clip, lens, sl.Edit(paths=PATHS), images)
    assert all(0 < share <= 1 for share in found.explained.values())
    # nothing but values of the two heads has changed
    old, new = clip.model.state_dict(), found.clip.model.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    blocks = "visual.transformer.resblocks."
    assert moved == {f"{blocks}{j}.attn.in_proj_{x}" for j in (2, 3) for x in ("weight", "bias")}


def test_an_edit_that_aims_at_nothing_moves_nothing(clip, lens):
    """A neuron that is silent at its mean: the edit is there, and the share is not a number."""
    silent = copy.deepcopy(clip)
    with torch.no_grad():
        silent.blocks[0].mlp_output.weight[:, 3] = 0
    lens = sl.fit(silent, tiny_images(silent, 12, seed=9), top=3)
    found = sl.edit(silent, lens, sl.Edit(neurons=((0, 3),)), tiny_images(silent, 4))
    assert all(max(each.moved, each.missed) < 1e-12 for each in found.distances)
    assert all(each.share != each.share for each in found.distances)


# -- what is saved -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return sl.load("demo")


@pytest.fixture(scope="module")
def demo_lens(demo):
    return sl.fit(demo, demo.noise(8), [4, 5], top=4)


@pytest.fixture(scope="module")
def checkpoint(demo, demo_lens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    edited = sl.edit(demo, demo_lens, sl.Edit(neurons=((4, 7), (5, 322))), demo.noise(4))
    saved, refused = save_models(edited.clip, folder)
    save_card(folder, document(edited, demo_lens, (), saved, refused))
    return folder, edited, saved


TEXTS = ["a ship", "a red car on the sea", "UPPER case: punctuation, don't!"]


def test_plain_open_clip_loads_it(demo, checkpoint):
    folder, edited, _ = checkpoint
    place = f"local-dir:{folder / 'open_clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    tokenizer = open_clip.get_tokenizer(place)
    pictures = [noise(i).resize((64, 64)) for i in range(3)]
    wanted = held_inside(demo, pictures, edited.means, 1.0)
    with torch.no_grad():
        found = model.eval().encode_image(torch.stack([preprocess(each) for each in pictures]))
        texts = F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1)
    assert (F.normalize(found, dim=-1) - F.normalize(wanted, dim=-1)).abs().max() < 1e-5
    assert (wanted - demo.encode_image(pictures)).abs().max() > 1e-3
    assert (texts - demo.encode_text(TEXTS)).abs().max() < 1e-5


def test_plain_transformers_loads_it(demo, checkpoint):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder, edited, _ = checkpoint
    place = folder / "transformers"
    model = AutoModel.from_pretrained(place).eval()
    processor, tokenizer = (
        each.from_pretrained(place) for each in (AutoImageProcessor, AutoTokenizer)
    )
    pictures = [noise(i).resize((64, 64)) for i in range(3)]
    wanted = held_inside(demo, pictures, edited.means, 1.0)
    with torch.no_grad():
        out = model(
            **processor(images=pictures, return_tensors="pt"),
            **tokenizer(TEXTS, padding=True, return_tensors="pt"),
        )
    assert (out.image_embeds - F.normalize(wanted, dim=-1)).abs().max() < 1e-5
    assert (out.text_embeds - demo.encode_text(TEXTS)).abs().max() < 1e-5


def test_what_is_written_says_what_was_done(demo, checkpoint):
    folder, edited, saved = checkpoint
    assert {library: each.library for library, each in saved.items()} == {
        "open_clip": "open_clip",
        "transformers": "transformers",
    }
    assert all(each.images < 1e-5 and each.texts < 1e-5 for each in saved.values())
    again = sl.Edit.load(folder)
    assert again == sl.Edit(neurons=edited.edit.neurons, weights_hash=demo.weights_hash)
    kept = json.loads((folder / "edit.json").read_text())
    assert kept["means"] == [edited.means[4, 7], edited.means[5, 322]]
    assert kept["edited_weights_hash"] == edited.clip.weights_hash
    card = (folder / "README.md").read_text()
    assert f"| 5 | 322 | {edited.means[5, 322]:.4g} |" in card
    with pytest.raises(SecondLensError, match="cut is of a model with other weights"):
        sl.edit(edited.clip, sl.fit(edited.clip, demo.noise(4), [4, 5], top=2), again)


def test_a_difference_is_found(demo, checkpoint):
    _, edited, _ = checkpoint
    assert compared(edited.clip, edited.clip, "open_clip").images == 0
    assert compared(edited.clip, demo, "open_clip").images > 1e-4


def test_weights_go_there_and_back():
    model = tiny_model(layers=2)
    weights = {k: v for k, v in model.state_dict().items() if k != "attn_mask"}
    back = as_open_clip(as_transformers(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_transformers_model_becomes_one_of_open_clip(tmp_path):
    clip = sl.from_transformers(tiny_transformers_model(), name="tiny")
    clip = type(clip)(**{n: v for n, v in vars(clip).items() if n in clip.__dataclass_fields__})
    object.__setattr__(clip, "preprocess", prepared)
    save_open_clip(clip, tmp_path / "one")
    other = sl.load(f"local-dir:{tmp_path / 'one'}")
    images = clip.noise(3)
    torch.testing.assert_close(other.encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ls_init_value": 0.1}, "scales its layers"),
        ({"no_ln_pre": True}, "has no vision_model.pre_layrnorm"),
        ({"pool_type": "avg"}, "not the class token"),
        ({"image_size": (16, 24)}, "16 x 24 pixels"),
    ],
)
def test_other_towers_are_no_plain_clip(options, why, tmp_path):
    clip = sl.from_open_clip(tiny_model(**options), prepared, name="tiny")
    with pytest.raises(UnsupportedModel, match=why):
        save_transformers(clip, tmp_path)


def test_what_no_library_can_build_is_said(tmp_path):
    clip = sl.from_open_clip(tiny_model(ls_init_value=0.1), prepared, name="tiny")
    with pytest.raises(SecondLensError, match="nothing says how open_clip builds tiny"):
        save_models(clip, tmp_path)


def test_outcomes_are_counted(clip, lens):
    images = tiny_images(clip, 30, seed=8)
    names = ["ant", "bee", "cat"]
    labels = tuple(i % 3 for i in range(30))
    pictures = Labelled(
        name="some", source=InMemory(images), labels=labels, classes=vocabulary(names)
    )
    other = sl.edit(clip, lens, sl.Edit(neurons=NEURONS, strength=3.0)).clip
    found = outcome(clip, other, pictures)
    rows = clip.encode_text(names)
    right = [
        (each.encode_image(images) @ rows.T).argmax(1) == torch.tensor(labels)
        for each in (clip, other)
    ]
    assert found.before == pytest.approx(float(right[0].double().mean()))
    assert found.after == pytest.approx(float(right[1].double().mean()))
    assert found.change[0] == pytest.approx(found.after - found.before)
    assert found.change[1] <= found.change[0] <= found.change[2]
    assert found.count == 30


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "nothing to cut"),
        ({"neurons": ((0, 1), (0, 1))}, r"L0 #1 is cut twice"),
        ({"neurons": ((0, 1),), "paths": ((0, 1, 2, 0),)}, "cut whole and by a path"),
        ({"neurons": ((0, 1),), "strength": 0.0}, "other than 0"),
        ({"neurons": ((0, 1),), "strength": float("nan")}, "other than 0"),
    ],
)
def test_edits_that_make_no_sense(given, why):
    with pytest.raises(SecondLensError, match=why):
        sl.Edit(**given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"neurons": ((0, 999),)}, "has no neuron 999"),
        ({"neurons": ((9, 1),)}, "has no layer 9"),
        ({"neurons": ((3, 1),)}, "layer 3 is not in this lens"),
        ({"paths": ((1, 5, 1, 0),)}, "no head of block 1 reads the neuron L1 #5: those of 2, 3 do"),
        ({"paths": ((1, 5, 2, 9),)}, "block 2 has no head 9: choose from 0 to 2"),
        ({"neurons": ((0, 1),), "weights_hash": "0" * 64}, "other weights than tiny has"),
    ],
)
def test_cuts_that_the_model_does_not_have(clip, lens, given, why):
    with pytest.raises(SecondLensError, match=why):
        sl.edit(clip, lens, sl.Edit(**given), tiny_images(clip, 2))


def test_paths_need_images(clip, lens):
    with pytest.raises(SecondLensError, match="fitted to images"):
        sl.edit(clip, lens, sl.Edit(paths=PATHS))


def test_a_layer_without_a_bias_is_refused(clip, lens):
    bare = copy.deepcopy(clip)
    bare.blocks[0].mlp_output.bias = None
    lens = sl.fit(bare, tiny_images(bare, 6), top=2)
    with pytest.raises(UnsupportedModel, match="output of layer 0 is not a plain Linear layer"):
        sl.edit(bare, lens, sl.Edit(neurons=((0, 2),)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "nothing to cut"),
        ('{"neurons": [[1]]}', "is damaged"),
        ('{"neurons": [[1, -2]]}', "is damaged"),
        ("[]", "is damaged"),
        (None, "there is no file"),
    ],
)
def test_files_that_say_nothing(content, why, tmp_path):
    path = tmp_path / "cut.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SecondLensError, match=why):
        sl.Edit.load(path)
    with pytest.raises(SecondLensError, match="says nothing of what to cut"):
        sl.Edit.load(tmp_path)


def test_a_file_is_read_as_it_was_written(tmp_path):
    edit = sl.Edit(neurons=((0, 1),), paths=PATHS, strength=0.5, weights_hash="abc")
    edit.save(tmp_path / "edit.json")
    assert sl.Edit.load(tmp_path) == edit == sl.Edit.load(tmp_path / "edit.json")


@pytest.mark.filterwarnings("ignore:.*longer than the context")
def test_the_command(demo, demo_lens, tmp_path):
    demo_lens.save(tmp_path / "lens")
    (tmp_path / "cut.json").write_text('{"neurons": [[5, 322]], "paths": [[4, 7, 6, 1]]}')
    command = ["edit", f"{tmp_path / 'lens'}", "--cut", f"{tmp_path / 'cut.json'}", "--drawn", "40"]
    out = tmp_path / "checkpoint"
    result = CliRunner().invoke(main, [*command, "--out", f"{out}", "--strength", "0.5", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["strength"] == 0.5 and said["neurons"] == [[5, 322]]
    assert [each["pictures"] for each in said["outcomes"]] == ["usual", "misled"]
    assert [each["count"] for each in said["outcomes"]] == [20, 20]
    assert said["images"] == 20
    model = sl.load(f"local-dir:{out / 'open_clip'}")
    assert model.weights_hash == said["edited_weights_hash"] != demo.weights_hash
    # a second time: the folder is taken, and nothing in it changes
    result = CliRunner().invoke(main, [*command, "--out", f"{out}"])
    assert result.exit_code == 2 and "holds a finished edit" in result.stderr
