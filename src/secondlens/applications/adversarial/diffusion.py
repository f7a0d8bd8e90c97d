"""An image generator for any text-to-image pipeline of diffusers."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch

from ...errors import SecondLensError
from ...models.strangers import UNLOADABLE, check_model, no_code_runs
from ...naming import shown_place
from .generation import GeneratedImage

Offload = Literal["none", "model", "sequential"]


class DiffusionGenerator:
    """Pictures by `AutoPipelineForText2Image`.

    Parameters
    ----------
    model
        Folder or hub name of a pipeline.
    dtype
        Of the weights, such as "float16".
    offload
        Keep the pipeline in main memory and move to the device whole models ("model") or single
        layers ("sequential") when they are needed; both want accelerate.
    steps, guidance, size
        Of denoising; by default the pipeline's own.

    Raises
    ------
    SecondLensError
        diffusers is missing, there is no such pipeline, dtype or offloading, or it names code to
        run.
    """

    knows: Sequence[str] | None = None

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        offload: Offload = "none",
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
    ) -> None:
        try:
            from diffusers import AutoPipelineForText2Image
        except ImportError:
            raise SecondLensError(
                "drawing by diffusion needs diffusers: pip install 'secondlens[diffusion]'"
            ) from None
        if not isinstance(precision := getattr(torch, dtype, None), torch.dtype):
            raise SecondLensError(f"there is no dtype {dtype!r}: name one such as float16")
        try:
            check_model(model)
            with no_code_runs():
                self._pipeline: Any = AutoPipelineForText2Image.from_pretrained(
                    model, dtype=precision, trust_remote_code=False
                )
        except UNLOADABLE as error:
            raise SecondLensError(
                f"{model} is no text-to-image pipeline that can be loaded: name a folder or a hub "
                "name"
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)
        self._place(device, offload)
        given = {"num_inference_steps": steps, "guidance_scale": guidance}
        given |= {"height": size, "width": size}
        self._options = {key: value for key, value in given.items() if value is not None}
        settings = "".join(f",{key}={value}" for key, value in sorted(self._options.items()))
        self.name = f"diffusion:{shown_place(model)}{settings}"
        self.facts = {"dtype": str(precision).removeprefix("torch.")}

    def _place(self, device: str, offload: Offload) -> None:
        if offload == "none":
            self._pipeline.to(device)
            return
        if torch.device(device).type == "cpu":
            raise SecondLensError(
                "the pipeline cannot be offloaded: it is in main memory already, so name a GPU, or "
                "drop the offloading"
            )
        try:
            if offload == "model":
                self._pipeline.enable_model_cpu_offload(device=device)
            else:
                self._pipeline.enable_sequential_cpu_offload(device=device)
        except (ImportError, RuntimeError, ValueError) as error:
            raise SecondLensError(
                f"the pipeline cannot be offloaded from {device} ({error}): install accelerate, "
                "name a GPU, or drop the offloading"
            ) from error

    def draw(self, caption: str, subject: str, seed: int) -> GeneratedImage:
        """The picture of a caption, from noise of the seed."""
        # on the CPU, so that noise is the same whatever the device
        noise = torch.Generator().manual_seed(seed)
        with warnings.catch_warnings():
            # a decoder of random or overflowing weights gives NaN, which becomes black
            warnings.filterwarnings("ignore", "invalid value encountered in cast")
            image = self._pipeline(caption, generator=noise, **self._options).images[0]
        return GeneratedImage(image=image.convert("RGB"))


def diffusers(chosen: str, **options: Any) -> DiffusionGenerator:
    """The member "diffusers" of `image_generators`, such as "diffusers:folder/of/a/pipeline".

    Raises
    ------
    SecondLensError
        No pipeline is named, or what `DiffusionGenerator` raises.
    """
    pipeline = chosen.partition(":")[2]
    if not pipeline:
        raise SecondLensError(
            "diffusers names no pipeline: give its hub name or folder, as diffusers:PIPELINE"
        )
    return DiffusionGenerator(pipeline, **options)
