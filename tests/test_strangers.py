"""Nothing from a stranger is run: folders, repositories and files that try, each in its own way.

Every one would leave a telltale file if any of its code ran. Answering "y" to any question is part
of each test.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import hub as stand_in
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from safetensors.torch import save_file

import secondlens as sl
from secondlens.applications.adversarial.chat import ChatModel
from secondlens.applications.adversarial.diffusion import DiffusionGenerator
from secondlens.applications.adversarial.runs import attacked
from secondlens.applications.adversarial.selection import Pair
from secondlens.applications.adversarial.sentences import Sentences
from secondlens.applications.auditing.audits import Audit
from secondlens.commands.group import main
from secondlens.data.sources import as_source
from secondlens.data.vocabularies import vocabulary
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.strangers import check_model, no_code_runs

pytestmark = pytest.mark.filterwarnings("ignore")

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1}
CLIP = {
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 8},
    "vision_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                      "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
}  # fmt: skip
WORDS = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
         "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
         "decoder": None, "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1},
                                    "unk_token": "<unk>"}}  # fmt: skip


class Stranger:
    """Makes things that touch `telltale` when they are run."""

    def __init__(self, place):
        self.place, self.telltale = place, place / "it ran"
        self.code = (
            f"from pathlib import Path\nPath({str(self.telltale)!r}).touch()\n"
            "class Own:\n    pass\n"
        )
        self.folder = place / "model"
        self.folder.mkdir()

    def __reduce__(self):
        return Path.touch, (self.telltale,)

    def write(self, name, content, folder=None):
        path = (folder or self.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def pickled(self, name, **options):
        """A file of weights that is a program."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": self}, path, **options)
        return path

    def script(self, name):
        """A TorchScript archive."""
        path = self.folder / name
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
        return path

    # -- whole models ------------------------------------------------------------------------

    def open_clip(self, text=None, vision=None, **more):
        config = {"embed_dim": 8, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT}
        config["text_cfg"] = TEXT | (text or {})
        self.write("open_clip_config.json", {"model_cfg": config, **more})
        return f"local-dir:{self.folder}"

    def own_tokenizer(self, folder=None, **more):
        self.write("tok.py", self.code, folder)
        own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tok.Own", None]}}
        self.write("tokenizer_config.json", own | more, folder)

    def own_model(self, folder=None, base=None, kinds=("AutoConfig", "AutoModel"), **more):
        self.write("own.py", self.code, folder)
        config = {"auto_map": dict.fromkeys(kinds, "own.Own")}
        self.write("config.json", (base or {"model_type": "own"}) | config | more, folder)
        return str(folder or self.folder)

    def clip(self, **more):
        self.write("config.json", CLIP | more)
        return f"hf:{self.folder}"

    def chat(self, **more):
        self.write("config.json", LLAMA | more)
        self.write("tokenizer.json", WORDS)
        self.write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        return str(self.folder)

    def sentences(self, *modules):
        self.write("config.json", BERT)
        self.write("tokenizer.json", WORDS)
        self.write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        self.write("config_sentence_transformers.json", {"__version__": {}})
        first = {"idx": 0, "name": "0", "path": "",
                 "type": "sentence_transformers.models.Transformer"}  # fmt: skip
        self.write("modules.json", [first, *modules])
        return str(self.folder)

    def pipeline(self, **parts):
        index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0"}
        index |= {"unet": ["diffusers", "UNet2DConditionModel"],
                  "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip
        self.write("model_index.json", index | parts)
        return str(self.folder)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    found = Stranger(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    # what libraries copy Python files of models to
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "py"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield found
    assert not found.telltale.exists()


def refused(make):
    with pytest.raises(sl.SecondLensError) as caught:
        make()
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert "trust_remote_code=True" not in str(caught.value)
    return str(caught.value)


# -- open_clip: folders ------------------------------------------------------------------------


def tokenizer_that_trusts_itself(s):
    s.own_tokenizer()
    options = {"trust_remote_code": True}
    return s.open_clip({"hf_tokenizer_name": "any", "tokenizer_kwargs": options})


def tokenizer_that_asks(s):
    s.own_tokenizer()
    return s.open_clip({"hf_tokenizer_name": "any"})


def tokenizer_deep_below(s):
    s.own_tokenizer()
    return s.open_clip({"hf_tokenizer_name": "any", "tokenizer_kwargs": {"clean": {"a": [1]}}})


def tokenizer_in_a_version_of_its_own(s):
    s.write("tok.py", s.code)
    s.write("tokenizer_config.json", {})
    s.write("config.json", {"configuration_files": ["config.4.0.0.json"]})
    s.write("config.4.0.0.json", {"auto_map": {"AutoTokenizer": ["tok.Own", None]}})
    return s.open_clip({"hf_tokenizer_name": "any"})


def text_tower_elsewhere(s):
    other = s.place / "other"
    s.own_model(other)
    return s.open_clip({"hf_model_name": str(other), "hf_pooler_type": "mean_pooler"})


def vocabulary_elsewhere(s):
    return s.open_clip({"tokenizer_kwargs": {"bpe_path": "/dev/stdin"}})


def image_tower_of_the_hub(s):
    return s.open_clip(vision={"timm_model_name": "hf-hub:somebody/tower"})


def trust_at_depth(s):
    s.own_tokenizer()
    return s.open_clip(preprocess_cfg={"size": [{"deep": {"trust_remote_code": 1}}]})


def pickled_weights(s):
    s.pickled("open_clip_model.bin")
    return s.open_clip()


def pickled_weights_of_the_old_format(s):
    s.pickled("model.pth", _use_new_zipfile_serialization=False)
    return s.open_clip()


def script_as_weights(s):
    s.script("open_clip_pytorch_model.bin")
    return s.open_clip()


def configuration_without_end(s):
    s.open_clip()
    s.write("open_clip_config.json", "[" * 100_000)
    return f"local-dir:{s.folder}"


def configuration_behind_a_link(s):
    other = s.place / "other"
    s.own_tokenizer(other)
    (s.folder / "tokenizer_config.json").symlink_to(other / "tokenizer_config.json")
    (s.folder / "tok.py").symlink_to(other / "tok.py")
    return s.open_clip({"hf_tokenizer_name": "any"})


# -- transformers: folders ---------------------------------------------------------------------


def unknown_model(s):
    return f"hf:{s.own_model()}"


def clip_with_a_model_of_its_own(s):
    s.own_model(base=CLIP)
    return f"hf:{s.folder}"


def clip_with_a_tokenizer(s):
    save_file({"a": torch.zeros(1)}, s.folder / "model.safetensors")
    s.own_tokenizer()
    return s.clip()


def clip_with_an_image_processor(s):
    s.write("own.py", s.code)
    s.write("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "own.Own"}})
    return s.clip()


def clip_with_a_processor(s):
    s.write("own.py", s.code)
    s.write("processor_config.json", {"auto_map": {"AutoProcessor": "own.Own"}})
    return s.clip()


def clip_with_a_nested_model(s):
    s.write("own.py", s.code)
    return s.clip(vision_config=CLIP["vision_config"] | {"auto_map": {"AutoModel": "own.Own"}})


def clip_with_compiled_code(s):
    return s.clip(_attn_implementation="somebody/attention")


def clip_with_compiled_code_for_one_tower(s):
    return s.clip(attn_implementation={"text_config": "somebody/attention:fast"})


def clip_of_pickled_weights(s):
    s.pickled("pytorch_model.bin")
    return s.clip()


def clip_of_pickled_shards(s):
    s.pickled("pytorch_model-00001-of-00001.bin")
    weights = {"weight_map": {"logit_scale": "pytorch_model-00001-of-00001.bin"}, "metadata": {}}
    s.write("pytorch_model.bin.index.json", weights)
    return s.clip()


def clip_that_lies_in_code_elsewhere(s):
    other = s.place / "other"
    s.own_model(other)
    s.write("config.json", CLIP | {"auto_map": {"AutoConfig": f"{other}--own.Own"}})
    return f"hf:{s.folder}"


NAMES = (
    tokenizer_that_trusts_itself, tokenizer_that_asks, tokenizer_deep_below,
    tokenizer_in_a_version_of_its_own, text_tower_elsewhere, vocabulary_elsewhere,
    image_tower_of_the_hub, trust_at_depth, pickled_weights, pickled_weights_of_the_old_format,
    script_as_weights, configuration_without_end, configuration_behind_a_link, unknown_model,
    clip_with_a_model_of_its_own, clip_with_a_tokenizer, clip_with_an_image_processor,
    clip_with_a_processor, clip_with_a_nested_model, clip_with_compiled_code,
    clip_with_compiled_code_for_one_tower, clip_of_pickled_weights, clip_of_pickled_shards,
    clip_that_lies_in_code_elsewhere,
)  # fmt: skip


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_models(stranger, make):
    name = make(stranger)
    refused(lambda: sl.load(name))


@pytest.mark.parametrize(
    "make", [tokenizer_that_trusts_itself, unknown_model, pickled_weights], ids=lambda m: m.__name__
)
def test_models_in_a_command(stranger, make):
    done = CliRunner().invoke(main, ["verify", "--model", make(stranger)], input="y\n" * 9)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


# -- checkpoint files --------------------------------------------------------------------------


def array_of_objects(s):
    return np.array([s, None], dtype=object)


def plain_pickle(s):
    return s.write("a.pt", pickle.dumps({"weight": s}))


def numpy_archive(s):
    np.savez(s.folder / "a.npz", weight=array_of_objects(s))
    return s.folder / "a.npz"


def numpy_file(s):
    np.save(s.folder / "a.npy", array_of_objects(s), allow_pickle=True)
    return s.folder / "a.npy"


def pickle_that_confuses(s):
    """A call with arguments that do not fit, where only names of torch may stand, and then code."""
    whole = io.BytesIO()
    torch.save({"weight": s}, whole)
    path = s.folder / "a.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                wrong = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R0"
                content = wrong + pickle.dumps({"weight": s}, protocol=2)[2:]
            target.writestr(name, content)
    return path


def safetensors_by_name_alone(s):
    return s.write("a.safetensors", pickle.dumps(s))


FILES = (
    lambda s: s.pickled("a.pt"),
    lambda s: s.pickled("a.bin", _use_new_zipfile_serialization=False),
    lambda s: s.script("a.pt"),
    plain_pickle,
    numpy_archive,
    numpy_file,
    pickle_that_confuses,
    safetensors_by_name_alone,
)


@pytest.mark.parametrize("make", FILES)
def test_checkpoints(stranger, make):
    path = make(stranger)
    refused(lambda: sl.load("ViT-S-32", str(path), activation="gelu"))


# -- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, stranger, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with stand_in.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def publish(hub, stranger, repo, folder=None):
    """What a folder holds as a repository."""
    folder = folder or stranger.folder
    hub.repositories[repo] = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    ]


@pytest.mark.parametrize("make", [tokenizer_that_trusts_itself, tokenizer_that_asks])
def test_open_clip_repositories(stranger, hub, make):
    make(stranger)
    config = json.loads((stranger.folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somebody/model"
    stranger.write("open_clip_config.json", config)
    publish(hub, stranger, "somebody/model")
    refused(lambda: sl.load("hf-hub:somebody/model"))


@pytest.mark.parametrize("key", ["hf_tokenizer_name", "hf_model_name"])
def test_open_clip_repositories_that_name_others(stranger, hub, key):
    other = stranger.place / "other"
    stranger.own_tokenizer(other)
    stranger.own_model(other)
    publish(hub, stranger, "somebody/other", other)
    stranger.open_clip({key: "somebody/other"})
    publish(hub, stranger, "somebody/model")
    assert "somebody/other" in refused(lambda: sl.load("hf-hub:somebody/model"))


def test_transformers_repositories(stranger, hub):
    stranger.own_model(base=CLIP)
    publish(hub, stranger, "somebody/model")
    assert "auto_map" in refused(lambda: sl.load("hf:somebody/model"))
    assert not [each for each in hub.requests if each.endswith(".py")]


def test_lens_repositories(stranger, hub):
    stranger.write("conftest.py", stranger.code)
    stranger.write("lens.json", {"auto_map": {"AutoModel": "conftest.Own"}})
    stranger.write("layer-00.safetensors", pickle.dumps(stranger))
    publish(hub, stranger, "somebody/lens")
    out = stranger.place / "lens"
    done = CliRunner().invoke(main, ["pull", "somebody/lens", str(out)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not list(out.glob("*.py"))


# -- chat models -------------------------------------------------------------------------------


def chat_with_a_model(s):
    s.chat()
    s.own_model(base=LLAMA, kinds=("AutoConfig", "AutoModelForCausalLM"))
    return str(s.folder)


def chat_of_an_unknown_kind(s):
    s.chat()
    return s.own_model(kinds=("AutoConfig", "AutoModelForCausalLM"))


def chat_with_a_tokenizer(s):
    s.chat()
    s.own_tokenizer()
    return str(s.folder)


def chat_with_a_way_to_write(s):
    s.write("custom_generate/generate.py", s.code)
    s.pickled("pytorch_model.bin")
    return s.chat()


def chat_that_names_a_way_to_write(s):
    s.write("custom_generate/generate.py", s.code)
    s.write("generation_config.json", {"custom_generate": str(s.folder)})
    return s.chat()


def chat_of_pickled_weights(s):
    s.pickled("pytorch_model.bin")
    return s.chat()


def chat_as_an_adapter(s):
    other = s.place / "other"
    s.own_model(other, kinds=("AutoConfig", "AutoModelForCausalLM"))
    s.write("own.py", s.code)
    auto = {"base_model_class": "Own", "parent_library": "own"}
    s.write("adapter_config.json", {"base_model_name_or_path": str(other), "auto_mapping": auto})
    return s.chat()


CHATS = (
    chat_with_a_model, chat_of_an_unknown_kind, chat_with_a_tokenizer, chat_with_a_way_to_write,
    chat_that_names_a_way_to_write, chat_of_pickled_weights, chat_as_an_adapter,
)  # fmt: skip


@pytest.mark.parametrize("make", CHATS, ids=lambda make: make.__name__)
def test_chat_models(stranger, make):
    name = make(stranger)
    refused(lambda: ChatModel(name))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ place) }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_chat_templates(stranger, template):
    from transformers import LlamaConfig, LlamaForCausalLM

    stranger.chat()
    sizes = {key: value for key, value in LLAMA.items() if not key.startswith(("model", "arch"))}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(stranger.folder)
    stranger.write("chat_template.jinja", "{% set place = '" + str(stranger.telltale) + "' %}")
    path = stranger.folder / "chat_template.jinja"
    path.write_text(path.read_text() + template)
    writer = ChatModel(str(stranger.folder), tokens=2)
    refused(lambda: writer.write(Pair(draw="cow", mistake_for="lion"), ["lamp"], 1, 0))


# -- sentence models ---------------------------------------------------------------------------


def module(kind, path="1"):
    return {"idx": 1, "name": "1", "path": path, "type": kind}


def sentence_module_in_the_folder(s):
    s.write("own.py", s.code)
    return s.sentences(module("own.Own", ""))


def sentence_module_that_can_be_imported(s):
    s.write("stranger_here.py", s.code, s.place)
    return s.sentences(module("stranger_here.Own"))


def sentence_module_of_python(s):
    return s.sentences(module("subprocess.Popen"))


def sentence_activation(s):
    s.write("stranger_here.py", s.code, s.place)
    dense = {"in_features": 8, "out_features": 8, "bias": True}
    s.write("1/config.json", dense | {"activation_function": "stranger_here.Own"})
    return s.sentences(module("sentence_transformers.models.Dense"))


def sentence_layers_of_pickled_weights(s):
    dense = {"in_features": 8, "out_features": 8, "bias": True}
    tanh = "torch.nn.modules.activation.Tanh"
    s.write("1/config.json", dense | {"activation_function": tanh})
    s.pickled("1/pytorch_model.bin")
    return s.sentences(module("sentence_transformers.models.Dense"))


def sentence_options(s):
    s.own_model(base=BERT)
    s.write("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}})
    config = json.loads((s.folder / "config.json").read_text())
    s.sentences()
    s.write("config.json", config)
    return str(s.folder)


def sentence_router(s):
    s.write("stranger_here.py", s.code, s.place)
    types = {"query_0_Own": "stranger_here.Own"}
    s.write("1/router_config.json", {"types": types, "structure": {}, "parameters": {}})
    return s.sentences(module("sentence_transformers.models.Router"))


def sentence_words(s):
    s.write("stranger_here.py", s.code, s.place)
    s.write("1/wordembedding_config.json", {"tokenizer_class": "stranger_here.Own"})
    return s.sentences(module("sentence_transformers.models.WordEmbeddings"))


def sentence_tokenizer(s):
    s.sentences()
    s.own_tokenizer()
    return str(s.folder)


SENTENCES = (
    sentence_module_in_the_folder, sentence_module_that_can_be_imported,
    sentence_module_of_python, sentence_activation, sentence_layers_of_pickled_weights,
    sentence_options, sentence_router, sentence_words, sentence_tokenizer,
)  # fmt: skip


@pytest.mark.parametrize("make", SENTENCES, ids=lambda make: make.__name__)
def test_sentence_models(stranger, make, monkeypatch):
    monkeypatch.syspath_prepend(stranger.place)
    name = make(stranger)
    refused(lambda: Sentences(name))


# -- pipelines ---------------------------------------------------------------------------------


def pipeline_of_its_own(s):
    s.write("own.py", s.code)
    return s.pipeline(_class_name=["own", "Own"])


def part_in_its_folder(s):
    s.write("unet/own.py", s.code)
    return s.pipeline(unet=["own", "Own"])


def part_named_like_a_library(s):
    s.write("unet/diffusers.py", s.code)
    return s.pipeline()


def part_that_can_be_imported(s):
    s.write("stranger_here.py", s.code, s.place)
    return s.pipeline(unet=["stranger_here", "Own"])


def part_of_transformers(s):
    s.own_model(s.folder / "text_encoder")
    return s.pipeline(text_encoder=["transformers", "AutoModel"])


def part_with_a_tokenizer(s):
    s.own_tokenizer(s.folder / "tokenizer")
    return s.pipeline(tokenizer=["transformers", "AutoTokenizer"])


def part_of_diffusers(s):
    s.write("unet/own.py", s.code)
    s.write("unet/config.json", {"auto_map": {"AutoModel": "own.Own"}, "_class_name": "Own"})
    return s.pipeline(unet=["diffusers", "AutoModel"])


def part_of_pickled_weights(s):
    s.write("unet/config.json", {"_class_name": "UNet2DConditionModel", "sample_size": 8,
                                 "block_out_channels": [8], "norm_num_groups": 1,
                                 "attention_head_dim": 2,
                                 "down_block_types": ["DownBlock2D"],
                                 "up_block_types": ["UpBlock2D"]})  # fmt: skip
    s.write("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"})
    s.pickled("unet/diffusion_pytorch_model.bin")
    return s.pipeline()


PIPELINES = (
    pipeline_of_its_own, part_in_its_folder, part_named_like_a_library, part_that_can_be_imported,
    part_of_transformers, part_with_a_tokenizer, part_of_diffusers, part_of_pickled_weights,
)  # fmt: skip


@pytest.mark.parametrize("make", PIPELINES, ids=lambda make: make.__name__)
def test_pipelines(stranger, make, monkeypatch):
    monkeypatch.syspath_prepend(stranger.place)
    name = make(stranger)
    refused(lambda: DiffusionGenerator(name))


# -- pictures and words ------------------------------------------------------------------------


def picture():
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(content, "PNG")
    return content.getvalue()


def table(s):
    """Pictures in a type that old readers made by unpickling what the file says."""
    import pyarrow as pa

    name = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(s),
    }
    field = pa.field("image", pa.binary(), metadata=name)
    return pa.table([pa.array([picture()], pa.binary())], pa.schema([field]))


def saved_dataset(s, **info):
    import pyarrow as pa

    content = table(s)
    with pa.OSFile(str(s.folder / "data.arrow"), "wb") as file:
        writer = pa.ipc.new_stream(file, content.schema)
        writer.write_table(content)
        writer.close()
    s.write("loader.py", s.code)
    s.write("model.py", s.code)
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0", "_split": None,
             "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
             "_output_all_columns": False}  # fmt: skip
    s.write("state.json", state | info.pop("state", {}))
    s.write("dataset_info.json", {"builder_name": "loader", **info})


@pytest.mark.parametrize(
    "info",
    [
        {"features": {"image": {"_type": "Own"}}},
        {"features": {"image": {"_type": "copy"}}},
        {"features": {"image": {"_type": "Image", "decode": {"_type": "subprocess"}}}},
        {"features": {"image": {"_type": "Array2D", "shape": "x", "dtype": "__import__"}}},
        {"features": "own.Own"},
        {"state": {"_format_type": "own", "_format_kwargs": {"cls": "own.Own"}}},
        {"state": {"_data_files": [{"filename": "loader.py"}]}},
    ],
)
def test_saved_datasets(stranger, info):
    saved_dataset(stranger, **info)
    refused(lambda: as_source(stranger.folder))


def test_a_picture_that_is_a_pipe(stranger):
    import datasets

    os.mkfifo(stranger.place / "pipe")
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(stranger.place / "pipe")}]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    with pytest.raises(ValueError, match="is not a file"):
        as_source(rows).load(0)


