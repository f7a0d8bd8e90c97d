"""Units in place of neurons: the model stays what it was, and their effects are exact."""

import copy
import json
import pickle

import oracle
import pytest
import torch
from models import tiny_images, tiny_model
from safetensors.torch import save_file

import secondlens as sl
from secondlens.models.units.activation import active

# the first use of torch.func.jvp compiles with it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")

WIDTH, LATENTS, LAYER = 24, 40, 1


def numbers(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def some_latents(site="mlp", kind="topk", **options):
    return sl.Latents(
        encoder=numbers(WIDTH, LATENTS, seed=1),
        decoder=numbers(LATENTS, WIDTH, seed=2),
        encoder_bias=numbers(LATENTS, seed=3),
        decoder_bias=numbers(WIDTH, seed=4),
        centre=numbers(WIDTH, seed=5),
        kind=kind,
        k=5,
        threshold=0.3,
        site=site,
        **options,
    )


@pytest.fixture(scope="module")
def clip():
    return sl.from_open_clip(tiny_model(dtype=torch.float64, layers=4), name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip)


def read_by_hand(clip, images, site):
    """What the latents of a site read, and what the MLP writes, from the model without units."""
    seen = {}
    block = clip.model.visual.transformer.resblocks[LAYER]
    handles = [
        block.ln_2.register_forward_hook(lambda _, i, o: seen.update(transcoder=o)),
        block.mlp.register_forward_hook(lambda _, i, o: seen.update(mlp=o)),
        block.register_forward_hook(lambda _, i, o: seen.update(stream=o)),
    ]
    clip.encode_image(images)
    for handle in handles:
        handle.remove()
    return seen[site], seen["mlp"]


def by_hand(latents, x):
    """f((x - centre) E + b), one token at a time."""
    z = (x - latents.centre) @ latents.encoder + latents.encoder_bias
    found = torch.zeros_like(z)
    for place in torch.cartesian_prod(*map(torch.arange, z.shape[:-1])).tolist():
        row = z[tuple(place)]
        kept = {
            "linear": range(len(row)),
            "relu": (row > 0).nonzero()[:, 0].tolist(),
            "topk": [n for n in row.argsort(descending=True)[:5].tolist() if row[n] > 0],
            "signed_topk": row.argsort(descending=True)[:5].tolist(),
            "jumprelu": (row > 0.3).nonzero()[:, 0].tolist(),
        }[latents.kind]
        for n in kept:
            found[(*place, n)] = row[n]
    return found


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        *(("mlp", kind) for kind in ("linear", "relu", "topk", "signed_topk", "jumprelu")),
        ("stream", "topk"),
        ("transcoder", "relu"),
    ],
)
def test_latents_and_errors_write_what_the_mlp_writes(clip, images, site, kind):
    latents = some_latents(site, kind)
    read, written = read_by_hand(clip, images, site)
    model = sl.units(clip, {LAYER: latents})
    run = oracle.Run(model.model, images)
    z, rest = run.activations[LAYER].split([LATENTS, WIDTH], dim=-1)
    assert torch.allclose(z, by_hand(latents, read), rtol=1e-12, atol=1e-12)
    assert 0 < (z != 0).double().mean() <= 1
    again = z @ latents.decoder + latents.decoder_bias + rest
    assert (again - written).abs().max() < 1e-12
    assert (run.writes[LAYER] - written).abs().max() < 1e-12
    assert (model.encode_image(images) - clip.encode_image(images)).abs().max() < 1e-12


@pytest.mark.parametrize("site", ["mlp", "stream", "transcoder"])
def test_effects_are_those_of_editing_the_model_without_units(clip, images, site):
    """Second-order and direct effects from what a unit writes, and ablations by a hook."""
    latents = some_latents(site)
    model = sl.units(clip, {LAYER: latents})
    z = by_hand(latents, read_by_hand(clip, images, site)[0])
    run = oracle.Run(clip.model, images)
    second, direct = sl.second_order(model, images, LAYER), sl.direct(model, images, LAYER)
    mean = torch.zeros(model.tokens, model.neurons, dtype=torch.float64)
    strongest = z.abs().sum((0, 1)).topk(3).indices.tolist()
    ablated = sl.indirect(model, images, LAYER, strongest, mean)
    for position, unit in enumerate(strongest):
        write = z[:, :, unit, None] * latents.decoder[unit]
        expected = oracle.second_order(run, LAYER, write)
        assert expected.abs().max() > 1e-3
        assert (second[:, unit] - expected).abs().max() < 1e-10
        assert (direct[:, unit] - oracle.direct(run, write)).abs().max() < 1e-10
        mlp = clip.model.visual.transformer.resblocks[LAYER].mlp
        handle = mlp.register_forward_hook(lambda _, i, o, write=write: o - write)
        edited = clip.encode_image(images)
        handle.remove()
        length = run.representation.norm(dim=-1, keepdim=True)
        moved = (run.representation - edited) / length
        assert (ablated[:, position] - moved).abs().max() < 1e-10


