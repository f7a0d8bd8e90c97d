"""Fit a lens: stream images through a model and keep what they show about each neuron.

Images are cut into shards of consecutive positions. Each shard gives a part: means and covariances
of its coordinates, and in a second stage its strongest images around the mean. Where there are many
images, the first stage reads a random sample of them, so that the second is the only pass over all;
means, energies and top images are exact even so (see `ranking`). Parts are merged by trees that the
plan settles (see `nodes`), so that a fit on many machines, or one that was interrupted and goes on
from the parts that exist, ends with the same lens. Nothing that is held grows with the number of
images but their ids, unless coordinates are kept.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor

from ..arguments import checked
from ..data.reader import Reader, default_batch, warn_of_batches
from ..data.sources import dataset_hash
from ..data.texts import source_for
from ..devices import CPU, undisturbed
from ..effects.linearised import check_paths
from ..engine.local import Local
from ..engine.pool import Engine, Incomplete, Workers
from ..errors import SecondLensError, SecondLensWarning
from ..models.readers import AttentionPool
from ..models.view import Clip
from ..progress import bars
from ..storage.checkpoints import Checkpoints
from ..storage.files import check_resumable, unfinished
from ..storage.locks import locked
from .layer import Axes, Coordinates, LayerLens, layer_lens
from .lens import PATHS, Lens
from .moments import Centre, top_count
from .nodes import AGAIN, MEANS, TOP_IMAGES, Node, Readable
from .plan import Plan, make_plan, plan_from_json, plan_to_json
from .ranking import Settled, settle
from .shards import Changed, ShardWork
from .total_shards import TotalWork

_LOG = logging.getLogger(__name__)


class NothingReadable(SecondLensError):
    """None of the pictures could be read."""


class Unfinished(SecondLensError):
    """Some shards failed on every worker that tried them; all others are done."""

    def __init__(self, failures: Mapping[Node, str], kept: str | None) -> None:
        self.failures = dict(failures)
        reasons = "".join(f"\n  {node}: {reason}" for node, reason in self.failures.items())
        rest = (
            "there is no lens"
            if kept is None
            else f"there is no lens yet, and the rest is kept in {kept}: the same call goes on"
        )
        count = "1 shard" if len(self.failures) == 1 else f"{len(self.failures)} shards"
        super().__init__(f"{count} could not be done; {rest}{reasons}")


class FitRun:
    """Every node of a fit, made by the workers of an engine, and what follows from the roots."""

    def __init__(self, shards: ShardWork, engine: Engine, bars: Progress) -> None:
        self.shards, self.engine, self.bars = shards, engine, bars
        self.plan, self.parts = shards.plan, shards.parts
        self.asked, self.told = shards.reader.images_per_batch, False

    @undisturbed
    def fit(self) -> tuple[dict[int, LayerLens], Readable]:
        """What all stages tell of each layer, and which pictures could be read."""
        by_layer: dict[int, LayerLens] = {}
        nodes = self.shards.nodes
        with closing(self.shards), self.engine.start(self.shards) as workers:
            self.make_nodes(workers, self.shards.first, f"axes{self.shards.over}")
            for group in range(len(self.plan.groups)):
                self.make_tree(workers, nodes.root(group, MEANS))
                if not nodes.readable(nodes.root(group, MEANS)).images:
                    raise NothingReadable(self._nothing())
                self.make_tree(workers, nodes.root(group, TOP_IMAGES))
                readable = nodes.readable(nodes.root(group, TOP_IMAGES))
                again: dict[int, Centre] = {}
                for layer in self.plan.groups[group]:
                    settled, proven = self._settled(group, layer, readable)
                    if bool(proven.all()):
                        by_layer[layer] = self._finished(group, settled, layer, readable)
                    else:
                        again[layer] = settled.centre
                        _LOG.warning(
                            "layer %d: the top images of %d neurons do not follow from a sample, "
                            "so the images pass again",
                            layer,
                            int((~proven).sum()),
                        )
                if again:
                    nodes.save_centres(group, AGAIN, again)
                    self.make_tree(workers, nodes.root(group, AGAIN))
                for layer, centre in again.items():
                    settled = self._around(group, AGAIN, layer, centre, readable)
                    by_layer[layer] = self._finished(group, settled, layer, readable)
        return by_layer, readable

    def coordinates(self) -> Coordinates:
        """Of all images that could be read, where they were stored; on the CPU."""
        z, basis = {}, {}
        for layer in self.plan.layers:
            numbers = self.shards.with_images(layer)
            z[layer] = torch.cat([self.shards.stored(layer, number) for number in numbers])
            basis[layer] = self.shards.basis(layer).cpu()
        return Coordinates(z=z, basis=basis)

    def make_tree(self, workers: Workers, root: Node) -> None:
        """Make a stage's nodes that are missing, level by level."""
        of = f" {root.group + 1}/{len(self.plan.groups)}" if len(self.plan.groups) > 1 else ""
        for level, count in enumerate(self.shards.nodes.levels(root.stage)):
            nodes = [replace(root, level=level, number=number) for number in range(count)]
            title = f"{root.stage}{self.shards.over}{of}"
            self.make_nodes(workers, nodes, title if level == 0 else f"merging {title}")

    def make_nodes(self, workers: Workers, nodes: Sequence[Node], title: str) -> None:
        """Make those that are missing."""
        if not nodes:
            return
        there = self.parts.names()
        missing = [node for node in nodes if node.name not in there]
        bar = self.bars.add_task(title, total=len(nodes), completed=len(nodes) - len(missing))
        try:
            for _, size in workers.map(missing):
                self._tell(size)
                self.bars.advance(bar)
        except Incomplete as error:
            raise Unfinished(error.failures, self.parts.folder) from error

    def _tell(self, size: int) -> None:
        """Say it, once, if memory ran out and batches are smaller than they were to be."""
        if size < self.asked and not self.told:
            warn_of_batches(self.shards.clip, size)
            self.told = True

    def _settled(self, group: int, layer: int, readable: Readable) -> tuple[Settled, Tensor]:
        """A layer after its second stage, and for which neurons its top images are proven."""
        nodes = self.shards.nodes
        centre = nodes.centres(group, TOP_IMAGES)[layer]
        if self.plan.sampled:
            ranked = nodes.ranked(nodes.root(group, TOP_IMAGES), layer)
            return settle(ranked, centre, readable.images, self.shards.top(readable.images))
        settled = self._around(group, TOP_IMAGES, layer, centre, readable)
        return settled, torch.ones_like(centre.energy, dtype=torch.bool)

    def _around(
        self, group: int, stage: str, layer: int, centre: Centre, readable: Readable
    ) -> Settled:
        """A layer whose images were ranked around the mean of all of them."""
        nodes = self.shards.nodes
        ranked = nodes.ranked(nodes.root(group, stage), layer)
        return Settled(
            images=readable.images,
            centre=centre,
            top_images=ranked.top_images.strongest_first(),
            histogram=ranked.histogram,
        )

    def _finished(self, group: int, settled: Settled, layer: int, readable: Readable) -> LayerLens:
        nodes = self.shards.nodes
        moments, sums = nodes.means(nodes.root(group, MEANS), layer)
        basis = self.shards.basis(layer)
        try:
            fitted = layer_lens(
                moments.covariance, settled, basis, sums / moments.count, sample=moments.count
            ).to(CPU)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            kept = f", or parts in {self.parts.folder} are damaged" if self.parts.folder else ""
            raise SecondLensError(
                f"effects of layer {layer} have no components, because they are not finite{kept}: "
                "fit again into another folder, or in a wider precision"
            ) from error
        # from positions in the source to positions among the images that could be read
        unread = torch.tensor(readable.unread, dtype=torch.int64)
        before = torch.searchsorted(unread, fitted.top_images)
        return replace(fitted, top_images=fitted.top_images - before)

    def _nothing(self) -> str:
        some = f"the {self.plan.sample:,} sampled" if self.plan.sampled else "the"
        return f"none of {some} pictures could be read"


