"""Models, pictures and words that are made from seeds, so that they never change.

The embedded models and their world are left out on purpose: what they draw and say may change.
"""

import atexit
import contextlib
import shutil
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent))  # when no pytest has done so

from models import golden_model, tiny_model, tiny_tokenizer

import secondlens as sl

HERE = Path(__file__).parent
OLD_LENS, OLD_ATTACK = HERE / "lens-0.1", HERE / "attack-0.1"
OLD_AUDIT, OLD_DEFENCE = HERE / "audit-0.1", HERE / "defence-0.1"

CLASSES = ("ant", "bee", "cat", "dog", "eel")
CUES = ("sea", "sky", "ice", "red", "wood", "night")
WORDS = (
    *("ant", "bee", "cat", "dog", "eel", "sea", "sky", "ice", "red", "wood", "night", "day"),
    *("stone", "river", "boat", "car", "green", "blue", "yellow", "old house", "rain", "snow"),
    *("stripe", "dot", "wheel", "leaf", "flower", "hat", "glass", "bread"),
)
TEMPLATES = ("a {}", "photo of a {}")
SIZE, CONTEXT, DIM = 16, 77, 12
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 4,
    "projection_dim": DIM,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 63,
    "projection_dim": DIM,
}


class Pictures:
    """A source of pictures of noise around a colour and a bar, of several sizes."""

    def __init__(self, seed, count):
        self.seed, self.ids = seed, tuple(f"{seed}-{i:03}.png" for i in range(count))

    def load(self, index):
        return picture(self.seed, index)


def picture(seed, index, colour=None):
    rng = np.random.default_rng([seed, index])
    height, width = (16, 16) if index % 3 else (20, 28)
    base = rng.integers(0, 256, 3) if colour is None else np.array(colour)
    values = base + rng.normal(0, 40, (height, width, 3))
    at = int(rng.integers(0, width - 4))
    values[:, at : at + 4] = rng.integers(0, 256, 3)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@torch.no_grad()
def seeded(module, seed):
    """The module with weights that no library's initialisation has a part in.

    They come from numpy, as torch draws others where its kernels are others.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(module.named_parameters()):
        norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
        parameter.copy_(norm + 0.25 * noise(rng, *parameter.shape))
    return module.eval()


def noise(rng, *shape):
    return torch.from_numpy(np.asarray(rng.standard_normal(shape)))


def transformers_model(seed=0):
    from transformers import CLIPConfig, CLIPModel

    act = {"hidden_act": "gelu" if seed % 2 else "quick_gelu"}
    config = CLIPConfig(vision_config=VISION | act, text_config=TEXT | act, projection_dim=DIM)
    return seeded(CLIPModel(config), seed)


def save_model(path, seed=0):
    """A folder for `--model hf:FOLDER`, with image processor and tokenizer of letters."""
    from transformers import CLIPImageProcessor, CLIPTokenizer

    transformers_model(seed).save_pretrained(path)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(path)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    numbers = {word: i for i, word in enumerate(["<|startoftext|>", *letters])}
    CLIPTokenizer(numbers | {"<|endoftext|>": 63}, merges=[]).save_pretrained(path)


def save_pipeline(path):
    """A random text-to-image pipeline that draws 16 pixels a side."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "a", "photo", "of", *WORDS]
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>", model_max_length=32,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        StableDiffusionPipeline(
            vae=seeded(vae, 1), text_encoder=seeded(text, 2), tokenizer=tokenizer,
            unet=seeded(unet, 3), scheduler=DDIMScheduler(), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(path)  # fmt: skip


def tokenize(texts, **options):
    """Letters as tokens, as the tokenizer of `save_model` has them; called as theirs are."""
    from transformers import BatchEncoding

    tokens = torch.full((len(texts), CONTEXT), 63)
    for row, text in zip(tokens, texts, strict=True):
        codes = [0] + [1 + 2 * (ord(each) % 26) for each in text.lower() if each != " "]
        codes = codes[: CONTEXT - 1]
        row[: len(codes)] = torch.tensor(codes)
    return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def preprocess(image):
    array = np.array(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float64)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.45).float() / 0.27


