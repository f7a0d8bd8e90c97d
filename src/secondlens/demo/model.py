"""The embedded CLIP and its twin: ordinary open_clip models with weights that ship here."""

from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from typing import Any, Final

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

CONFIG: Final[dict[str, Any]] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64,
        "layers": 8,
        "width": 192,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
    "quick_gelu": False,
}
"""open_clip's configuration of the embedded model."""

TWIN: Final = {"demo": "demo-twin", "demo-twin": "demo"}
"""The embedded model that differs in its world alone: the referee of each."""

PIXEL_MEAN: Final = 0.5
PIXEL_STD: Final = 0.25


def pixels(images: Sequence[Image.Image]) -> Float[Tensor, "images 3 height width"]:
    """Scenes as the model's input, with no resizing."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


class Preprocess:
    """Any picture as the model's input: its central square, resized."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The picture as the model's input."""
        return self.normalised(self._resized(image))

    def eight_bits(self, image: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The picture resized."""
        return torch.from_numpy(np.array(self._resized(image))).permute(2, 0, 1)

    def normalised(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """A picture of any size as the model's input, with no resizing."""
        return pixels([image])[0]

    def _resized(self, image: Image.Image) -> Image.Image:
        side = CONFIG["vision_cfg"]["image_size"]
        if image.size == (side, side):
            return image.convert("RGB")
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        box = (left, top, left + short, top + short)
        small = image.resize((side, side), Image.Resampling.BICUBIC, box, reducing_gap=3)
        return small.convert("RGB")


def load(name: str) -> tuple[CLIP, Callable[[Image.Image], Tensor], Callable[..., Tensor]]:
    """Model, preprocessing and tokenizer of "demo" or "demo-twin".

    The file holds token embeddings for the words of the world only; any other token gets zeros.
    """
    resource = files("secondlens.demo") / "data" / f"{name}.safetensors"
    with as_file(resource) as path:
        weights = {key: tensor.float() for key, tensor in load_file(path).items()}
    ids = weights.pop("token_ids").long()
    rows = weights["token_embedding.weight"]
    embedding = torch.zeros(CONFIG["text_cfg"]["vocab_size"], rows.shape[1])
    embedding[ids] = rows
    model = CLIP(**CONFIG)
    model.load_state_dict(weights | {"token_embedding.weight": embedding}, strict=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", CONFIG["text_cfg"]["context_length"])
    return model.eval(), Preprocess(), tokenizer