@checked
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
    batch_size: int | None = None,
    workers: int = 0,
    memory: int | None = None,
    shard_size: int | None = None,
    sample: int | None = None,
    engine: Engine | None = None,
    paths: str = "value",
    axes: int | None = None,
    progress: bool = False,
    announce: Callable[[Plan], None] | None = None,
) -> Lens:
    """Fit a lens: stream images through the model and keep what they show about each neuron.

    All layers share a forward pass. Means, energies and top images are those of all images. With
    more images than `sample`, covariances (`explained_all` and the two nulls) and mean activations
    are those of a random sample, and `histogram` counts all images around the sample's mean.

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
        Coordinates of all images between the stages: "float32", "float16" (errors of about 1e-3 of
        a centred effect), "never", or "auto": float32 where there is room and no sample is taken.
    keep_coordinates
        Keep every image's float32 coordinates in memory and in the lens, so that it can be
        merged.
    batch_size
        Images in one forward pass; by default 32 on a CPU, elsewhere by the memory that is free.
        Where that runs out, batches are halved, and a warning says so.
    workers
        Processes that decode pictures.
    memory
        Bytes that may be used besides the model, where the model is; by default half of what is
        free there. Layers are fitted in groups where it is short.
    shard_size
        Images that one worker reads before it writes what it found; by default `make_plan`'s.
    sample
        Images that the first stage reads, chosen at random; by default 8,192. All are read where
        there are no more, or coordinates are stored.
    engine
        Where shards are read: by default in this process; `engine.Local` has others on this
        machine, and `engine.Ray` those of a cluster. Means agree to rounding, and so does all else.
    paths
        "all" fits total effects too, over all paths of `sl.paths` together: `Lens.over("all")` has
        the same statistics of them. They cost about 1.3 encodings of each image for each axis.
    axes
        Along how many axes of the embedding total effects are read: the principal axes of the
        effects of all neurons on 32 images, which cost as many encodings as the embedding is wide.
        By default a quarter of that width, at most 64. What lies outside of the axes is left out,
        and a warning says which share of the energy that is.
    progress
        Show progress bars, in shards.
    announce
        Called with each plan before work begins.

    Raises
    ------
    SecondLensError
        A layer without second-order effects, no readable image, `top` or a size out of range, a
        folder that is not empty, is being written by another process or cannot be written to, too
        little memory, or unfinished work with other settings; all paths in the convention
        "official" or of a model whose MLP is of another kind (see `linearise`), or axes out of
        range.
    Unfinished
        Some shards failed on every worker that tried them. All others are done: the same call
        tries again what is missing, and there is no lens before nothing is.
    """
    chosen = clip.chosen_layers(layers)
    source = source_for(clip, images)
    size = default_batch(clip) if batch_size is None else batch_size
    top_of = partial(top_count, top)
    most = top_of(len(source.ids))
    if out is not None:
        check_resumable(out)
    planned = partial(
        make_plan,
        clip,
        len(source.ids),
        chosen,
        top=most,
        convention=convention,
        batch_size=size,
        out=out,
        memory=memory,
        shard_size=shard_size,
        sample=sample,
    )
    plan = planned(
        store="float32" if keep_coordinates else store, keep_coordinates=keep_coordinates
    )
    total_plan = None
    if (count := checked_axes(clip, paths, axes, convention)) is not None:
        total_plan = planned(store=store, axes=count)
    reader = Reader(source=source, clip=clip, batch_size=size, workers=workers)
    model = describe_model(clip)
    engine = engine or Local()
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(locked(out))
            check_resumable(out)  # again: another process may have been done in this moment
        parts = Checkpoints(_work_folder(out, engine, stack))
        work = {
            "model": model,
            "images": dataset_hash(source),
            "layers": chosen,
            "top": top,
            "convention": convention,
            "store": "float32" if keep_coordinates else store,
            "sample": sample,
            "batch size": batch_size,
        }
        to_record = plan_to_json(plan)
        if total_plan is not None:
            work |= {"axes": count}
            to_record |= {"all paths": plan_to_json(total_plan)}
        recorded = parts.claim(work, to_record)
        with parts.reading("work"):
            plan = plan_from_json(plan, recorded)
            if total_plan is not None:
                total_plan = plan_from_json(total_plan, recorded["all paths"])
        for each in (plan, total_plan):
            if announce is not None and each is not None:
                announce(each)
        # elsewhere, nobody needs the bases
        workers_plan = plan if engine.shared == "nobody" else replace(plan, keep_basis=False)
        shards = ShardWork(clip, workers_plan, convention, reader, parts, top_of)
        shown = stack.enter_context(bars(progress))
        run = FitRun(shards, engine, shown)
        totals: TotalWork | None = None
        try:
            by_layer, readable = run.fit()
            if total_plan is not None:
                totals = TotalWork(clip, total_plan, reader, parts.under(ALL_PATHS), top_of)
                total_by_layer, seen = FitRun(totals, engine, shown).fit()
                if seen.unread != readable.unread:
                    raise Changed(
                        "other pictures could be read for all paths than for the value path: they "
                        "changed meanwhile, so begin again"
                    )
        except (Changed, NothingReadable):
            parts.drop()
            raise
        unread = set(readable.unread)
        lens = Lens(
            model=model,
            convention=convention,
            top=top_of(readable.images),
            image_ids=tuple(name for n, name in enumerate(source.ids) if n not in unread),
            digests=shards.digests(),
            skipped=readable.skipped,
            by_layer=dict(sorted(by_layer.items())),
            sample=plan.sample if plan.sampled else None,
            coordinates=run.coordinates() if keep_coordinates else None,
        )
        if totals is not None and total_plan is not None:
            lens = replace(
                lens,
                all_paths=replace(
                    lens,
                    by_layer=dict(sorted(total_by_layer.items())),
                    sample=total_plan.sample if total_plan.sampled else None,
                    axes=totals.axes,
                    coordinates=None,
                ),
            )
            _tell_left_out(totals.axes)
        if out is not None:
            lens.save_held(out)
        parts.drop()
    return lens


