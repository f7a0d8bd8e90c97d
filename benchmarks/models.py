"""Every model that can be named: made from its configuration, with random weights, and checked.

    python benchmarks/models.py              # all: minutes
    python benchmarks/models.py SigLIP PE    # those with one of these in their names
    python benchmarks/models.py --markdown   # as a table of the documentation

Towers keep two blocks (one for each stage), their widths, their pictures and whatever reads them;
text towers are tiny. `parity` is the largest error of what is rebuilt from the view's weights, in
float32; `sum` that of the second-order effects of all neurons of the first layer, added up, against
the path of what the layer writes, block by block and head by head, in float64; of a ConvNeXt, which
has none, that of direct effects. Both are over the largest value. Models of transformers are those
of their default configurations, and have no tags.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import open_clip
import timm
import torch
import transformers
from torch import Tensor, nn

import secondlens as sl
from secondlens.models.checks import parity_errors
from secondlens.models.open_clip.views import check_covered
from secondlens.verify import LiteralPass, literal_second_order

BLOCKS = 2
NOISE = 0.02
"""Standard deviation of what is added to every weight, so that none is zero or one."""
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
PARITY, SUM = 1e-5, 1e-9


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of the table."""

    name: str
    tags: int
    """Of pretrained weights."""
    make: Callable[[], sl.Clip]
    """A small one; it raises `UnsupportedModel` where there is a reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of it."""

    name: str
    tags: int
    reader: str = ""
    parity: float = float("nan")
    sum: float = float("nan")
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it loads and both errors are as small as they must be."""
        return not self.reason and self.parity <= PARITY and self.sum <= SUM


SUBJECTS: list[Callable[[], Iterator[Subject]]] = []
"""One for each kind of models; a new one is added by `subjects`."""


def subjects(function: Callable[[], Iterator[Subject]]) -> Callable[[], Iterator[Subject]]:
    """Add the models that a function yields."""
    SUBJECTS.append(function)
    return function


@subjects
def of_open_clip() -> Iterator[Subject]:
    """All architectures of open_clip."""
    tags = Counter(model for model, _ in open_clip.list_pretrained())
    for name in open_clip.list_models():
        yield Subject(name=name, tags=tags[name], make=partial(_of_open_clip, name))


def _of_open_clip(name: str) -> sl.Clip:
    config = open_clip.get_model_config(name)
    vision, made_by_timm = config["vision_cfg"], config["vision_cfg"].get("timm_model_name", "")
    arguments = config["embed_dim"], vision, dict(TEXT), config.get("quick_gelu", False)
    with torch.device("meta"):
        check_covered(open_clip.CustomTextCLIP(*arguments), name)
    if isinstance(vision.get("layers"), list):  # a ResNet's, by stage
        vision["layers"] = [1] * len(vision["layers"])
    elif not made_by_timm:
        vision["layers"] = BLOCKS
    cut = {"depths": (1, 1, 1, 1)} if made_by_timm.startswith("convnext") else {"depth": BLOCKS}
    with patch.object(timm, "create_model", partial(timm.create_model, **cut)):
        model = open_clip.CustomTextCLIP(*arguments)
    return sl.from_open_clip(randomised(model), name=name)


TRANSFORMERS = (
    *("CLIP", "MetaClip2", "Siglip", "Siglip2"),
    *("SiglipVision", "Siglip2Vision", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "ViT"),
)
"""Configurations, the first row of models with a text tower."""
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Dinov2": [{}, {"use_swiglu_ffn": True}],
    "Dinov2WithRegisters": [{}, {"use_swiglu_ffn": True}],
    "DINOv3ViT": [{"num_register_tokens": 4}, {"num_register_tokens": 4, "use_gated_mlp": True}],
}
"""What else is made of some."""


@subjects
def models_of_transformers() -> Iterator[Subject]:
    """Models of every family of transformers that is covered."""
    for kind in TRANSFORMERS:
        for options in OPTIONS.get(kind, [{}]):
            gated = ", gated" if any("glu" in key or "gated" in key for key in options) else ""
            models = ["Model", "ForImageClassification"] if kind == "ViT" else ["Model"]
            for model in models:
                name = f"{kind}{model}"
                make = partial(_model_of_transformers, kind, name, options)
                yield Subject(name=name + gated, tags=0, make=make)


def _model_of_transformers(kind: str, name: str, options: dict[str, Any]) -> sl.Clip:
    own = {"num_hidden_layers": BLOCKS, **options}
    config = getattr(transformers, f"{kind}Config")
    if kind in ("CLIP", "MetaClip2", "Siglip", "Siglip2"):
        text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        text |= {"num_hidden_layers": 1, "vocab_size": 64}
        if kind.startswith("Siglip"):
            text["projection_size"] = 768
        own = {"vision_config": own, "text_config": text}
    model = getattr(transformers, name)(config(**own))
    return sl.from_transformers(randomised(model), name=name)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Return the model with noise on every weight, in eval mode."""
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight), alpha=NOISE)
    return model.eval()


