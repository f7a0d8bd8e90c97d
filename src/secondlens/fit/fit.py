"""Fit a lens: stream images through a model and keep what they show about each neuron.

Images are cut into shards of consecutive positions. Each shard gives a part: means and covariances
of its coordinates, and in a second pass its strongest images around the final mean. Parts are
merged by trees that the plan settles (see `nodes`), so that a fit on many machines, or one that
was interrupted and goes on from the parts that exist, ends with the same lens. Nothing that is held
grows with the number of images but their ids, unless coordinates are kept.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from .. import statistics
from ..clip.view import Clip
from ..engine import Engine, Local
from ..errors import SecondLensError
from ..images import Reader, as_source, dataset_hash
from ..lens import Lens
from ..storage.parts import Parts
from ..storage.places import check_empty
from .plan import Plan, make_plan
from .run import NothingReadable, Run, shard_bars
from .shards import Changed, ShardWork


def fit(
    clip: Clip,
    images: Any,
    layers: "Sequence[int] | Literal['all']" = "all",
    *,
    top: int | None = None,
    out: str | Path | None = None,
    convention: str = "exact",
    store: str = "auto",
    keep_coordinates: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    memory: int | None = None,
    shard_size: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
    announce: Callable[[Plan], None] | None = None,
) -> Lens:
    """Fit a lens: stream images through the model and keep what they show about each neuron.

    All layers share a forward pass. Top images are exact around the final mean: from stored
    coordinates where there is room, else in a second pass.

    With `out`, finished parts are kept in the folder `out` + ".unfinished" until the lens is
    written. The same call after an interruption, of whatever kind and with whatever engine, goes on
    from them.

    Parameters
    ----------
    clip
        The model.
    images
        What `images.as_source` takes: a folder of pictures, tar or Parquet files, PIL images, a
        preprocessed tensor [images, 3, height, width], a data set, a stream, or an `ImageSource`.
    layers
        MLP layers, or "all" that have second-order effects.
    top
        Images that count as a neuron's top images; by default 2 %, at most 100 (the paper: 100 of
        5,000).
    out
        A folder to save the lens in, here or in a store such as "s3://bucket/lens"; it must not
        exist or be empty.
    convention
        "exact", or "official" to compare with published numbers.
    store
        Coordinates between the passes: "float32", "float16" (errors of about 1e-3 of a centred
        effect), "never" for two passes, or "auto": float32 where there is room.
    keep_coordinates
        Keep every image's float32 coordinates in memory and in the lens, so that it can be
        merged.
    batch_size
        Images in one forward pass.
    workers
        Processes that decode pictures.
    memory
        Bytes that may be used besides the model; by default half of what is free. Layers are
        fitted in groups where it is short.
    shard_size
        Images that one worker reads before it writes what it found; by default `make_plan`'s.
    engine
        Where shards are read: by default in this process; `engine.Local` has others on this
        machine, and `engine.Ray` those of a cluster. Means agree to rounding, and so does all else.
    progress
        Show progress bars, in shards.
    announce
        Called with the plan before work begins.

    Raises
    ------
    SecondLensError
        A layer without second-order effects, no readable image, `top` or a size out of range, a
        folder that is not empty or cannot be written to, too little memory, or unfinished work with
        other settings.
    Unfinished
        Some shards failed on every worker that tried them. All others are done: the same call
        tries again what is missing, and there is no lens before nothing is.
    """
    chosen = _layers(clip, layers)
    source = as_source(images)
    top_of = partial(statistics.top_count, top)
    most = top_of(len(source.ids))
    if out is not None:
        check_empty(out)
    store = "float32" if keep_coordinates else store
    plan = make_plan(
        clip,
        len(source.ids),
        chosen,
        top=most,
        convention=convention,
        batch_size=batch_size,
        store=store,
        keep_coordinates=keep_coordinates,
        out=out,
        memory=memory,
        shard_size=shard_size,
    )
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    model = describe_model(clip)
    engine = engine or Local()
    with ExitStack() as stack:
        parts = Parts(_work_folder(out, engine, stack))
        work = {
            "model": model,
            "images": dataset_hash(source),
            "layers": chosen,
            "top": top,
            "convention": convention,
            "store": store,
            "batch size": batch_size,
        }
        plan = _plan_from_json(plan, parts.claim(work, _plan_to_json(plan)))
        if announce is not None:
            announce(plan)
        # elsewhere, nobody needs the bases
        workers_plan = plan if engine.shared == "nobody" else replace(plan, keep_basis=False)
        shards = ShardWork(clip, workers_plan, convention, reader, parts, top_of)
        run = Run(shards, engine, stack.enter_context(shard_bars(progress)))
        try:
            by_layer, info = run.fit()
        except (Changed, NothingReadable):
            parts.drop()
            raise
        unread = set(info["unread"])
        lens = Lens(
            model=model,
            convention=convention,
            top=top_of(info["images"]),
            image_ids=tuple(name for n, name in enumerate(source.ids) if n not in unread),
            skipped=info["skipped"],
            by_layer=dict(sorted(by_layer.items())),
            coordinates=run.coordinates() if keep_coordinates else None,
        )
        if out is not None:
            lens.save(out)
        parts.drop()
    return lens


def _layers(clip: Clip, layers: Any) -> list[int]:
    """The layers to fit, in order."""
    if isinstance(layers, int) or (isinstance(layers, str) and layers != "all"):
        raise SecondLensError(
            f'layers are a list such as [8, 9, 10], or "all", and these are {layers!r}'
        )
    given = range(clip.layers - 1) if isinstance(layers, str) else layers
    chosen = sorted({clip.check_layer(layer) for layer in given})
    if not chosen:
        raise SecondLensError("no layers to fit: name at least one, or all")
    return chosen


def describe_model(clip: Clip) -> dict[str, Any]:
    """What a lens records about its model."""
    return {
        "name": clip.name,
        "weights": clip.weights_hash,
        "activation": clip.activation,
        "layers": clip.layers,
        "heads": clip.heads,
        "neurons": clip.neurons,
        "dim": clip.dim,
        "grid": list(clip.grid),
    }


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    shards = [[shard.start, shard.stop] for shard in plan.shards]
    groups = [list(group) for group in plan.groups]
    return {"groups": groups, "shards": shards, "store": plan.store}


def _plan_from_json(plan: Plan, recorded: dict[str, Any]) -> Plan:
    """The plan with the choices recorded when the work began: less may be free now."""
    return replace(
        plan,
        groups=tuple(tuple(group) for group in recorded["groups"]),
        shards=tuple(range(*shard) for shard in recorded["shards"]),
        store=recorded["store"],
    )


def _work_folder(out: str | Path | None, engine: Engine, stack: ExitStack) -> str | None:
    """Where parts go: beside the lens; if it goes nowhere, where the workers can reach them."""
    if out is not None:
        return f"{out}.unfinished"
    if engine.shared == "nobody":
        return None
    if engine.shared == "processes":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="secondlens-"))
        return f"{folder}/parts"
    raise SecondLensError("workers on other machines need a folder that all reach: give out")
