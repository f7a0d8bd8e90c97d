"""What workers of a fit do: leaves of its trees read images, nodes above merge (see `nodes`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.decoders import Decoders
from ..data.reader import Reader
from ..devices import smaller
from ..effects.centring import CentredMap, pooling_dtype
from ..effects.streaming import stream_passes
from ..effects.value_paths import isometry, value_paths
from ..errors import SecondLensError
from ..models.view import Clip
from ..storage.checkpoints import Checkpoints
from ..storage.validation import convert
from .layer import IMAGES_PER_RANKING
from .moments import Centre, Moments
from .nodes import (
    AGAIN,
    MEANS,
    TOP_IMAGES,
    Digests,
    Node,
    Nodes,
    Readable,
    digests_name,
    stored_name,
)
from .passes import CoordinateSums, MeansPass, RankingPass, TotalRankingPass
from .plan import SPARE, Plan
from .ranking import Ranked, Ranking


class Changed(SecondLensError):
    """The pictures of a later pass are not those of the first."""


class ShardWork:
    """Makes the nodes of a fit, each a task; the leaves run the model.

    Parameters
    ----------
    clip, plan, convention
        Of the fit.
    reader
        Of all images.
    parts
        Where nodes are written.
    top
        Top images a neuron, given how many images could be read.
    """

    def __init__(
        self,
        clip: Clip,
        plan: Plan,
        convention: str,
        reader: Reader,
        parts: Checkpoints,
        top: Callable[[int], int],
    ) -> None:
        self.clip, self.plan, self.convention = clip, plan, convention
        self.reader, self.parts, self.top = reader, parts, top
        self.nodes = Nodes(clip, plan, parts)
        self._maps: dict[int, CentredMap] = {}
        self._bases: dict[int, Tensor] = {}
        self._decoders: Decoders | None = None
        self._expected: Node | None = None
        self.first: list[Node] = []
        """What has to be made before the trees."""
        self.over = ""
        """What is fitted, for the titles of progress bars."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.device

    def to(self, device: torch.device) -> None:
        """Move the model; the rest follows it."""
        self.clip.model.to(device)

    def expect(self, node: Node | None) -> None:
        """Hear which node comes after the next one: decoding goes on with its images."""
        self._expected = node

    def close(self) -> None:
        """End the processes that decode."""
        if self._decoders is not None:
            self._decoders.close()
            self._decoders = None

    def __call__(self, node: Node) -> int:
        """Make one node, in smaller batches if memory runs out; return the images of a batch.

        Raises
        ------
        SecondLensError
            Memory runs out with a single picture, or while nodes are merged.
        """
        while not self._made(node):
            size = 1 if node.level else self.reader.images_per_batch
            self.reader = replace(self.reader, batch_size=smaller(size, self.clip.device))
        return self.reader.images_per_batch

    def _made(self, node: Node) -> bool:
        """Make one node, unless memory runs out; the error would keep what filled it."""
        try:
            self.make(node)
        except torch.OutOfMemoryError:
            return False
        except Exception:
            self.close()  # what decodes may be what failed, and starts again with the next node
            raise
        return True

    def make(self, node: Node) -> None:
        """Make one node."""
        if node.level:
            self.nodes.merge(node)
        elif node.stage == MEANS:
            self.means(node)
        else:
            self.top_images(node)

    def stored(self, layer: int, number: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored; on the CPU."""
        z = self.nodes.stored(number, layer)
        if z.dtype != torch.float16:
            return z
        moments, _ = self.nodes.means(self._leaf(layer, number), layer)
        return z.to(moments.mean.dtype) * _rms(moments).cpu() + moments.mean.cpu()

    def with_images(self, layer: int) -> list[int]:
        """Numbers of the shards of which something could be read."""
        numbers = range(len(self.plan.shards))
        return [n for n in numbers if self.nodes.readable(self._leaf(layer, n)).images]

    def digests(self) -> tuple[str, ...]:
        """Return those of all images that could be read, in their order."""
        found: list[str] = []
        for number in range(len(self.plan.shards)):
            name = digests_name(number)
            with self.parts.reading(name):
                found += convert(self.parts.info(name), Digests, name).digests
        return tuple(found)

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, rank], on the model's device."""
        if layer not in self._bases:
            self._isometry(layer, keep_basis=True)
        return self._bases.pop(layer)

    def means(self, node: Node) -> None:
        """Make a leaf of the first stage, and store coordinates where the plan says so."""
        reader = self._reader(node)
        keep = self.plan.store is not None
        found = self.summed(self.nodes.layers(node), reader, keep=keep)
        moments = found.moments()
        for layer, seen in moments.items() if keep else ():
            z = found.coordinates(layer)
            if self.plan.store == "float16":
                z = ((z - seen.mean.cpu()) / _rms(seen).cpu()).half()
            self.parts.save(stored_name(node.number, layer), {"z": z}, {})
        if not self.plan.sampled:
            self._save_digests(node, found.positions, reader)
        # last, because it says that the shard is complete
        readable = self._readable(node, found.positions, reader)
        self.nodes.save_means(node, readable, moments, found.activations())

    def top_images(self, node: Node) -> None:
        """Make a leaf of a later stage: the images of a shard, ranked around its centre."""
        centres = self.nodes.centres(node.group, node.stage)
        top = self._kept(node)
        if self.plan.store is not None:
            readable = self.nodes.readable(replace(node, stage=MEANS))
            self.nodes.save_ranked(node, readable, self._rank_stored(node, centres, top))
            return
        reader = self._reader(node)
        found = self.ranked(centres, top, reader)
        readable = self._readable(node, found.positions, reader)
        self._check_same(node, readable)
        if self.plan.sampled and node.stage == TOP_IMAGES:
            self._save_digests(node, found.positions, reader)
        self.nodes.save_ranked(node, readable, found.ranked())

    def summed(self, layers: tuple[int, ...], reader: Reader, *, keep: bool) -> CoordinateSums:
        """Return the moments of the images of a reader."""
        maps = self._maps_of(layers)
        found = MeansPass(self.convention, maps, keep=keep)
        for batch in stream_passes(self.clip, reader, maps):
            found.see(batch)
        return found

    def ranked(
        self, centres: dict[int, Centre], top: int, reader: Reader
    ) -> RankingPass | TotalRankingPass:
        """Return the images of a reader ranked around centres."""
        maps = self._maps_of(tuple(centres))
        found = RankingPass(self.convention, maps, centres, top)
        for batch in stream_passes(self.clip, reader, maps):
            found.see(batch)
        return found

    def _kept(self, node: Node) -> int:
        """How many images a neuron keeps."""
        if node.stage == TOP_IMAGES and self.plan.sampled:
            return min(self.plan.images, SPARE * self.top(self.plan.images))
        before = TOP_IMAGES if node.stage == AGAIN else MEANS
        return self.top(self.nodes.readable(self.nodes.root(node.group, before)).images)

    def _check_same(self, node: Node, readable: Readable) -> None:
        before = TOP_IMAGES if node.stage == AGAIN else MEANS
        if before == MEANS and self.plan.sampled:
            return
        if readable.unread != self.nodes.readable(replace(node, stage=before)).unread:
            raise Changed(
                "other pictures could be read in the second pass than in the first: they changed "
                "meanwhile, so begin again"
            )

    def _rank_stored(self, node: Node, centres: dict[int, Centre], top: int) -> dict[int, Ranked]:
        unread = set(self.nodes.readable(replace(node, stage=MEANS)).unread)
        read = [n for n in self.plan.shards[node.number] if n not in unread]
        positions = torch.tensor(read, device=self.clip.device)
        found = {}
        for layer, centre in centres.items():
            ranking = Ranking(centre, top)
            z = self.stored(layer, node.number) if read else centre.mean[None, :0]
            with self.parts.reading(stored_name(node.number, layer)):
                if read and len(z) != len(read):
                    raise ValueError(f"it is of {len(z)} images and not {len(read)}")
            for start in range(0, len(read), IMAGES_PER_RANKING):
                some = slice(start, start + IMAGES_PER_RANKING)
                here = z[some].to(self.clip.device)
                ranking.see((here - centre.mean).transpose(0, 1), positions[some])
            found[layer] = ranking.ranked()
        return found

    def _maps_of(self, layers: tuple[int, ...]) -> dict[int, CentredMap]:
        """Those of a group's layers, made once."""
        for layer in self._maps.keys() - set(layers):
            del self._maps[layer]
        for layer in layers:
            self._isometry(layer, keep_basis=False)
        return {layer: self._maps[layer] for layer in layers}

    def _isometry(self, layer: int, *, keep_basis: bool) -> None:
        if layer in self._maps and not keep_basis:
            return
        found = isometry(value_paths(self.clip, layer, self.convention))
        if not keep_basis:
            self._maps[layer] = CentredMap(found.transform, pooling_dtype(self.clip))
        if keep_basis or self.plan.keep_basis:
            self._bases[layer] = found.basis

    def _reader(self, node: Node) -> Reader:
        if self._decoders is None:
            self._decoders = self.reader.decoders()
        following: Sequence[int] = ()
        after = self._expected
        if after is not None and (after.stage, after.level) == (node.stage, 0):
            following = self._positions(after)
        return replace(
            self.reader,
            positions=self._positions(node),
            skipped={},
            digests={},
            kept=self._decoders,
            following=following,
        )

    def _positions(self, node: Node) -> Sequence[int]:
        return self.nodes.shards(node.stage)[node.number]

    def _save_digests(self, node: Node, read: list[int], reader: Reader) -> None:
        """Keep those of the images of a shard; all groups of layers have the same images."""
        if node.group == 0:
            found = [reader.digests[position] for position in sorted(read)]
            self.parts.save(digests_name(node.number), {}, {"digests": found})

    def _readable(self, node: Node, read: list[int], reader: Reader) -> Readable:
        missing = set(self._positions(node)) - set(read)
        return Readable(
            images=len(read), unread=tuple(sorted(missing)), skipped=dict(reader.skipped)
        )

    def _leaf(self, layer: int, number: int) -> Node:
        group = next(g for g, layers in enumerate(self.plan.groups) if layer in layers)
        return Node(group=group, stage=MEANS, level=0, number=number)


def _rms(moments: Moments) -> Tensor:
    """Root mean square of a coordinate, [neurons, 1]: what float16 coordinates are measured in."""
    rms = (moments.energy / moments.mean.shape[1]).sqrt()
    return torch.where(rms > 0, rms, 1)[:, None]
