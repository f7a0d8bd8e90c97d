"""Models of transformers by folder: their own processors and tokenizers, and what is refused."""

import json
import pickle

import pytest
import torch
from models import TEXT, tiny_tokenizer
from PIL import Image
from torch import nn
from towers import TRANSFORMERS, error, images_for, transformers_model
from transformers import (
    BatchEncoding,
    BitImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

import secondlens as sl
from secondlens.errors import SecondLensError, SecondLensWarning, UnsupportedModel
from secondlens.models.loading import load
from secondlens.models.transformers.views import from_transformers


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_folder_is_the_model_that_was_saved(tmp_path, kind):
    model = transformers_model(kind)
    model.save_pretrained(tmp_path)
    clip, expected = load(f"hf:{tmp_path}"), from_transformers(model)
    images = images_for(clip)
    assert error(clip.encode_image(images), expected.encode_image(images)) < 1e-6
    assert type(clip.model) is type(model)
    assert pickle.loads(pickle.dumps(clip)).weights_hash == clip.weights_hash
    if kind != "ViTModel":  # whose pooler is not read
        assert clip.weights_hash == expected.weights_hash


def test_a_folder_without_a_pooler_has_the_same_weights_each_time(tmp_path):
    model = transformers_model("ViTModel")
    model.pooler = None
    model.save_pretrained(tmp_path)
    assert load(f"hf:{tmp_path}").weights_hash == load(f"hf:{tmp_path}").weights_hash


# -- texts -----------------------------------------------------------------------------------


class PaddedTokenizer:
    """`tiny_tokenizer`, which pads to the whole context as SigLIP's do."""

    def __call__(self, texts, **options):
        self.options = options
        return BatchEncoding({"input_ids": tiny_tokenizer(texts)})


@pytest.mark.parametrize("kind", ["SiglipModel", "Siglip2Model"])
def test_texts_are_padded_as_in_training(kind):
    tokenizer, texts = PaddedTokenizer(), ["a dog", "a cat", "a ship"]
    clip = from_transformers(transformers_model(kind), tokenizer=tokenizer)
    with torch.no_grad():
        expected = clip.model.get_text_features(tiny_tokenizer(texts)).pooler_output
    assert error(clip.encode_text(texts), nn.functional.normalize(expected, dim=-1)) < 1e-6
    assert tokenizer.options["padding"] == "max_length"
    assert tokenizer.options["max_length"] == clip.context_length == TEXT["context_length"]


def test_similarities_are_those_of_the_loss_up_to_its_scale_and_bias():
    clip = from_transformers(transformers_model("SiglipModel"), tokenizer=PaddedTokenizer())
    images, texts = images_for(clip), ["a dog", "a cat"]
    with torch.no_grad():
        logits = clip.model(input_ids=tiny_tokenizer(texts), pixel_values=images).logits_per_image
    rows = nn.functional.normalize(clip.encode_image(images), dim=-1)
    scaled = rows @ clip.encode_text(texts).T * clip.model.logit_scale.detach().exp()
    assert error(scaled + clip.model.logit_bias.detach(), logits) < 1e-5


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("SiglipVisionModel", "load the whole SiglipModel"),
        ("Dinov2Model", r"let sl\.dissect find words with another CLIP as the judge"),
        ("DINOv3ViTModel", r"let sl\.dissect find words"),
        ("ViTModel", r"let sl\.dissect find words"),
    ],
)
def test_a_tower_without_texts_says_what_to_do(kind, instead):
    clip = from_transformers(transformers_model(kind), name="eyes")
    with pytest.raises(SecondLensError, match=f"eyes has no text tower, .*: {instead}"):
        clip.encode_text(["a dog"])
    lens = sl.fit(clip, images_for(clip, 6), top=2)
    with pytest.raises(SecondLensError, match="eyes has no text tower"):
        sl.describe(clip, lens, ["a dog", "a cat"], k=1)


# -- classifiers -----------------------------------------------------------------------------


@pytest.fixture
def classifier():
    return from_transformers(transformers_model("ViTForImageClassification"), name="vit")


def test_the_texts_of_a_classifier_are_its_classes(classifier):
    rows = classifier.encode_text(["Tinca tinca", "snow", "DOG", "tench, Tinca tinca"])
    assert torch.equal(rows, torch.eye(5)[[0, 3, 4, 0]])
    images = images_for(classifier)
    with torch.no_grad():
        logits = classifier.model(images).logits
    assert (
        error(classifier.encode_image(images) @ classifier.encode_text(["snow"]).T, logits[:, 3:4])
        < 1e-6
    )


def test_a_class_whose_whole_name_is_a_part_of_another_is_meant(classifier):
    assert torch.equal(classifier.encode_text(["crane"]), torch.eye(5)[[1]])
    assert torch.equal(classifier.encode_text(["machine"]), torch.eye(5)[[2]])


def test_what_is_no_class_is_one_sentence(classifier):
    with pytest.raises(SecondLensError, match=r"vit is a classifier .* 'a cat' is none of its 5"):
        classifier.encode_text(["snow", "a cat"])


def test_neurons_of_a_classifier_are_described_by_its_classes(classifier):
    lens = sl.fit(classifier, images_for(classifier, 12), top=3)
    codes = sl.describe(classifier, lens, ["crane", "snow", "dog"], k=2)
    assert {word for word, _ in codes.words(0, 0)} <= {"crane", "snow", "dog"}


# -- pictures --------------------------------------------------------------------------------


def test_pictures_are_prepared_by_the_models_own_processor(tmp_path):
    transformers_model("SiglipModel").save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    clip, picture = load(f"hf:{tmp_path}"), Image.new("RGB", (40, 30), (99, 0, 255))
    expected = torch.tensor([99, 0, 255]) / 255 * 2 - 1
    assert torch.allclose(clip.prepare([picture])[0, :, 8, 8], expected, atol=1e-5)