def test_parquet_that_unpickles(stranger):
    import pyarrow.parquet as pq

    path = stranger.folder / "a.parquet"
    pq.write_table(table(stranger), path)
    assert as_source(path).load(0).size == (8, 8)
    refused(lambda: vocabulary(path))


def test_pictures_that_are_programs(stranger):
    for name in ("a.jpg", "b.png", "c.webp"):
        stranger.write(name, pickle.dumps(stranger))
    stranger.write("d.png", b"%!PS-Adobe-3.0\n(it ran) (w) file closefile\n")
    source = as_source(stranger.folder)
    for i in range(4):
        with pytest.raises((OSError, ValueError)):
            source.load(i)


# -- lenses and results ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    clip = from_open_clip(tiny_model(layers=3), tokenizer=tiny_tokenizer, name="tiny")
    lens = sl.fit(clip, tiny_images(clip, 12, seed=1), top=3)
    sl.describe(clip, lens, vocabulary(["ant", "bee", "cat"]), k=2)
    folder = tmp_path_factory.mktemp("strangers") / "lens"
    lens.save(folder)
    return folder


@pytest.mark.parametrize("name", ["layer-00.safetensors", "codes-00.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch", "script"])
def test_lenses(stranger, saved, name, how):
    for path in saved.iterdir():
        stranger.write(path.name, path.read_bytes())
    if how == "pickle":
        stranger.write(name, pickle.dumps(stranger))
    elif how == "torch":
        stranger.pickled(name)
    else:
        stranger.script(name)
    refused(lambda: sl.Lens.load(stranger.folder))


