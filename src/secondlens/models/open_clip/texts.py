"""The view of a CLIP's text tower: texts in place of images, words in place of patches.

The output of a text tower is read at the token that ends the text, from which causal attention
looks back, so a neuron of it acts on the text embedding as one of the image tower does on the
image's: through values that later heads bring to that token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from ...errors import SecondLensError, UnsupportedModel
from ..blocks import is_affine
from ..checks import activation_name, check_parity
from ..readers import OneToken
from ..view import Clip
from .blocks import block_refusals, view_of_block

POOLS = ("argmax", "eos", "first", "last")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextClip(Clip):
    """A text tower as a `Clip` whose images are texts.

    `image_size` and `grid` are one row of tokens; `preprocess` makes tokens of one text. Effects
    are parts of the unit embedding of a text, which words and pictures can describe alike.
    """

    tokenizer: Any = None
    """What `words_of` asks."""

    @property
    def reads_texts(self) -> bool:
        """Whether its images are texts."""
        return True

    def words_of(self, ids: Int[Tensor, " tokens"]) -> str:
        """Return the words of a text from its tokens, up to the one that is read; their ids where
        nothing says what they stand for."""
        place = self.reader.place(ids[None])
        assert place is not None
        read = ids[: int(place) + 1].tolist()
        decode = getattr(self.tokenizer, "decode", None)
        if decode is None:
            return " ".join(map(str, read))
        words = str(decode(read))
        for mark in ("<start_of_text>", "<end_of_text>"):
            words = words.replace(mark, "")
        return words.strip()

    @property
    def dtype(self) -> torch.dtype:
        """Of the tower's weights."""
        dtype: torch.dtype = self.blocks[0].neuron_rows.dtype
        return dtype

    @property
    def weights_hash(self) -> str:
        """That of the model, marked: lenses of the two towers are not each other's."""
        return f"text:{super().weights_hash}"

    def prepare(self, images: Any) -> Int[Tensor, "images tokens"]:
        """Texts as the tower takes them: ids of tokens on its device.

        Parameters
        ----------
        images
            Texts in a list, or ids of tokens as the tokenizer gave them.

        Raises
        ------
        SecondLensError
            A text alone, none at all, something else than texts, or no tokenizer.
        """
        if isinstance(images, Tensor):
            if images.dim() != 2 or images.shape[1] != self.tokens or images.is_floating_point():
                raise SecondLensError(
                    f"the text tower of {self.name} takes ids of tokens [texts, {self.tokens}], "
                    f"and these are {images.dtype} {list(images.shape)}"
                )
            return images.to(self.device)
        if isinstance(images, str) or not isinstance(images, Sequence) or not images:
            raise SecondLensError(
                f"the text tower of {self.name} takes texts in a list, at least one"
            )
        if not all(isinstance(text, str) for text in images):
            raise SecondLensError(f"the text tower of {self.name} takes texts, not pictures")
        if self.preprocess is None:
            raise SecondLensError(
                f"{self.name} came without a tokenizer: pass tokenizer= when wrapping the model"
            )
        ids: list[Any] = [self.preprocess(text) for text in images]
        return torch.stack(ids).to(self.device)

    def noise(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random tokens that are the same each time, which end where a text would."""
        words = self.patches.weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, words - 1, (count, self.tokens), generator=generator)
        for row in range(count):
            end = self.tokens - 1 - row % max(1, self.tokens - 2)
            ids[row, end:] = 0
            ids[row, end] = words - 1 if self._eos is None else self._eos
        return ids

    @property
    def _eos(self) -> int | None:
        return self.reader.eos if isinstance(self.reader, OneToken) else None


def text_tower(clip: Clip, tokenizer: Callable[[list[str]], Tensor] | None, check: bool) -> Clip:
    """View the text tower of an open_clip model that is in memory.

    Raises
    ------
    UnsupportedModel
        It computes something that the effects do not describe.
    """
    tower: Any = clip.model if isinstance(clip.model, CLIP) else getattr(clip.model, "text", None)
    for reason in _refusals(tower):
        raise UnsupportedModel(f"the text tower of {clip.name} cannot be explained: {reason}")
    pool = tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type
    eos = getattr(tower, "text_eos_id" if isinstance(tower, CLIP) else "eos_id", None)
    context = int(tower.positional_embedding.shape[0])
    blocks = tower.transformer.resblocks
    found = TextClip(
        name=clip.name,
        origin=clip.origin,
        activation=activation_name(blocks[0].mlp.gelu),
        blocks=tuple(view_of_block(block) for block in blocks),
        ln_post=tower.ln_final,
        patches=tower.token_embedding,
        read_projection=partial(_projection, tower),
        read_offset=partial(_offset, tower) if _has_offset(tower) else None,
        image_size=(1, context),
        grid=(1, context),
        tokenizer=getattr(tokenizer, "tokenizer", tokenizer),
        prefix=0,
        batch_first=getattr(blocks[0].attn, "batch_first", True),
        model=clip.model,
        image_tower=partial(_encode, clip.model),
        text_tower=clip.text_tower,
        preprocess=None if tokenizer is None else Tokenized(tokenizer),
        view_of=partial(_again, clip, tokenizer),
        reader=OneToken(find=pool, causal=tower.attn_mask is not None, eos=eos),
        context_length=context,
    )
    if check:
        check_parity(found)
    return found


def _again(clip: Clip, tokenizer: Any, model: nn.Module) -> Clip:
    return text_tower(replace(clip, model=model), tokenizer, check=False)


def _encode(model: Any, ids: Tensor) -> Tensor:
    embeddings: Tensor = model.encode_text(ids)
    return embeddings


def _projection(tower: Any) -> Float[Tensor, "width dim"]:
    projection = tower.text_projection
    found: Tensor
    if projection is None:
        weight = tower.ln_final.weight
        found = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    else:
        found = projection.weight.T if isinstance(projection, nn.Linear) else projection
    return found.detach()


def _has_offset(tower: Any) -> bool:
    return isinstance(tower.text_projection, nn.Linear) and tower.text_projection.bias is not None


def _offset(tower: Any) -> Float[Tensor, " dim"]:
    bias: Tensor = tower.text_projection.bias.detach()
    return bias


@dataclass(frozen=True)
class Tokenized:
    """One text through a tokenizer; a class, so that worker processes can have it."""

    tokenizer: Callable[[list[str]], Tensor]

    def __call__(self, text: Any) -> Tensor:
        """Ids of its tokens."""
        ids: Tensor = self.tokenizer([text])[0]
        return ids


def _refusals(tower: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe this text tower."""
    if not isinstance(tower, CLIP | TextTransformer):
        yield f"it is a {type(tower).__name__}, and only open_clip's own transformer is covered"
        return
    if getattr(tower, "cls_emb", None) is not None:
        yield "a class token comes after the text, and padding is masked in a way of its own"
    if getattr(tower, "use_pad_mask", False):
        yield "padding is masked"
    pool = tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type
    if pool not in POOLS:
        yield f"its pooling is {pool!r}, and only {', '.join(POOLS)} are covered"
    if not is_affine(tower.ln_final):
        yield "ln_final is not a LayerNorm with gain and bias"
    for j, block in enumerate(tower.transformer.resblocks):
        for reason in block_refusals(block):
            yield f"block {j} {reason}"