@cache
def clip(name="float32"):
    """One of the models: of open_clip in two precisions, golden ones, and of transformers."""
    if name == "transformers":
        with contextlib.chdir(workplace()):  # so that its name holds no folder
            return sl.load("hf:model")
    if name.startswith("tiny-"):
        model, _, _ = golden_model(name)
    else:
        made = tiny_model(dtype=getattr(torch, name), layers=4, quick_gelu=name == "float64")
        model = seeded(made, 4)

    def prepared(image):
        own = (image.resize(model.visual.image_size[::-1]), model.visual.conv1.weight.dtype)
        array = np.array(own[0].convert("RGB"), dtype=np.float64)
        return ((torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.45) / 0.27).to(own[1])

    return sl.from_open_clip(model, prepared, tiny_tokenizer, name=name)


def images(of, count=4, seed=1):
    """Random pixels for a model, in its own precision."""
    return noise(np.random.default_rng(seed), count, 3, *of.image_size).to(of.dtype)


def words(name="words", context=7):
    """Those that fit into the short context of the models of open_clip."""
    return sl.vocabulary([each for each in WORDS if len(each) <= context], name=name)


@cache
def lens(name="float32", count=60):
    """A described lens. Nobody may change it: `copy.deepcopy` it first."""
    fitted = sl.fit(clip(name), Pictures(5, count), top=6, keep_coordinates=True)
    sl.describe(clip(name), fitted, words(), 6)
    return fitted


def _folders(root, seed, count):
    """A folder of pictures for each class."""
    for row, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = np.random.default_rng(row).integers(0, 256, 3)
            picture(seed, 10 * row + i, colour).save(root / name / f"{i}.png")


@cache
def workplace():
    """A folder with models, pictures, words and a described lens, for command lines."""
    root = Path(tempfile.mkdtemp(prefix="unchanged-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    save_model(root / "model", 0)
    save_model(root / "other", 1)
    for name, seed, count in (("photos", 5, 50), ("unseen", 6, 30)):
        (root / name).mkdir()
        source = Pictures(seed, count)
        for i, each in enumerate(source.ids):
            source.load(i).save(root / name / each)
    (root / "photos" / "broken.png").write_bytes(b"\x89PNG")
    picture(9, 0).save(root / "photo.png")
    _folders(root / "usual", 7, 6)
    _folders(root / "unusual", 8, 4)
    for name, lines in (("words", WORDS), ("classes", CLASSES), ("cues", CUES)):
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "table.csv").write_text("b,c\nsea,1\nred dog,2\nice,3\n", encoding="utf-8")
    for row, name in enumerate(CLASSES[:2]):
        for i in range(3):
            place = Path(name) / f"{i}.png"
            for kind in ("images", "masks"):
                (root / "masked" / kind / name).mkdir(parents=True, exist_ok=True)
            picture(11 + row, i).save(root / "masked" / "images" / place)
            mask = np.zeros((20, 28) if i % 3 == 0 else (16, 16), np.uint8)
            mask[4:12, 3 + i : 11 + i] = 255
            Image.fromarray(mask).save(root / "masked" / "masks" / place)
    with contextlib.chdir(root):
        model = sl.load("hf:model")
    fitted = sl.fit(model, root / "photos", top=6)
    sl.describe(model, fitted, root / "words.txt", 6)
    fitted.save(root / "lens")
    return root


@cache
def imagenet():
    """A folder laid out as ImageNet, with one picture for each class."""
    from timm.data.imagenet_info import ImageNetInfo

    root = Path(tempfile.mkdtemp(prefix="unchanged-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for row, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names()):
        for part in ("val", "train")[: 2 if row % 20 == 0 else 1]:
            (root / part / wnid).mkdir(parents=True)
            picture({"val": 13, "train": 14}[part], row).save(root / part / wnid / f"{part}.png")
    return root
