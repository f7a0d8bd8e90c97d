import json
import pickle
from dataclasses import replace

import hub as stand_in
import pytest
import torch
from click.testing import CliRunner
from explored import WORDS, Pictures, tiny_clip
from huggingface_hub import ModelCard, constants

from secondlens.commands.group import main
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.hub import lens_card
from secondlens.lens.lens import Lens
from secondlens.words.describing import describe

REPO = "somebody/a-lens"

# the hub's library sends files in a way that its HTTP library calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def lens(clip):
    lens = fit(clip, Pictures(), layers=[0, 1], top=6)
    describe(clip, lens, WORDS, 8)
    return lens


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
        yield hub


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def same(one, other):
    assert one.image_ids == other.image_ids
    assert one.model == other.model
    for layer in one.layers:
        for name, tensor in vars(one[layer]).items():
            assert torch.equal(tensor, getattr(other[layer], name)), name
    for name, codes in one.codes.items():
        assert codes.labels == other.codes[name].labels
        for layer in one.layers:
            assert torch.equal(codes.indices[layer], other.codes[name].indices[layer])


def test_a_lens_comes_back_as_it_was_sent(lens, hub):
    address = lens.push_to_hub(REPO)
    assert address.startswith(f"{hub.address}/{REPO}/commit/")
    assert hub.count(REPO) == 2  # the empty repository, and one commit with everything
    same(lens, Lens.from_hub(REPO))


def test_what_is_sent_is_the_lens_and_its_card(lens, hub, tmp_path):
    lens.push_to_hub(REPO)
    lens.save(tmp_path / "lens")
    own = {path.name for path in (tmp_path / "lens").iterdir()}
    assert set(hub.files(REPO)) == own | {"README.md", ".gitattributes"}
    for name in own:
        assert hub.files(REPO)[name] == (tmp_path / "lens" / name).read_bytes()
    assert hub.files(REPO)["README.md"].decode() == lens_card(lens, REPO)


def test_no_folder_of_this_machine_is_sent(lens, hub, tmp_path):
    here = "/home-of-telltale-user"
    own = _named(lens, f"local-dir:{here}/models/mine")
    own = replace(own, image_ids=tuple(f"{here}/{each}" for each in own.image_ids))
    own.save(tmp_path / "lens")
    shared = run("share", tmp_path / "lens", "--repo", REPO)
    assert shared.exit_code == 0, shared.output
    assert "local-dir:mine" in shared.output
    assert not [name for name, content in hub.files(REPO).items() if b"telltale" in content]
    assert Lens.from_hub(REPO).model["name"] == "local-dir:mine"
    assert len(Lens.from_hub(REPO).image_ids) == len(lens.image_ids)


def test_a_second_lens_replaces_the_first_in_one_commit(clip, lens, hub):
    lens.push_to_hub(REPO)
    first = hub.names(REPO)[-1]
    smaller = fit(clip, Pictures(20), layers=[1], top=3)
    smaller.push_to_hub(REPO)
    assert hub.count(REPO) == 3
    assert not {"layer-00.safetensors", "codes-00.safetensors"} & set(hub.files(REPO))
    same(smaller, Lens.from_hub(REPO))
    same(lens, Lens.from_hub(REPO, revision=first))


@pytest.mark.parametrize("there", ["model.safetensors", "README.md", "data/lens.json"])
def test_a_repository_of_something_else_is_left_alone(lens, hub, there):
    before = {".gitattributes": b"", there: b"precious"}
    hub.repositories[REPO] = [before]
    with pytest.raises(SecondLensError, match=f"holds no lens but {there}: name a new repository"):
        lens.push_to_hub(REPO)
    assert hub.repositories[REPO] == [before]