def test_effects_of_units_and_errors_add_up_to_those_of_the_neurons(clip, images):
    """Up to the biases of the two decoders, which no unit and no neuron holds."""
    latents = some_latents()
    model = sl.units(clip, {LAYER: latents})
    run = oracle.Run(clip.model, images)
    bias = clip.blocks[LAYER].mlp_bias - latents.decoder_bias
    constant = oracle.second_order(run, LAYER, bias.expand_as(run.writes[LAYER]))
    of_neurons = sl.second_order(clip, images, LAYER).sum(1)
    of_units = sl.second_order(model, images, LAYER).sum(1)
    assert (of_neurons + constant - of_units).abs().max() < 1e-10


def test_singular_vectors_turn_what_the_mlp_writes(clip, images):
    model = sl.units(clip, {LAYER: sl.singular_vectors(clip, LAYER)}, error=False)
    assert model.neurons == WIDTH
    assert (model.encode_image(images) - clip.encode_image(images)).abs().max() < 1e-12
    gram = model.blocks[LAYER].neuron_rows @ model.blocks[LAYER].neuron_rows.T
    assert torch.allclose(gram, torch.eye(WIDTH, dtype=torch.float64), atol=1e-12)
    first = sl.singular_vectors(clip, LAYER, 1).decoder[0]
    largest = torch.linalg.matrix_norm(clip.blocks[LAYER].neuron_rows, 2)
    assert torch.isclose((clip.blocks[LAYER].neuron_rows @ first).norm(), largest)


def test_own_rows_leave_an_error_orthogonal_to_them(clip, images):
    rows = numbers(3, WIDTH)
    model = sl.units(clip, {LAYER: sl.directions(rows, "probe")})
    assert model.name == "tiny with probe"
    rest = oracle.Run(model.model, images).activations[LAYER][..., 3:]
    assert (rest @ rows.T).abs().max() < 1e-11
    with pytest.raises(sl.SecondLensError, match="depend on one another"):
        sl.directions(torch.cat([rows, rows[:1]]))


def test_copies_and_other_precisions_keep_the_units(clip, images):
    model = sl.units(clip, {LAYER: some_latents()})
    before = clip.weights_hash
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert twin.weights_hash == model.weights_hash != before
    assert torch.equal(twin.encode_image(images), model.encode_image(images))
    other = sl.units(clip, {LAYER: some_latents("stream")})
    single = other.view_of(copy.deepcopy(other.model).float())
    assert single.unit_layers == (LAYER,)
    assert single.neurons == LATENTS + WIDTH
    assert torch.allclose(
        single.encode_image(images.float()).double(), clip.encode_image(images), atol=1e-4
    )
    assert clip.unit_layers == ()
    assert clip.weights_hash == before


def test_only_layers_with_units_are_read(clip, images):
    model = sl.units(clip, {LAYER: some_latents(), 2: some_latents()})
    assert model.chosen_layers("all") == [1, 2]
    with pytest.raises(sl.SecondLensError, match="layer 0 of tiny with units has no units"):
        sl.second_order(model, images, 0)
    with pytest.raises(sl.UnsupportedModel, match="units in place of its neurons"):
        sl.paths(model, images, directions=numbers(1, model.dim))


