"""What the explorer shows, against slow literal formulas."""

import base64
import gzip
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explored import (
    HOSTILE,
    LAYERS,
    NAMED_ON,
    ONE,
    TWO,
    WORDS,
    Pictures,
    make,
    preprocess,
    tiny_clip,
)
from fastapi.testclient import TestClient
from jinja2.filters import escape
from PIL import Image

from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import vocabulary, world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import NAMES
from secondlens.effects.capture import Capture
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.explorer import live as live_module
from secondlens.explorer import records
from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.layout import lay_out, load_layout, nearest
from secondlens.explorer.live import Live
from secondlens.explorer.numbers import short, shortened, shortened_by_name
from secondlens.explorer.opening import model_name, open_lens, own_pictures
from secondlens.explorer.pages import Pages
from secondlens.explorer.profile import Profiles
from secondlens.explorer.records import BANDS, GROUPS, LIGHT, fingerprint, load_survey
from secondlens.explorer.survey import survey
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.lens.names import NO_NAME
from secondlens.models.loading import load
from secondlens.words.describing import describe


@pytest.fixture(scope="module", params=["exact", "official"])
def made(request):
    return make(request.param)


@pytest.fixture(scope="module")
def exact():
    return make()


OF_FIT = Pictures().count


def loaded(*sources):
    return [source.load(i) for source in sources for i in range(source.count)]


def effects(clip, lens, layer, *more):
    """Centred effects of the pictures of the fit, and of more, materialised."""
    images = loaded(Pictures(), *more)
    return second_order(clip, images, layer, lens.convention) - lens[layer].mean


def activations(clip, layer):
    """Of the pictures of the fit, then of those of names."""
    with Capture(clip, [layer], keep_activations=True) as capture:
        images = loaded(Pictures(), NAMED_ON)
        pooled = capture.pool(clip.encode_image(images))
    return pooled.activations[layer][:, 1:]