def test_a_lens_that_names_a_model(stranger, saved):
    """A command goes by the model that its user names."""
    name = tokenizer_that_trusts_itself(stranger)
    lens = stranger.place / "lens"
    for path in saved.iterdir():
        stranger.write(path.name, path.read_bytes(), lens)
    manifest = json.loads((lens / "lens.json").read_text())
    manifest["model"]["name"] = name
    stranger.write("lens.json", manifest, lens)
    words = stranger.write("words.txt", "ant\nbee\n", stranger.place)
    done = CliRunner().invoke(main, ["describe", str(lens), "--vocabulary", str(words)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize("name", ["report.json", "audit.json"])
def test_results(stranger, name):
    stranger.write(name, pickle.dumps(stranger))
    stranger.write("scores.npy", pickle.dumps(stranger))
    if name == "audit.json":
        refused(lambda: Audit.load(stranger.folder))
    else:
        refused(lambda: attacked(stranger.folder, vocabulary(["ant"])))


# -- that these would run, where they are let --------------------------------------------------

ARMED = """
import sys, pickle, numpy, torch
kind, path = sys.argv[1:]
if kind == "tokenizer":
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(path, trust_remote_code=True)
elif kind == "model":
    from transformers import AutoConfig
    AutoConfig.from_pretrained(path, trust_remote_code=True)
elif kind == "open_clip":
    import open_clip
    open_clip.get_tokenizer(path)
elif kind == "torch":
    torch.load(path, weights_only=False)
else:
    numpy.load(path, allow_pickle=True)["weight"]
"""


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("torch", lambda s: s.pickled("a.pt")),
        pytest.param(
            "tokenizer", lambda s: (s.own_tokenizer(), s.folder)[1], marks=pytest.mark.long
        ),
        pytest.param("model", lambda s: s.own_model(), marks=pytest.mark.long),
        pytest.param("open_clip", tokenizer_that_trusts_itself, marks=pytest.mark.long),
        pytest.param(
            "torch",
            lambda s: s.pickled("a.pt", _use_new_zipfile_serialization=False),
            marks=pytest.mark.long,
        ),
        pytest.param("numpy", numpy_archive, marks=pytest.mark.long),
    ],
)
def test_they_are_armed(tmp_path, kind, make):
    """In a process of its own: here, nothing of theirs is ever run."""
    stranger = Stranger(tmp_path)
    command = [sys.executable, "-c", ARMED, kind, str(make(stranger))]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "py"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, capture_output=True, check=False, env=environment)
    assert stranger.telltale.exists()


