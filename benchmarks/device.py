"""What a batch of a fit costs a GPU, counted kernel by kernel.

    python benchmarks/device.py --model ViT-L-14 --layers all --batch 256

No GPU is needed: the real code runs on fake tensors that have shapes only. A kernel takes as long
as the slower of its operations and its bytes, at the rates that are printed; launching is free.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import click
import open_clip
import torch
from open_clip.model import CLIP
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secondlens.bench import interleaved, random_clip
from secondlens.effects.capture import Capture
from secondlens.effects.centring import CentredMap, ScaledPass, pooling_dtype
from secondlens.effects.streaming import Seen
from secondlens.lens.moments import Centre
from secondlens.lens.passes import RankingPass
from secondlens.lens.plan import SPARE
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.view import Clip
from secondlens.timing import seconds_on

console = Console(width=130)
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a GPU reaches in practice: operations and bytes a second."""

    half: float
    single: float
    bandwidth: float


CARDS = {
    "A100": Card(half=165e12, single=14e12, bandwidth=1.6e12),
    "H100": Card(half=330e12, single=42e12, bandwidth=2.7e12),
    "RTX 4090": Card(half=165e12, single=82e12, bandwidth=1.0e12),
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch."""

    name: str
    bytes: int
    operations: float
    half: bool

    def seconds(self, card: Card) -> float:
        """The slower of computing and moving."""
        rate = card.half if self.half else card.single
        return max(self.operations / rate, self.bytes / card.bandwidth)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some code does."""

    kernels: int = 0
    bytes: int = 0
    """Read and written."""
    half: float = 0
    """Operations in half precision."""
    single: float = 0
    """All others."""
    waits: int = 0
    """Synchronisations: how often the host waits for the device."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CARDS, 0.0))
    """By card."""

    def __add__(self, other: "Cost") -> "Cost":
        return self._with(other, 1)

    def __sub__(self, other: "Cost") -> "Cost":
        return self._with(other, -1)

    def _with(self, other: "Cost", sign: int) -> "Cost":
        return Cost(
            **{
                name: value + sign * getattr(other, name)
                for name, value in vars(self).items()
                if name != "seconds"
            },
            seconds={name: s + sign * other.seconds[name] for name, s in self.seconds.items()},
        )

    @classmethod
    def of(cls, kernels: Sequence[Kernel], waits: int) -> "Cost":
        """Of all kernels, one after another."""
        return cls(
            kernels=len(kernels),
            bytes=sum(each.bytes for each in kernels),
            half=sum(each.operations for each in kernels if each.half),
            single=sum(each.operations for each in kernels if not each.half),
            waits=waits,
            seconds={
                name: sum(each.seconds(card) for each in kernels) for name, card in CARDS.items()
            },
        )


# fmt: off
FREE = frozenset((
    "view", "_unsafe_view", "transpose", "permute", "expand", "select", "slice", "unsqueeze",
    "squeeze", "t", "as_strided", "detach", "unbind", "split", "alias", "unflatten", "reshape",
    "diagonal", "split_with_sizes", "lift_fresh", "device", "_reshape_alias", "empty", "new_empty",
    "empty_strided", "empty_like", "new_empty_strided", "lift",
))
# fmt: on
"""What launches nothing."""
WRITES_ONLY = frozenset(["copy_", "fill_", "zero_"])
TOUCHES_FEW = frozenset(["index_put_", "index_copy_", "index_add_", "scatter_", "scatter_add_"])
"""Of what they write into, only as much as they write."""
READS_FEW = frozenset(["index", "gather", "index_select", "embedding"])
"""Of what they read, only as much as they return."""


class Counting(TorchDispatchMode):
    """Counts what is launched inside the `with`.

    Fake tensors have no values. Where the code asks for one, it gets what makes every check pass;
    where it asks for a list, it gets `answer`.
    """

    def __init__(self, answer: Sequence[int] = ()) -> None:
        super().__init__()
        self.answer = list(answer)
        self.kernels: list[Kernel] = []
        self.waits = 0
        self._patches = ExitStack()

    def __enter__(self) -> "Counting":
        self._patches.enter_context(patch.object(FakeTensor, "tolist", lambda _: self._told()))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def _told(self) -> list[int]:
        self.waits += 1
        return self.answer

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name == "_local_scalar_dense":
            self.waits += 1
            return True if args[0].dtype == torch.bool else 1
        out = func(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in tensors}
        crosses = name in ("_to_copy", "copy_") and len(devices) > 1
        if name == "nonzero" or (crosses and not _returns_at_once(func, args, kwargs)):
            self.waits += 1
        if name not in FREE and "cuda" in devices:
            self.kernels.append(kernel(name, func, args, kwargs, out))
        return out


def _returns_at_once(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a copy was asked to return before it is done."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("non_blocking"))


def kernel(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Kernel:
    """Bytes and operations of one call."""
    written = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
    into = {id(each) for each in written}
    read = [
        each
        for each in tree_leaves((args, kwargs))
        if isinstance(each, Tensor)
        and (id(each) not in into or not (name in WRITES_ONLY or "out" in kwargs))
    ]
    if name in TOUCHES_FEW:
        values = [each for each in read if id(each) not in into]
        moved = 3 * sum(map(size, values))
    elif name in READS_FEW:
        moved = 2 * sum(map(size, written)) + sum(map(size, read[1:]))
    else:
        moved = sum(map(size, read)) + sum(map(size, written))
    packet = func._overloadpacket
    floats = [each.dtype for each in read if each.dtype.is_floating_point]
    operations = (
        float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0
    )
    return Kernel(
        name=name,
        bytes=moved,
        operations=operations,
        half=bool(floats) and all(dtype in HALF for dtype in floats),
    )


def size(tensor: Tensor) -> int:
    """Bytes, those of what is expanded only once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def counted(run: Callable[[], Any], answer: Sequence[int] = ()) -> tuple[Any, Cost]:
    """What it returns, and what it cost."""
    with Counting(answer) as counting:
        result = run()
    return result, Cost.of(counting.kernels, counting.waits)


def fake_clip(name: str, dtype: torch.dtype) -> Clip:
    """An open_clip model without numbers, on a GPU that need not be there; in fake mode only."""
    config = open_clip.get_model_config(name)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    finally:
        torch.set_default_dtype(default)
    # which function a module computes is found out from numbers
    with patch("secondlens.models.open_clip.views.activation_name", lambda _: "gelu"):
        return from_open_clip(model.eval(), name=name, check=False)


class Fitting:
    """A fit that is reading all images: what it holds on the device, and its batches.

    Parameters
    ----------
    top
        Images that each neuron keeps.
    """

    def __init__(self, clip: Clip, batch: int, layers: Sequence[int], top: int) -> None:
        self.clip, self.layers = clip, layers
        self.pixels = torch.zeros(batch, 3, *clip.image_size, device=clip.device, dtype=clip.dtype)
        zeros = partial(torch.zeros, device=clip.device, dtype=clip.compute_dtype)
        self.maps: dict[int, CentredMap] = {}
        centres: dict[int, Centre] = {}
        for layer in layers:
            paths = clip.heads * (clip.layers - 1 - layer)
            rank = min(paths, clip.dim)
            self.maps[layer] = CentredMap(zeros(clip.neurons, rank, paths), pooling_dtype(clip))
            centres[layer] = Centre(mean=zeros(clip.neurons, rank), energy=zeros(clip.neurons))
        self.ranking = RankingPass("exact", self.maps, centres, top)

    def encode(self) -> Tensor:
        """The plain forward pass that all is compared with."""
        return self.clip.encode_image(self.pixels)

    def batch(self) -> None:
        """All that a fit does with a batch that was read."""
        with self.clip.class_token_only(), Capture(self.clip, self.layers) as capture:
            self.ranking.see(self._seen(capture))

    def _seen(self, capture: Capture) -> Seen:
        seen = capture.read(self.encode(), check=False)
        return Seen(positions=list(range(len(self.pixels))), seen=seen, finite_part=lambda: None)

    def costs(self, entries: int, neurons: int) -> dict[str, Cost]:
        """What a plain forward pass costs, then the parts of a batch.

        Parameters
        ----------
        entries, neurons
            How many images enter the top images of how many neurons of a layer.
        """
        _, plain = counted(self.encode)
        with self.clip.class_token_only():
            _, short = counted(self.encode)
            with Capture(self.clip, self.layers) as capture:
                batch, hooked = counted(lambda: self._seen(capture))

        def pool() -> None:
            # pooling lets go of activations, which are needed once more
            seen = replace(batch.seen, activations=dict(batch.seen.activations))
            scaled = ScaledPass(seen, "exact", pooling_dtype(self.clip))
            for layer in reversed(self.layers):
                self.maps[layer](scaled, layer)

        _, pooled = counted(pool)
        answer = [1, *[0, entries, neurons] * len(self.layers)]
        _, ranked = counted(lambda: self.ranking.see(batch), answer)
        return {
            "encode": plain,
            "short encode": short,
            "hooks": hooked - short,
            "pooling": pooled,
            "statistics": ranked - pooled,
        }


def costs(
    model: str,
    layers: str,
    batch: int,
    dtype: torch.dtype = torch.float16,
    *,
    top: int = 100,
    images: int = 100_000,
) -> dict[str, Cost]:
    """What `Fitting.costs` says of a model after so many images.

    Parameters
    ----------
    layers
        "all", or how many of the last.
    images
        Read before this batch: the more, the fewer enter the top images.
    """
    with _as_on_a_gpu(), FakeTensorMode():
        clip = fake_clip(model, dtype)
        fitting = Fitting(clip, batch, _chosen(layers, clip), SPARE * top)
        entries = -(-clip.neurons * SPARE * top * batch // images)
        return fitting.costs(entries, min(entries, clip.neurons))


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Attention by the kernel that a GPU would choose, and none whose insides nobody counts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with patch("torch.nn.functional.scaled_dot_product_attention", _flash_attention):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return attended


def whole(parts: dict[str, Cost]) -> Cost:
    """All of a batch."""
    return sum((each for name, each in parts.items() if name != "encode"), Cost())


def _chosen(layers: str, clip: Clip) -> Sequence[int]:
    last = clip.last_effect_layer
    return range(last + 1) if layers == "all" else range(last + 1 - int(layers), last + 1)


@click.command()
@click.option("--model", default="ViT-L-14", show_default=True, help="An open_clip name.")
@click.option("--layers", default="all", show_default=True, help="all, or how many of the last.")
@click.option("--batch", default=256, show_default=True, help="Images.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16")
@click.option("--images", default=100_000, show_default=True, help="Read before this batch.")
def main(model: str, layers: str, batch: int, dtype: str, images: int) -> None:
    """What a batch of a fit costs a GPU, counted kernel by kernel."""
    precision = getattr(torch, dtype)
    parts = costs(model, layers, batch, precision, images=images)
    plain, total = parts["encode"], whole(parts)
    parts = {"plain encode": parts.pop("encode"), **parts, "batch of a fit": total}
    table = Table(title=f"{model}, layers {layers}, {batch} images, {dtype}")
    for title in ("", "kernels", "GB", "TFLOP half", "TFLOP single", "waits", *CARDS):
        table.add_column(title, justify="right" if title else "left")
    for name, cost in parts.items():
        table.add_row(
            *(name, f"{cost.kernels}", f"{cost.bytes / 1e9:.1f}", f"{cost.half / 1e12:.2f}"),
            *(f"{cost.single / 1e12:.2f}", f"{cost.waits}"),
            *(f"{1000 * s:.1f} ms, {s / plain.seconds[c]:.2f}" for c, s in cost.seconds.items()),
        )
    console.print(table)
    for name, card in CARDS.items():
        console.print(
            f"{name}: {card.half / 1e12:.0f} TFLOP/s half, {card.single / 1e12:.0f} single, "
            f"{card.bandwidth / 1e12:.1f} TB/s",
            highlight=False,
        )
    if torch.cuda.is_available():
        _measure(model, layers, batch, precision)


def _measure(model: str, layers: str, batch: int, dtype: torch.dtype) -> None:
    """The same with random weights on the GPU that is here."""
    model_of = random_clip(model).model.to("cuda", dtype)
    clip = from_open_clip(model_of, name=model, check=False)
    fitting = Fitting(clip, batch, _chosen(layers, clip), SPARE * 100)
    fitting.pixels.normal_()
    runs = {"encode": fitting.encode, "batch": fitting.batch}
    seconds = interleaved(runs, 5, partial(seconds_on, clip.device))
    console.print(
        f"{torch.cuda.get_device_name()}, measured: {1000 * seconds['encode']:.1f} ms to encode, "
        f"{1000 * seconds['batch']:.1f} ms a batch, {seconds['batch'] / seconds['encode']:.2f}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
