"""What a family of transformers' models says of them, from which `transformers` makes a `Clip`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks import Block, detached
from ..readers import ClassToken, Reader


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerView:
    """The image tower of one model, and how its text tower reads tokens. Fields are as in `Clip`.

    Functions are those of modules, or parts of them: a model must be able to go to other processes.
    """

    tower: tuple[nn.Module, ...]
    """All that images go through."""
    blocks: tuple[Block, ...]
    ln_post: Any
    patches: Any
    read_projection: Callable[[], Float[Tensor, "width dim"]]
    image_size: tuple[int, int]
    patch: tuple[int, int]
    """Pixels of one, in height and width."""
    encode: Callable[[Tensor], Tensor]
    """Images to representations."""
    reader: Reader = field(default_factory=ClassToken)
    prefix: int = 1
    read_offset: Callable[[], Float[Tensor, " dim"]] | None = None
    any_size: bool = False
    """Whether pictures have the size that the image processor makes, whatever the weights say."""
    embed: Callable[[Any], Tensor] | None = None
    """What a tokenizer returned to embeddings; None without a text tower."""
    padding: str | bool = True
    """Of the tokenizer: to the longest text, or as the text tower was trained."""
    context_length: int = 77
    instead: str = ""
    """What to do where texts are wanted and there is no text tower."""
    classes: tuple[str, ...] | None = None
    """Names of the classes of a classifier: these are its texts."""
    preprocess: Callable[[Any], Callable[[Any], Tensor]] | None = None
    """What makes a preprocessing of an image processor, if its own pixels are not what is taken."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models with one kind of image tower."""

    models: Mapping[str, str]
    """Class of a model to its `model_type`; of one type, the first is the usual one."""
    view: Callable[[Any], TowerView]
    """Of a model that is not refused."""
    refusals: Callable[[Any], Iterator[str]]
    """Reasons why the mathematics does not describe a model's image tower."""
    fields: frozenset[str]
    """Of the image tower's configuration: what is read, and what changes nothing."""
    vision: str | None = None
    """Where the configuration of the image tower lies in that of a whole model."""
    refused_by_configuration: Callable[[Any], Iterator[str]] = lambda configuration: iter(())
    """The same reasons as `refusals`, as far as the image tower's configuration says."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What a class of models is built with when it is loaded."""
    unread: tuple[str, ...] = ()
    """How names of weights begin that nothing here reads, so that a checkpoint may have them."""


SIZES = frozenset(
    {
        "attention_dropout",
        "hidden_act",
        "hidden_size",
        "image_size",
        "initializer_factor",
        "initializer_range",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_channels",
        "num_hidden_layers",
        "patch_size",
    }
)
"""Fields of nearly every family's configuration."""

EVERYWHERE = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "add_cross_attention",
        "architectures",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dropout",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "projection_dim",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
    }
)
"""Fields of any model's configuration, which newer and older versions of transformers write: of
generated texts, of training, or of how outputs are returned."""


def configuration_refusals(family: Family, configuration: Any) -> Iterator[str]:
    """Reasons why a configuration may describe what the mathematics does not: fields that are
    neither read nor known to change nothing, and what the family itself refuses."""
    own = configuration if family.vision is None else getattr(configuration, family.vision, None)
    own = configuration if own is None else own
    for name, value in own.to_dict().items():
        if name not in family.fields | EVERYWHERE and value not in (None, False, {}, []):
            yield f"its configuration sets {name!r}, and what that changes is not known here"
    yield from family.refused_by_configuration(own)


def both(size: Any) -> tuple[int, int]:
    """Height and width, which configurations give as one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def identity(like: Any) -> Float[Tensor, "width width"]:
    """The projection of a tower without one, as wide as a norm and where its gain is."""
    gain: Tensor = detached(like.weight)
    return torch.eye(len(gain), dtype=gain.dtype, device=gain.device)