def test_the_door_is_shut_whatever_was_read(stranger):
    """Also where a configuration changed after it was looked at."""
    from transformers import AutoTokenizer, dynamic_module_utils

    before = dynamic_module_utils.get_class_in_module
    stranger.own_tokenizer()
    with no_code_runs(), pytest.raises(sl.SecondLensError, match="Python code"):
        AutoTokenizer.from_pretrained(stranger.folder, trust_remote_code=True)
    with no_code_runs(), pytest.raises(ValueError, match="custom code"):
        AutoTokenizer.from_pretrained(stranger.folder)
    assert dynamic_module_utils.get_class_in_module is before


def test_what_is_no_code_is_read(stranger):
    stranger.write("config.json", CLIP | {"auto_map": {}, "trust_remote_code": False})
    stranger.write("1/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    stranger.write("readme.json", {"auto_map": "not a configuration"})
    stranger.write("unused.py", stranger.code)
    (stranger.folder / "round").symlink_to(stranger.folder)
    check_model(str(stranger.folder))


def test_a_folder_that_is_no_model(stranger, monkeypatch):
    monkeypatch.setattr("secondlens.models.strangers.MOST_FILES", 3)
    for i in range(4):
        stranger.write(f"{i}.txt", "")
    with pytest.raises(sl.SecondLensError, match="more than 3 files"):
        check_model(str(stranger.folder))