def describe_model(clip: Clip) -> dict[str, Any]:
    """What a lens records about its model."""
    reader = clip.reader
    return {
        "name": clip.name,
        "weights": clip.weights_hash,
        "activation": clip.activation,
        "layers": clip.layers,
        "heads": clip.heads,
        "neurons": clip.neurons,
        "dim": clip.dim,
        "grid": list(clip.grid),
        # only what differs from a tower that reads a class token before its patches
        **({} if clip.prefix == 1 else {"prefix": clip.prefix}),
        **({"tower": "text"} if clip.reads_texts else {}),
        **({"pool_heads": reader.pool.heads} if isinstance(reader, AttentionPool) else {}),
    }


MOST_AXES = 64
"""That a fit over all paths takes when nobody says."""
ALL_PATHS = "all-paths-"
"""What the names of its parts begin with."""


def default_axes(clip: Clip) -> int:
    """Axes of a fit over all paths when nobody says: a quarter of the embedding's width, at most
    64."""
    return max(1, min(MOST_AXES, clip.dim // 4))


def checked_axes(clip: Clip, paths: str, axes: int | None, convention: str) -> int | None:
    """How many axes a fit over all paths takes; None if the value path alone is fitted.

    Raises
    ------
    SecondLensError
        No such paths, axes without all paths or out of range, another convention than "exact", or a
        model that `linearise` refuses.
    """
    if paths not in PATHS:
        raise SecondLensError(f"no paths {paths!r}: choose {' or '.join(PATHS)}")
    if paths == "value":
        if axes is not None:
            raise SecondLensError("axes are of a fit over all paths: add paths all")
        return None
    if convention != "exact":
        raise SecondLensError("effects over all paths are exact: fit them in that convention")
    check_paths(clip)
    count = default_axes(clip) if axes is None else axes
    if not 1 <= count <= clip.dim:
        raise SecondLensError(
            f"axes must lie between 1 and the width of the embedding, {clip.dim}, and they are "
            f"{count}"
        )
    return count


def _tell_left_out(axes: Axes) -> None:
    """Warn of what effects over all paths lack."""
    most = float(axes.left_out.max())
    if most >= LEAST_TOLD:
        message = (
            f"the {len(axes.rows)} axes leave out {100 * float(axes.left_out.mean()):.0f} % of the "
            f"energy of effects over all paths, {100 * most:.0f} % in one layer: more axes leave "
            "out less"
        )
        warnings.warn(message, SecondLensWarning, stacklevel=4)


LEAST_TOLD = 0.01
"""Share of the energy that is worth a warning."""


def _work_folder(out: str | Path | None, engine: Engine, stack: ExitStack) -> str | None:
    """Where parts go: beside the lens; if it goes nowhere, where the workers can reach them."""
    if out is not None:
        return unfinished(out)
    if engine.shared == "nobody":
        return None
    if engine.shared == "processes":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="secondlens-"))
        return f"{folder}/parts"
    raise SecondLensError("workers on other machines need a folder that all reach: give out")
