"""The `Clip` of a transformers model: its weights split by head, or the reason why it has none."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError, UnsupportedModel
from ..naming import shown
from .blocks import Block, is_affine
from .checks import activation_name, check_parity
from .view import Clip, check_eval
from .wrappers import not_compiled, plain

COVERED = ("CLIPModel", "CLIPVisionModelWithProjection")


@checked
@undisturbed
def from_transformers(
    model: nn.Module,
    image_processor: Callable[..., Any] | None = None,
    tokenizer: Callable[..., Any] | None = None,
    name: str = "transformers model",
    check: bool = True,
) -> Clip:
    """View a transformers model that is in memory. The model itself is never changed.

    Parameters
    ----------
    model
        A `CLIPModel` or `CLIPVisionModelWithProjection` with any attention implementation, in eval
        mode, on the device and in the precision it shall keep.
    image_processor
        From `AutoImageProcessor`; without it, images must come preprocessed.
    tokenizer
        From `AutoTokenizer`; without it, there is no `encode_text`. A model without a text tower
        cannot use one.
    name
        What it is called in messages and in what is written; of a path, the last part.
    check
        Whether to run `check_parity`.

    Raises
    ------
    SecondLensError
        The model is in training mode, or has NaN or infinite weights.
    UnsupportedModel
        The tower computes something that the effects do not describe.
    """
    model = plain(model, name)
    check_eval(model)
    for reason in _refusals(model):
        raise UnsupportedModel(f"{name} cannot be explained: {reason}")
    towers: Any = model
    vision = towers.vision_model
    patches, layers = vision.embeddings.patch_embedding, vision.encoder.layers
    rows = vision.embeddings.image_size // vision.embeddings.patch_size
    has_text_tower = hasattr(model, "text_model")
    # without a text tower it is the encoder that says so
    has_encoder = tokenizer is not None or not has_text_tower
    clip = Clip(
        name=shown(name),
        origin=name,
        activation=activation_name(layers[0].mlp.activation_fn),
        blocks=tuple(_block(layer) for layer in layers),
        ln_post=vision.post_layernorm,
        patches=patches,
        read_projection=partial(_projection, towers),
        image_size=(vision.embeddings.image_size,) * 2,
        grid=(rows, rows),
        batch_first=True,
        model=model,
        # no functions within this one: a model must be able to go to other processes
        image_tower=partial(_encode_image, model),
        text_tower=partial(_encode_text, model, tokenizer, name) if has_encoder else None,
        preprocess=None if image_processor is None else _Preprocess(image_processor),
        view_of=partial(from_transformers, name=name, check=False),
        context_length=_context_length(model) if has_text_tower else Clip.context_length,
    )
    if check:
        check_parity(clip)
    return clip


def _projection(model: Any) -> Tensor:
    return _detached(model.visual_projection.weight.T)


def _encode_image(model: Any, images: Tensor) -> Tensor:
    side = model.vision_model.embeddings.image_size
    resized = images.shape[-2:] != (side, side)
    with not_compiled(model):
        output = model.vision_model(images, interpolate_pos_encoding=resized, return_dict=True)
    embeddings: Tensor = model.visual_projection(output.pooler_output)
    return embeddings


def _context_length(model: Any) -> int:
    return int(model.text_model.config.max_position_embeddings)


def _encode_text(model: Any, tokenizer: Any, name: str, texts: list[str]) -> Tensor:
    if not hasattr(model, "text_model"):
        raise SecondLensError(
            f"{name} has no text tower, so it embeds images only: load the whole CLIPModel"
        )
    tokens = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=_context_length(model),
        return_tensors="pt",
    ).to(model.visual_projection.weight.device)
    states = model.text_model(tokens.input_ids, tokens.attention_mask, return_dict=True)
    embeddings: Tensor = model.text_projection(states.pooler_output)
    return embeddings


def _mlp_half(layer: Any, x: Tensor) -> Tensor:
    added: Tensor = layer.mlp(layer.layer_norm2(x))
    return x + added


@dataclass(frozen=True)
class _Preprocess:
    """One picture through an image processor; a class, so that worker processes can have it."""

    processor: Any

    def __call__(self, image: Image) -> Tensor:
        return self._part(image)

    def eight_bits(self, image: Image) -> Tensor:
        """See `Halved`."""
        return self._part(image, do_rescale=False, do_normalize=False)

    def normalised(self, image: Image) -> Tensor:
        """See `Halved`."""
        return self._part(image, do_resize=False, do_center_crop=False)

    def _part(self, image: Image, **without: bool) -> Tensor:
        processed = self.processor(images=image.convert("RGB"), return_tensors="pt", **without)
        pixels: Tensor = processed.pixel_values[0]
        return pixels


def _refusals(model: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe this image tower."""
    if type(model).__name__ not in COVERED:
        yield (
            f"it is a {type(model).__name__}, and only transformers' {' and '.join(COVERED)} are "
            "covered"
        )
        return
    if type(model.visual_projection) is not nn.Linear:
        yield f"its projection is a {type(model.visual_projection).__name__}, no plain Linear"
    if not is_affine(model.vision_model.post_layernorm):
        yield "post_layernorm is no LayerNorm with gain and bias"
    for j, layer in enumerate(model.vision_model.encoder.layers):
        for reason in _layer_refusals(layer):
            yield f"block {j} {reason}"


def _layer_refusals(layer: Any) -> Iterator[str]:
    if type(layer).__name__ != "CLIPEncoderLayer":
        yield f"is a {type(layer).__name__}, which is not covered"
        return
    if type(layer.self_attn).__name__ != "CLIPAttention":
        yield f"has attention of class {type(layer.self_attn).__name__}, which is not covered"
        return
    if not is_affine(layer.layer_norm1):
        yield "has a layer_norm1 that is no LayerNorm with gain and bias"
    attention, mlp = layer.self_attn, layer.mlp
    for linear in (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.out_proj,
        mlp.fc2,
    ):
        if type(linear) is not nn.Linear or linear.bias is None:
            yield f"has a {type(linear).__name__} where a plain Linear layer with a bias is read"


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformersBlock(Block):
    """View of a `CLIPEncoderLayer`."""

    @property
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.q_proj.weight)

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.k_proj.weight)

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.v_proj.weight)

    @property
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.q_proj.bias)

    @property
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.k_proj.bias)

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.v_proj.bias)

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.module.self_attn.out_proj.weight.T)

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _detached(self.module.self_attn.out_proj.bias)

    @property
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """See `Block`."""
        return _detached(self.module.mlp.fc2.weight.T)

    @property
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _detached(self.module.mlp.fc2.bias)

    def _by_head(self, weight: Tensor) -> Float[Tensor, "heads head_width *width"]:
        split: Tensor = weight.detach().unflatten(0, (self.module.self_attn.num_heads, -1))
        return split


def _detached(weight: Tensor) -> Tensor:
    return weight.detach()


def _block(layer: Any) -> Block:
    return TransformersBlock(
        module=layer,
        ln_1=layer.layer_norm1,
        ln_2=layer.layer_norm2,
        mlp_input=layer.mlp.fc1,
        activation=layer.mlp.activation_fn,
        mlp_output=layer.mlp.fc2,
        attention_end=layer.self_attn.out_proj,
        mlp_end=layer.mlp.fc2,
        mlp_half=partial(_mlp_half, layer),
    )