@pytest.mark.parametrize("layer", LAYERS)
def test_effects_are_projections_of_second_order_effects(made, layer):
    clip, _, lens, seen, _ = made
    centred = effects(clip, lens, layer, NAMED_ON)
    wanted = torch.einsum("bnd,nd->nb", centred, lens[layer].directions)
    own = seen.layers[layer]
    filled = own.images >= 0
    rows = np.nonzero(filled)[0]
    expected = wanted[rows, own.images[filled]].numpy()
    assert np.allclose(own.effect[filled], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layer", LAYERS)
def test_heat_is_activation_in_sixteen_steps(exact, layer):
    clip, _, _, seen, _ = exact
    fired, own = activations(clip, layer), seen.layers[layer]
    full = fired[:OF_FIT].amax((0, 1))
    assert np.allclose(own.scale, full.numpy(), atol=1e-5)
    for neuron in (0, 7):
        for slot, position in enumerate(own.images[neuron]):
            if position >= 0:
                shares = (fired[position, :, neuron] / full[neuron]).clamp(0, 1)
                assert np.abs(own.heat[neuron, slot] - (shares * LIGHT).numpy()).max() <= 0.51
                assert own.peak[neuron, slot] == pytest.approx(
                    float(fired[position, :, neuron].max()), abs=1e-5
                )


@pytest.mark.parametrize("layer", LAYERS)
def test_bands_and_histogram_count_every_image(exact, layer):
    clip, _, lens, seen, _ = exact
    wanted = torch.einsum("bnd,nd->nb", effects(clip, lens, layer), lens[layer].directions)
    own = seen.layers[layer]
    assert (own.counts.sum(1) == Pictures().count).all()
    assert np.allclose(own.shares.sum(1), 1)
    low, high = wanted.aminmax(dim=1)
    assert np.allclose(own.extent, torch.stack([low, high], 1).numpy(), atol=1e-5)
    for neuron, row in enumerate(wanted):
        edges = np.linspace(float(low[neuron]), float(high[neuron]), BANDS + 1)
        for band in range(BANDS):
            start = GROUPS["bands"].start + band * records.IN_BAND
            shown = own.images[neuron, start : start + records.IN_BAND]
            inside = row[shown[shown >= 0]].numpy()
            assert (inside >= edges[band] - 1e-5).all() and (inside <= edges[band + 1] + 1e-5).all()


def test_paths_add_up_and_follow_the_definition(exact):
    clip, _, lens, seen, _ = exact
    from secondlens.effects.value_paths import value_paths

    layer, neuron = 0, 5
    own = seen.layers[layer]
    assert np.allclose(own.paths.sum(1), 1, atol=1e-3)
    rows = value_paths(clip, layer)[neuron] @ lens[layer].directions[neuron]
    pictures = Pictures()
    with Capture(clip, [layer]) as capture:
        images = [pictures.load(i) for i in range(pictures.count)]
        pooled = capture.pool(clip.encode_image(images))
    parts = pooled.coefficients[layer][:, :, neuron] * rows * pooled.scale[:, None]
    centred = parts - parts.mean(0)
    top = lens[layer].top_images[neuron]
    signed = centred[top] * centred[top].sum(1, keepdim=True).sign()
    assert np.allclose(own.paths[neuron], signed.sum(0) / signed.sum(), atol=1e-4)
    slot = 0
    assert own.path[neuron, slot] == int(signed[slot].argmax())


def test_the_strongest_are_in_the_order_of_the_number_shown(exact):
    _, _, lens, seen, layout = exact
    profile = Profiles(Atlas(lens, seen, layout)).of(1, 7)
    strongest = [profile["shots"][place] for place in profile["groups"]["strongest"]]
    sizes = [abs(effect) for _, _, effect, *_ in strongest]
    assert sizes == sorted(sizes, reverse=True)
    assert {position for position, *_ in strongest} == set(lens[1].top_images[7].tolist())


def test_groups_are_the_strongest_and_the_firing(exact):
    clip, _, lens, seen, _ = exact
    for layer in LAYERS:
        own = seen.layers[layer]
        assert (own.images[:, :6] == lens[layer].top_images.numpy()).all()
        peaks = activations(clip, layer)[:OF_FIT].amax(1)
        firing = own.images[:, GROUPS["firing"]]
        expected = peaks.topk(records.FIRING, dim=0).values.T
        assert np.allclose(peaks.gather(0, torch.tensor(firing).T.long()).T, expected)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_triangles_give_the_code_of_any_size(exact, size):
    clip, _, lens, seen, _ = exact
    atoms = normalise(vocabulary(WORDS).embed(clip)).double()
    codes = lens.codes["texts"]
    for layer in LAYERS:
        for neuron in (0, 11):
            numbers = torch.from_numpy(seen.codes["texts"][layer][neuron]).double()
            most = codes.indices[layer].shape[1]
            upper = torch.zeros(most, most, dtype=torch.float64)
            upper[tuple(torch.triu_indices(most, most))] = numbers[most:]
            weights = torch.linalg.solve(upper[:size, :size], numbers[:size])
            chosen = atoms[codes.indices[layer][neuron, :size]]
            direction = lens[layer].directions[neuron].double()
            expected = torch.linalg.lstsq(chosen.T, direction[:, None]).solution[:, 0]
            assert torch.allclose(weights, expected, atol=1e-3)
            cosine = F.cosine_similarity(expected @ chosen, direction, dim=0)
            assert float(numbers[:size].norm()) == pytest.approx(float(cosine), abs=1e-4)


def test_class_changes_are_what_ablation_does(exact):
    clip, _, lens, seen, _ = exact
    layer, neuron = 1, 3
    own = seen.layers[layer]
    texts = vocabulary(WORDS).embed(clip)
    texts = texts - texts.mean(0)
    direction = lens[layer].directions[neuron]
    top = lens[layer].top_images[neuron]
    x = (effects(clip, lens, layer)[top, neuron] @ direction).mean()
    change = -x * (texts @ direction)
    assert np.allclose(own.change[neuron], change[own.classes[neuron]], atol=1e-5)
    assert own.change[neuron].min() == pytest.approx(float(change.min()), abs=1e-5)
    assert own.change[neuron].max() == pytest.approx(float(change.max()), abs=1e-5)


def test_neighbours_are_the_nearest():
    rows = F.normalize(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    neighbours, cosines = nearest(rows)
    products = (rows @ rows.T).fill_diagonal_(0)
    expected = products.abs().sort(dim=1, descending=True).values[:, : neighbours.shape[1]]
    assert torch.allclose(cosines.abs(), expected, atol=1e-6)
    assert torch.allclose(products.gather(1, neighbours.long()), cosines)


def test_survey_and_layout_come_back_from_disk_and_belong_to_one_lens(exact, tmp_path):
    _, _, lens, seen, layout = exact
    seen.save(tmp_path)
    again = load_survey(tmp_path, lens)
    assert again is not None and (again.pictures == seen.pictures).all()
    for layer in LAYERS:
        for name, value in vars(seen.layers[layer]).items():
            assert (getattr(again.layers[layer], name) == value).all()
    layout.save(tmp_path / "layout.safetensors", lens)
    assert load_layout(tmp_path / "layout.safetensors", lens) is not None
    other = make(seed=1)[2]
    assert fingerprint(other) != fingerprint(lens)
    assert load_survey(tmp_path, other) is None
    assert load_layout(tmp_path / "layout.safetensors", other) is None
    (tmp_path / "layer-00.safetensors").write_bytes(b"cut off")
    assert load_survey(tmp_path, lens) is None


def test_numbers_are_rounded_as_the_format_of_strings_does():
    numbers = np.random.default_rng(0).standard_normal(2000)
    numbers *= 10.0 ** np.random.default_rng(1).integers(-9, 9, 2000)
    numbers[:5] = 0, np.nan, np.inf, -np.inf, 1
    for digits in (3, 4):
        assert shortened(numbers, digits) == [short(number, digits) for number in numbers]
    parts = {"a": numbers[:7], "none": numbers[:0], "b": numbers[7:9]}
    expected = {name: shortened(part) for name, part in parts.items()}
    assert shortened_by_name(parts) == expected
    assert expected["a"][:5] == [0, None, None, None, 1]


def test_atlas_is_json_and_refuses_what_is_not_there(exact):
    _, _, lens, seen, layout = exact
    atlas = Atlas(lens, seen, layout)
    profiles = Profiles(atlas)
    data = profiles.of(1, 5)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["name"] == atlas.name(1, 5) == lens.title(1, 5) == HOSTILE[0]
    assert [each["text"] for each in data["names"]] == [HOSTILE[0]]
    assert data["numbers"]["names"] == 1
    assert Profiles(atlas).of(0, 3)["name"] == NO_NAME
    assert len(atlas.table()["name"]) == atlas.total
    assert atlas.neuron_at(atlas.offsets[1] + 5) == (1, 5)
    assert json.dumps(atlas.image(3), allow_nan=False)
    for layer, neuron in ((0, -1), (0, 10**6), (2, 0), (9, 0)):
        with pytest.raises(SecondLensError, match="layer"):
            profiles.of(layer, neuron)
    with pytest.raises(SecondLensError, match="there is no image"):
        atlas.image(200)
    assert "neurons" not in atlas.image(40)  # a neuron was named on it; effects are of the fit


def test_atlas_without_survey_or_description(exact):
    clip, pictures, lens, _, _ = exact
    bare = Atlas(replace(lens, codes={}, scores={}, stability={}, names={}))
    assert bare.name(0, 0) == ""
    data = Profiles(bare).of(0, 0)
    assert data["words"] == {} and data["similar"] == [] and "shots" not in data
    assert len(data["top"]) == 6
    assert set(bare.table()["names"]) == {None}
    assert set(bare.table()["pushes"]) == {""}
    with pytest.raises(SecondLensError, match="no description"):
        survey(clip, bare.lens, pictures)


def test_live_wall_is_the_exact_effect_along_the_text(made):
    clip, pictures, lens, seen, layout = made
    live = Live(clip=clip, atlas=Atlas(lens, seen, layout), source=pictures)
    layer, neuron = 0, 4
    mean = lens.codes["texts"].mean_text
    text = F.normalize(clip.encode_text(["a ship"])[0] - mean, dim=0)
    unit = 100 if lens.convention == "official" else 1
    wanted = effects(clip, lens, layer)[:, neuron] @ text / unit
    shots = live.wall(layer, neuron, "a ship")["shots"]
    assert [s[2] for s in shots] == sorted((s[2] for s in shots), reverse=True)
    for position, _, along, *_ in shots:
        assert along == pytest.approx(float(wanted[position]), rel=1e-2, abs=1e-5)


def test_live_search_orders_all_neurons_by_cosine(exact):
    clip, pictures, lens, seen, layout = exact
    live = Live(clip=clip, atlas=Atlas(lens, seen, layout), source=pictures)
    text = clip.encode_text(["word q"])[0] - lens.codes["texts"].mean_text
    every = {
        (layer, n): float(F.cosine_similarity(row, text, dim=0))
        for layer in LAYERS
        for n, row in enumerate(lens[layer].directions)
    }
    found = live.search("word q")
    best = sorted(every, key=lambda key: -every[key])
    assert [tuple(f[:2]) for f in found["for"][:5]] == best[:5]
    assert [tuple(f[:2]) for f in found["against"][:5]] == best[:-6:-1]
    for bad in (" ", "x" * 500):
        with pytest.raises(SecondLensError, match="text"):
            live.search(bad)


def test_live_image_names_the_strongest_neurons(exact):
    clip, pictures, lens, seen, layout = exact
    live = Live(clip=clip, atlas=Atlas(lens, seen, layout), source=pictures)
    answer = live.image(pictures.load(2))
    standard = {}
    for layer in LAYERS:
        mine = torch.einsum("nd,nd->n", effects(clip, lens, layer)[2], lens[layer].directions)
        for n, value in enumerate((mine / lens[layer].energy.sqrt()).tolist()):
            standard[layer, n] = value
    best = max(standard, key=lambda key: abs(standard[key]))
    assert tuple(answer["neurons"][0][:2]) == best
    assert answer["neurons"][0][2] == pytest.approx(standard[best], rel=1e-2)
    assert len(answer["patches"]) == 6
    assert seen.responding[2, 0] == best[0] * clip.neurons + best[1]
    assert json.dumps(answer, allow_nan=False)
    found = live.segment(pictures.load(2), ["a ship", "word b"])
    assert found["size"] == [8, 12] and len(found["heat"]) == 2
    assert all(len(bytes.fromhex(heat)) == 96 for heat in found["heat"])


def test_budget_agrees_with_the_definitions(exact):
    clip, pictures, lens, seen, layout = exact
    from secondlens.effects.value_paths import direct

    live = Live(clip=clip, atlas=Atlas(lens, seen, layout), source=pictures)
    found = live.budget(0, 9)
    images = [pictures.load(i) for i in lens[0].top_images[9].tolist()]
    straight = direct(clip, images, 0)[:, 9].norm(dim=1).mean()
    paths = (second_order(clip, images, 0)[:, 9] - lens[0].mean[9]).norm(dim=1).mean()
    assert found["direct"] == pytest.approx(float(straight), rel=1e-2)
    assert found["paths"] == pytest.approx(float(paths), rel=1e-2)


def test_live_says_what_is_missing(exact):
    clip, pictures, lens, seen, layout = exact
    atlas = Atlas(lens, seen, layout)
    with pytest.raises(SecondLensError, match="pictures are not at hand: start with --images"):
        Live(clip=clip, atlas=atlas).wall(0, 4, "a ship")
    tensors = torch.stack([preprocess(pictures.load(i)) for i in range(pictures.count)])
    live = Live(clip=clip, atlas=atlas, source=Named(pictures.ids, tensors))
    with pytest.raises(SecondLensError, match="are tensors: give them as files"):
        live.budget(0, 4)
    live = Live(clip=clip, atlas=atlas, source=Named(pictures.ids, None))
    with pytest.raises(SecondLensError, match="the picture 3 cannot be read: gone"):
        live.picture(3)
    with pytest.raises(SecondLensError, match="there is no image 200"):
        live.picture(200)
    with pytest.raises(SecondLensError, match="not at hand: start with --named-on"):
        live.picture(40)
    old = {name: replace(codes, mean_text=None) for name, codes in lens.codes.items()}
    live = Live(clip=clip, atlas=Atlas(replace(lens, codes=old)))
    with pytest.raises(SecondLensError, match="described by an older version"):
        live.search("a ship")
    for text, message in ((" ", "there is no text"), ("x" * 201, "longer than 200 letters")):
        with pytest.raises(SecondLensError, match=message):
            live.segment(pictures.load(0), [text])


@dataclass
class Named:
    """Tensors, or files that are gone."""

    ids: list
    tensors: object

    def load(self, index):
        if self.tensors is None:
            raise OSError("gone")
        return self.tensors[index]


@pytest.fixture(scope="module")
def embedded():
    """The embedded model, which has a world to draw attacks from."""
    clip = load("demo")
    lens = fit(clip, Scenes(World(), 31, 50), [5])
    describe(clip, lens, world_vocabulary(), 8)
    return clip, lens


def test_the_lab_attacks_and_keeps_nothing(embedded, exact, monkeypatch):
    clip, lens = embedded
    monkeypatch.setattr(live_module, "PICTURES", 2)
    live = Live(clip=clip, atlas=Atlas(lens))
    client = TestClient(make_app(Pages(live.atlas, live=True, classes=live.classes), live))
    packed = gzip.decompress(client.get("/data/runs.json.gz").content)
    assert json.loads(packed)["classes"] == list(NAMES)
    report = client.post("/live/attack?draw=cow&mistake_for=lion").json()
    assert (report["draw"], report["planned"], len(report["samples"])) == ("cow", 2, 2)
    assert all(word["score"] > 0 for word in report["words"])
    for sample in report["samples"]:
        for picture in (sample["picture"], sample["plain"]):
            kind, _, content = picture.partition(",")
            assert kind == "data:image/webp;base64"
            assert Image.open(io.BytesIO(base64.b64decode(content))).size == (64, 64)
        assert not Path(sample["file"]).exists()
    for draw, message in (("lion", "cannot be mistaken for itself"), ("yeti", "no class 'yeti'")):
        answer = client.post(f"/live/attack?draw={draw}&mistake_for=lion")
        assert answer.status_code == 400 and message in answer.json()["detail"]
    tiny, _, other, seen, layout = exact
    live = Live(clip=tiny, atlas=Atlas(other, seen, layout))
    client = TestClient(make_app(Pages(live.atlas, live=True, classes=live.classes), live))
    assert list(live.classes) == []
    assert client.post("/live/attack?draw=cow&mistake_for=lion").status_code == 404


def test_embedded_pictures_are_drawn_anew(embedded, exact, tmp_path):
    _, lens = embedded
    source = own_pictures(lens, lens.image_ids)
    assert set(lens.image_ids) <= set(source.ids)
    position = source.ids.index(lens.image_ids[7])
    assert source.load(position) == Scenes(World(), 31, 50).load(7)
    assert own_pictures(exact[2], exact[2].image_ids) is None
    with pytest.raises(SecondLensError, match="scenes of several seeds: give --images"):
        own_pictures(lens, ("scene-1-0", "scene-2-0"))
    for each, name in ((lens, "demo"), (exact[2], None)):
        each.save(tmp_path / str(name))
        assert model_name(tmp_path / str(name), None) == name
        assert model_name(tmp_path / str(name), "other") == "other"


def test_a_map_needs_scikit_learn(exact, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(SecondLensError, match="the map of neurons needs scikit-learn"):
        lay_out(exact[2])


def test_open_lens_surveys_once(exact, tmp_path):
    clip, pictures, lens, _, _ = exact
    lens.save(tmp_path / "lens")
    said = []
    atlas, live = open_lens(tmp_path / "lens", None, say=said.append)
    assert live is None and atlas.survey is None
    assert "--model" in said[0] and "--images" in said[0]
    atlas, live = open_lens(tmp_path / "lens", clip, pictures, NAMED_ON, say=said.append)
    assert live is not None and atlas.survey is not None
    count = len(said)
    atlas, live = open_lens(tmp_path / "lens", None, say=said.append)
    assert atlas.survey is not None and len(said) == count
    with pytest.raises(SecondLensError, match="other weights"):
        open_lens(tmp_path / "lens", tiny_clip(seed=3), pictures)
    with pytest.raises(SecondLensError, match="there is no picture"):
        open_lens(tmp_path / "lens", clip, [pictures.load(0)])


def test_a_lens_that_was_described_again_says_so(exact, tmp_path):
    clip, pictures, lens, seen, _ = exact
    lens.save(tmp_path / "lens")
    seen.save(tmp_path / "lens" / "explorer")
    again = Lens.load(tmp_path / "lens")
    describe(clip, again, WORDS[8:], 4)
    again.save(tmp_path / "lens")
    said = []
    atlas, _ = open_lens(tmp_path / "lens", None, say=said.append)
    assert atlas.survey is None
    assert (
        "was described or named since it was surveyed, and pages lack pictures: give the" in said[0]
    )
    assert "the model (--model) and the pictures of the fit (--images) to look at" in said[0]
    atlas, _ = open_lens(tmp_path / "lens", clip, pictures, NAMED_ON, say=said.append)
    assert atlas.survey and "again: it was described or named since" in said[-1]


def test_lay_out_is_deterministic(exact):
    lens = exact[2]
    assert torch.equal(lay_out(lens).place, lay_out(lens).place)


def test_home_begins_with_polysemous_neurons_and_with_the_surest_names(exact):
    _, _, lens, seen, layout = exact
    atlas = Atlas(lens, seen, layout)
    assert atlas.polysemous() == [(1, TWO)]
    areas = [lens.fires_on(*place)[0].auc for place in atlas.clearest()]
    assert len(areas) == 2
    assert areas == sorted(areas, reverse=True)
    page = Pages(atlas).home()
    assert "several things" in page and f'href="neuron/1/{TWO}/"' in page


def test_home_of_a_lens_without_names_begins_with_selective_neurons(exact):
    _, _, lens, seen, layout = exact
    atlas = Atlas(replace(lens, names={}), seen, layout)
    assert atlas.polysemous() == []
    values = [atlas.columns[layer]["selectivity"][neuron] for layer, neuron in atlas.clearest()]
    assert values == sorted(values, reverse=True)
    assert values[0] == max(own["selectivity"].max() for own in atlas.columns.values())
    page = Pages(atlas).home()
    assert "several things" not in page and "secondlens name" in page
    assert "pushes towards" in atlas.name(0, 0)


def test_pictures_under_a_name_are_those_that_hold_it(exact):
    _, _, lens, seen, layout = exact
    names, profile = lens.first_names, Profiles(Atlas(lens, seen, layout)).of(1, TWO)
    for rank, holding in enumerate(profile["holding"]):
        shown = [profile["shots"][i] for i in holding]
        expected = [place for place in names.pictures[1][TWO, rank].tolist() if place >= 0][:4]
        assert [position - len(lens.image_ids) for position, *_ in shown] == expected
        assert [shot[1] for shot in shown] == [names.image_ids[place] for place in expected]
        assert all(shot[2] > 0 for shot in shown), "effects on them point along the direction"
    assert len(profile["holding"]) == 2


def test_without_the_pictures_of_names_a_survey_is_made_again_when_they_are_there(exact, tmp_path):
    clip, pictures, lens, *_ = exact
    lens.save(tmp_path / "lens")
    said = []
    atlas, _ = open_lens(tmp_path / "lens", clip, pictures, say=said.append)
    assert not atlas.survey.named
    assert any("No pictures stand under the names" in each for each in said)
    said.clear()
    assert Profiles(atlas).of(1, ONE)["holding"] == [[]]
    atlas, _ = open_lens(tmp_path / "lens", clip, pictures, NAMED_ON, say=said.append)
    assert atlas.survey.named
    assert not any("No pictures" in each for each in said)
    assert all(Profiles(atlas).of(1, ONE)["holding"])


def test_every_label_is_the_name_of_the_lens(exact):
    _, _, lens, seen, layout = exact
    atlas = Atlas(lens, seen, layout)
    table, rng = atlas.table(), np.random.default_rng(0)
    for number in rng.integers(0, atlas.total, 200).tolist():
        place = atlas.neuron_at(number)
        assert table["name"][number] == atlas.name(*place) == lens.title(*place)
        assert Profiles(atlas).of(*place)["name"] == lens.title(*place)
        page = Pages(atlas).neuron(*place)
        assert f"<h1>{escape(lens.title(*place))}</h1>" in page