def test_what_does_not_fit_is_refused_in_a_sentence(clip):
    wide = sl.Latents(encoder=numbers(WIDTH + 1, 4), decoder=numbers(4, WIDTH))
    for latents, options, said in (
        ({}, {}, "no latents"),
        ({LAYER: wide}, {}, "read 25 numbers and write 24"),
        ({1: some_latents(), 2: sl.directions(numbers(3, WIDTH))}, {}, "40 at layer 1, 3 at"),
        ({LAYER: some_latents("stream")}, {"error": False}, "leave error=True"),
        ({9: some_latents()}, {}, "no layer 9"),
    ):
        with pytest.raises(sl.SecondLensError, match=said):
            sl.units(clip, latents, **options)
    with pytest.raises(sl.SecondLensError, match="has units already"):
        sl.units(sl.units(clip, {1: some_latents()}), {2: some_latents()})
    scaled = sl.from_open_clip(tiny_model(dtype=torch.float64, layers=4, ls_init_value=0.5))
    with pytest.raises(sl.UnsupportedModel, match="LayerScale"):
        sl.units(scaled, {LAYER: some_latents()})
    for options, said in (
        ({"kind": "topk"}, "needs k"),
        ({"kind": "jumprelu"}, "needs the threshold"),
        ({"encoder_bias": torch.full((4,), torch.nan)}, "NaN or infinity"),
        ({"centre": torch.zeros(3)}, "centre needs 24 numbers"),
    ):
        with pytest.raises(sl.SecondLensError, match=said):
            sl.Latents(encoder=numbers(WIDTH, 4), decoder=numbers(4, WIDTH), **options)


# -- files of other libraries ------------------------------------------------------------------

W_ENC, W_DEC = numbers(6, 9, seed=1), numbers(9, 6, seed=2)
B_ENC, B_DEC = numbers(9, seed=3), numbers(6, seed=4)
STANDARD = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
X = numbers(20, 6, seed=6)


def top(z, k=3):
    kept = torch.zeros_like(z)
    for row, into in zip(z, kept, strict=True):
        for n in row.argsort(descending=True)[:k].tolist():
            into[n] = row[n]
    return kept


def computed(latents, x):
    parts = latents.tensors(torch.float64, "cpu")
    z = (x - parts["centre"]) @ parts["encoder"] + parts["encoder_bias"]
    z = active(z, latents.kind, k=latents.k, threshold=parts.get("threshold"))
    return z, z @ parts["decoder"] + parts["decoder_bias"]


NORMS = W_DEC.norm(dim=1)
CENTRED = (X - B_DEC) @ W_ENC + B_ENC
PLAIN = X @ W_ENC + B_ENC
UNIT_ROWS = W_DEC / (NORMS[:, None] + 1e-8)
BATCH_NORM = {
    "encoder.final_block.1.weight": numbers(9, seed=7),
    "encoder.final_block.1.bias": numbers(9, seed=8),
    "encoder.final_block.1.running_mean": numbers(9, seed=9),
    "encoder.final_block.1.running_var": numbers(9, seed=10).square(),
}
NORMED = torch.nn.functional.batch_norm(
    PLAIN, *(BATCH_NORM[f"encoder.final_block.1.{n}"] for n in ("running_mean", "running_var")),
    *(BATCH_NORM[f"encoder.final_block.1.{n}"] for n in ("weight", "bias")),
)  # fmt: skip
OVERCOMPLETE = {
    "encoder.final_block.0.weight": W_ENC.T,
    "encoder.final_block.0.bias": B_ENC,
    "dictionary._weights": W_DEC,
    "dictionary.multiplier": torch.tensor(0.2, dtype=torch.float64),
}
HOOK = {"metadata": {"hook_name": "blocks.4.hook_mlp_out"}}