def test_only_files_of_a_lens_are_fetched(lens, hub, tmp_path):
    lens.push_to_hub(REPO)
    hub.files(REPO)["evil.py"] = b"raise SystemExit"
    hub.files(REPO)["weights.bin"] = pickle.dumps("a pickle")
    hub.files(REPO)["sub/layer-00.safetensors"] = b""
    Lens.from_hub(REPO)
    fetched = [each for each in hub.requests if "resolve" in each]
    assert fetched
    assert not [each for each in fetched if each.endswith((".py", ".bin"))]
    run("pull", REPO, tmp_path / "lens")
    assert not (tmp_path / "lens" / "sub").exists()


def test_a_hostile_lens_is_refused_like_any_damaged_folder(lens, hub):
    lens.push_to_hub(REPO)
    hub.files(REPO)["layer-01.safetensors"] = pickle.dumps({"mean": 0})
    with pytest.raises(SecondLensError, match="is damaged"):
        Lens.from_hub(REPO)
    manifest = json.loads(hub.files(REPO)["lens.json"]) | {"format": 99}
    hub.repositories[REPO].append(hub.files(REPO) | {"lens.json": json.dumps(manifest).encode()})
    with pytest.raises(SecondLensError, match="format 99"):
        Lens.from_hub(REPO)


def test_a_repository_without_a_lens(hub):
    hub.repositories[REPO] = [{"README.md": b"a model", "lens.txt": b""}]
    with pytest.raises(SecondLensError, match=f"{REPO} on the hub holds no lens"):
        Lens.from_hub(REPO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": "somebody/nothing"}, "there is no somebody/nothing on the hub"),
        ({"repo_id": REPO, "revision": "v9"}, "no such revision"),
        ({"repo_id": "not a name"}, "not a name cannot be fetched from the hub"),
    ],
)
def test_what_is_not_there(arguments, message, lens, hub):
    lens.push_to_hub(REPO)
    with pytest.raises(SecondLensError, match=message):
        Lens.from_hub(**arguments)


def test_without_a_login_nothing_is_sent(lens, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SecondLensError, match="log in") as caught:
        lens.push_to_hub(REPO)
    assert REPO not in hub.repositories
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub(lens, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
    for action in (lens.push_to_hub, Lens.from_hub):
        with pytest.raises(SecondLensError, match="the hub: ") as caught:
            action(REPO)
        assert stand_in.TOKEN not in str(caught.value)


def test_commands_share_and_pull(lens, hub, tmp_path, caplog):
    lens.save(tmp_path / "mine")
    shared = run("share", tmp_path / "mine", "--repo", REPO, "--private")
    assert shared.exit_code == 0, shared.output
    assert f"{REPO}/commit/" in shared.output
    assert REPO in hub.private
    pulled = run("pull", REPO, tmp_path / "theirs")
    assert pulled.exit_code == 0, pulled.output
    assert "layers [0, 1] of tiny <b>" in " ".join(pulled.output.split())
    same(lens, Lens.load(tmp_path / "theirs"))
    assert stand_in.TOKEN not in shared.output + pulled.output + caplog.text
    again = run("pull", REPO, tmp_path / "theirs")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_the_card_says_what_the_lens_is(clip, lens):
    text = lens_card(lens, REPO)
    card = ModelCard(text)
    assert card.data.library_name == "secondlens"
    assert card.data.base_model is None
    assert lens.model["weights"] in text
    assert f'sl.Lens.from_hub("{REPO}")' in text
    assert f"| 1 | {lens[1].selectivity.median():.2f} (" in text
    assert "`texts` | 32 | 8 |" in text
    assert "## Scores" not in text


def test_the_card_names_a_model_of_the_hub(lens):
    for name, expected in (
        ("hf:openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("hf:/a/folder", None),
        ("ViT-B-32", None),
    ):
        card = ModelCard(lens_card(_named(lens, name), REPO))
        assert card.data.base_model == expected


def test_hostile_names_stay_in_their_cells(lens):
    text = lens_card(_named(lens, "x` | <script>\n---\n# y"), REPO)
    assert "`x' / <script> --- # y`" in text


def _named(lens, name):
    return replace(lens, model=lens.model | {"name": name})