def test_any_shape_is_squeezed_to_the_trained_one():
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=9)
    with pytest.warns(
        SecondLensWarning, match=r"\(NaFlex\), .*: pictures are squeezed to 24 x 24 p"
    ):
        clip = from_transformers(transformers_model("Siglip2Model"), processor)
    picture = Image.effect_noise((24, 24), 60).convert("RGB")
    processed = processor(images=picture, return_tensors="pt")
    assert processed.spatial_shapes.tolist() == [[3, 3]]
    with torch.no_grad():
        expected = clip.model.get_image_features(**processed).pooler_output
    assert error(clip.encode_image([picture]), expected) < 1e-5
    assert clip.prepare([Image.new("RGB", (40, 10))]).shape == (1, 3, 24, 24)
    assert clip.halves is not None
    with pytest.raises(SecondLensError, match=r"takes preprocessed float images \[images, 3, 24"):
        clip.prepare(processed.pixel_values)


@pytest.mark.parametrize("kind", ["Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_the_processor_decides_the_size_where_any_will_do(kind):
    model = transformers_model(kind, dtype=torch.float64)
    size = {"height": 24, "width": 24}
    processor = BitImageProcessor(size={"shortest_edge": 24}, crop_size=size)
    clip = from_transformers(model, processor)
    assert (clip.image_size, clip.grid, clip.tokens) == ((24, 24), (3, 3), 12)
    images = images_for(clip)
    with torch.no_grad():
        assert error(clip.encode_image(images), model(images).pooler_output) < 1e-12
    assert clip.view_of(model).image_size == (24, 24)
    assert from_transformers(model).image_size == (16, 16)


def test_a_classifier_takes_pictures():
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    clip = from_transformers(transformers_model("ViTForImageClassification"), processor)
    picture = Image.new("RGB", (40, 30), (99, 0, 255))
    with torch.no_grad():
        expected = clip.model(**processor(images=picture, return_tensors="pt")).logits
    assert error(clip.encode_image([picture]), expected) < 1e-6


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SiglipModel", "DINOv3ViTModel", "ViTForImageClassification"])
def test_an_unknown_option_is_refused_by_name_before_weights_are_there(tmp_path, kind):
    model = transformers_model(kind)
    config = model.config.vision_config if kind == "SiglipModel" else model.config
    config.warp_factor = 9
    with pytest.raises(UnsupportedModel, match="its configuration sets 'warp_factor', and"):
        from_transformers(model)
    model.config.save_pretrained(tmp_path)  # and nothing else
    with pytest.raises(UnsupportedModel, match=r"hf:.* sets 'warp_factor', and"):
        load(f"hf:{tmp_path}")
    config.warp_factor = None
    assert from_transformers(model).layers == 3


def test_what_old_versions_wrote_does_no_harm():
    model = transformers_model("CLIPModel")
    model.config.vision_config.top_k = 50
    model.config.vision_config.pruned_heads = {}
    assert from_transformers(model).layers == 3


def test_a_tower_without_its_head_is_refused_by_its_configuration(tmp_path):
    config = transformers_model("SiglipVisionModel").config
    config.vision_use_head = False
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"hf:.* has no pooling head \(vision_use_head\)"):
        load(f"hf:{tmp_path}")


def test_a_classifier_of_another_kind_is_refused(tmp_path):
    model = transformers_model("ViTForImageClassification")
    model.classifier = nn.Sequential(nn.Linear(32, 5)).eval()
    with pytest.raises(UnsupportedModel, match="its classifier is a Sequential"):
        from_transformers(model)


def test_what_another_version_of_transformers_builds_is_refused():
    model = transformers_model("Dinov2Model")
    attention = model.encoder.layer[1].attention
    attention.query, attention.q_proj = attention.q_proj, None
    del attention.q_proj
    with pytest.raises(
        UnsupportedModel, match=r"block 1 is built otherwise than by transformers 5"
    ):
        from_transformers(model)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("SiglipModel", "vision_model.head"),
        ("Dinov2Model", "layernorm"),
        ("CLIPModel", "visual_projection"),
        ("ViTForImageClassification", "classifier"),
    ],
)
def test_a_tower_of_mixed_precision_is_one_sentence(kind, part):
    model = transformers_model(kind)
    model.get_submodule(part).half()
    with pytest.raises(
        SecondLensError, match=r"tower of it has weights of torch\.float16 and torch\.float32:"
    ):
        from_transformers(model, name="it")


def test_a_text_tower_of_another_precision_is_no_mixture():
    model = transformers_model("SiglipModel")
    model.text_model.bfloat16()
    clip = from_transformers(model, tokenizer=PaddedTokenizer())
    assert clip.encode_text(["a dog"]).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:ViT-B-32", "of open_clip, so name it ViT-B-32 alone"),
        ("hf:vit_base_patch16_224", "of timm, so name it timm:vit_base_patch16_224"),
        ("vit_base_patch16_224.augreg_in21k", "so name it timm:vit_base_patch16_224.augreg_in21k"),
        ("timm:ViT-B-32", "of open_clip, so name it ViT-B-32 alone"),
    ],
)
def test_a_name_of_another_library_is_said_to_be_one(name, said):
    with pytest.raises(SecondLensError, match=f": it is a model .*{said}$"):
        load(name)


def test_a_head_for_something_else_is_refused(tmp_path):
    model = transformers_model("ViTForImageClassification")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    with pytest.raises(SecondLensError, match=r"do not fit its configuration: .*classifier"):
        load(f"hf:{tmp_path}")