def checked(subject: Subject) -> Row:
    """Return what is found of a model."""
    torch.manual_seed(0)
    try:
        clip = subject.make()
    except sl.UnsupportedModel as error:
        reason = str(error).partition(": ")[2]
        return Row(name=subject.name, tags=subject.tags, reason=reason)
    parity = max(parity_errors(clip).values())
    wide = clip.view_of(clip.model.double())
    image = wide.noise(1, torch.float64)
    run = LiteralPass.of(wide, image)
    if wide.last_effect_layer < 0:
        found, literal = sl.direct(wide, image, 0).sum(1), literal_direct(wide, run)
    else:
        found = sl.second_order(wide, image, 0).sum(1)
        literal = literal_second_order(wide, run, 0, None)
    return Row(
        name=subject.name,
        tags=subject.tags,
        reader=type(clip.reader).__name__,
        parity=parity,
        sum=float((found - literal).abs().max() / literal.abs().max()),
    )


def literal_direct(clip: sl.Clip, run: LiteralPass) -> Tensor:
    """Return what the first layer writes to the mean of a tower's places, through the last norm
    with its scale held, the projection, and a head's derivative."""
    written = clip.reader.pooled(run.activations[0] @ clip.blocks[0].neuron_rows)
    seen = clip.reader.pooled(run.post)

    def normed(states: Tensor) -> Tensor:
        sigma = (seen.var(-1, correction=0, keepdim=True) + clip.post_eps).sqrt()
        return (states - states.mean(-1, keepdim=True)) / sigma * clip.post_gain

    found = normed(written) @ clip.projection
    if clip.head is not None:
        point = (normed(seen) + clip.post_bias) @ clip.projection
        point = point if clip.read_offset is None else point + clip.read_offset()
        found = torch.func.jvp(clip.head, (point,), (found,))[1]
    return found / run.representation.norm(dim=-1, keepdim=True)


def rows(names: list[str]) -> Iterator[Row]:
    """Yield what is found of all models with one of these in their names, or of all."""
    for kind in SUBJECTS:
        for subject in kind():
            if not names or any(each in subject.name for each in names):
                yield checked(subject)


def main() -> None:
    """Print a line for each model as it is done, and how many pass."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names of models")
    parser.add_argument("--markdown", action="store_true", help="as a table of the documentation")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    between, end = (" | ", " |") if arguments.markdown else ("  ", "")
    found = []
    if arguments.markdown:
        print(
            "| model | tags | read by | parity | sum | refused because |\n|---|--:|---|--:|--:|---|"
        )
    for row in rows(arguments.names):
        found.append(row)
        numbers = ("", "") if row.reason else (f"{row.parity:.0e}", f"{row.sum:.0e}")
        cells = [f"{row.name:34}", f"{row.tags:2}", f"{row.reader:13}", *numbers, row.reason]
        print(between.lstrip() + between.join(cells) + end, flush=True)
    passed = [row for row in found if row.passed]
    print(
        f"\n{len(passed)} of {len(found)} models pass, and {sum(row.tags for row in passed)} of "
        f"{sum(row.tags for row in found)} tags of weights"
    )
    sys.exit(any(not row.passed and not row.reason for row in found))


if __name__ == "__main__":
    main()