CASES = {
    "saelens": ("saelens", STANDARD, {"architecture": "standard", **HOOK},
                CENTRED.relu(), lambda z: z @ W_DEC + B_DEC),
    "saelens topk": ("saelens", STANDARD,
                     {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True, **HOOK},
                     top(CENTRED * NORMS).relu(), lambda z: z / NORMS @ W_DEC + B_DEC),
    "saelens jumprelu": ("saelens", {**STANDARD, "threshold": B_ENC.abs()},
                         {"architecture": "jumprelu", "apply_b_dec_to_input": False, **HOOK},
                         PLAIN.relu() * (B_ENC.abs() < PLAIN), lambda z: z @ W_DEC + B_DEC),
    "saelens transcoder": ("saelens", STANDARD, {"architecture": "transcoder"},
                           PLAIN.relu(), lambda z: z @ W_DEC + B_DEC),
    "prisma": ("prisma", STANDARD,
               {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
                "layer_subtype": "hook_resid_post"},
               top(CENTRED).relu(), lambda z: z @ W_DEC + B_DEC),
    "saev, first": ("saev", STANDARD, {"d_vit": 6, "exp_factor": 1},
                    CENTRED.relu(), lambda z: z @ W_DEC + B_DEC),
    "saev, schema 2": ("saev", STANDARD,
                       {"schema": 2, "cfg": {"activation": {"cls": "TopK",
                                                            "params": {"top_k": 8}}}},
                       top(PLAIN, 8), lambda z: z @ W_DEC + B_DEC),
    "overcomplete": ("overcomplete", {**OVERCOMPLETE, **BATCH_NORM}, {"kind": "topk", "k": 3},
                     top(NORMED).relu(), lambda z: z @ (UNIT_ROWS * torch.tensor(0.2).exp())),
    "overcomplete jump": ("overcomplete", {**OVERCOMPLETE, "thresholds": B_ENC}, {},
                          PLAIN.relu() * (PLAIN.relu() >= B_ENC.exp()),
                          lambda z: z @ (UNIT_ROWS * torch.tensor(0.2).exp())),
    "dictionary_learning": ("dictionary_learning", {**LINEAR, "bias": B_DEC},
                            {"trainer": {"dict_class": "AutoEncoder"}},
                            CENTRED.relu() * NORMS, lambda z: z / NORMS @ W_DEC + B_DEC),
    "dictionary_learning topk": ("dictionary_learning",
                                 {**LINEAR, "b_dec": B_DEC, "k": torch.tensor(3)},
                                 {"trainer": {"dict_class": "AutoEncoderTopK"}},
                                 top(CENTRED.relu()), lambda z: z @ W_DEC + B_DEC),
    "dictionary_learning batch": ("dictionary_learning",
                                  {**LINEAR, "b_dec": B_DEC, "k": torch.tensor(3),
                                   "threshold": torch.tensor(0.7, dtype=torch.float64)},
                                  {"trainer": {"dict_class": "BatchTopKSAE"}},
                                  CENTRED.relu() * (CENTRED.relu() > 0.7),
                                  lambda z: z @ W_DEC + B_DEC),
}  # fmt: skip
"""Layout, tensors, settings, the latents by the library's formula, and its decoder."""


def written(folder, layout, tensors, settings):
    """Files as the library of a layout writes them."""
    folder.mkdir(exist_ok=True)
    tensors = {name: each.contiguous() for name, each in tensors.items()}
    if layout == "saelens":
        save_file(tensors, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(settings))
    elif layout == "saev":
        with (folder / "sae.pt").open("wb") as file:
            file.write(json.dumps(settings).encode() + b"\n")
            torch.save(tensors, file)
    else:
        torch.save(tensors, folder / ("weights.pt" if layout == "prisma" else "ae.pt"))
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_saved_layout_computes_what_its_library_computes(tmp_path, case):
    layout, tensors, settings, expected, decode = CASES[case]
    known = layout in ("saelens", "prisma")
    folder = written(tmp_path / "latents", layout, tensors, settings)
    latents = sl.read_latents(folder, layout, site=None if known else "mlp")
    z, rebuilt = computed(latents, X)
    assert (z != 0).any()
    assert torch.allclose(z, expected, rtol=1e-6, atol=1e-12)
    assert torch.allclose(rebuilt, decode(expected), rtol=1e-6, atol=1e-6)
    site = {"saelens transcoder": "transcoder", "prisma": "stream"}.get(case, "mlp")
    assert latents.site == site


@pytest.mark.parametrize(
    ("layout", "tensors", "settings", "said"),
    [
        ("saelens", STANDARD, {"architecture": "gated"}, "architecture is 'gated'"),
        ("saelens", STANDARD, {"normalize_activations": "layer_norm"}, "normalised"),
        ("saelens", LINEAR, HOOK, "not of the layout saelens: it has no 'W_enc'"),
        ("saelens", STANDARD, {}, "do not say what the latents read"),
        ("prisma", STANDARD, {"cls_token_only": True}, "only some tokens"),
        ("saev", STANDARD, {"schema": 1, "cfg": {}}, "schema 1"),
        ("overcomplete", OVERCOMPLETE, {}, "does not say its activation function"),
        ("dictionary_learning", LINEAR, {"dict_class": "GatedAutoEncoder"}, "GatedAutoEncoder"),
    ],
)
def test_other_latents_are_refused_in_a_sentence(tmp_path, layout, tensors, settings, said):
    folder = written(tmp_path / "latents", layout, tensors, settings)
    with pytest.raises(sl.SecondLensError, match=said):
        sl.read_latents(folder, layout)
