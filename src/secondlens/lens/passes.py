"""What a fit does with a batch of images, in either of its stages.

`MeansPass` and `RankingPass` pool coefficients and take them to coordinates, one layer after
another: the first sums moments, the second ranks images around a centre. `TotalMeansPass` and
`TotalRankingPass` do the same with total effects, whose coordinates are there already.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..devices import wait
from ..effects.centring import CentredMap, ScaledPass
from ..effects.streaming import Seen
from ..effects.total_effects import Totals
from ..errors import SecondLensError
from .moments import Centre, Moments, MomentSums
from .ranking import Offer, Ranked, Ranking


class CoordinateSums:
    """Moments of coordinates, and sums of activations, by layer.

    Parameters
    ----------
    layers
        To sum.
    keep
        Whether to keep the coordinates of every image, on the CPU.
    """

    def __init__(self, layers: Iterable[int], *, keep: bool = False) -> None:
        self._sums = {layer: MomentSums() for layer in layers}
        self._activations: dict[int, Tensor] = {}
        self._kept: dict[int, list[Tensor]] | None = {n: [] for n in self._sums} if keep else None
        self.positions: list[int] = []

    def add(
        self,
        layer: int,
        z: Float[Tensor, "neurons images rank"],
        activations: Float[Tensor, "tokens neurons"],
    ) -> None:
        """Add the coordinates of a batch, and its activations, which are summed already."""
        self._activations[layer] = self._activations.get(layer, 0) + activations
        self._sums[layer].see(z)
        if self._kept is not None:
            self._kept[layer].append(z.transpose(0, 1).to("cpu", non_blocking=True))

    def moments(self) -> dict[int, Moments]:
        """Return those of all batches; layers only if there was one."""
        return {n: sums.moments() for n, sums in self._sums.items()} if self.positions else {}

    def activations(self) -> dict[int, Tensor]:
        """Return the sums of activations [tokens, neurons] of all batches."""
        return self._activations

    def coordinates(self, layer: int) -> Tensor:
        """Return z [images, neurons, rank] of all batches, and let go of it."""
        assert self._kept is not None
        wait(self._activations[layer].device)  # for the last copies
        return torch.cat(self._kept.pop(layer))


class MeansPass(CoordinateSums):
    """Moments of second-order effects.

    Parameters
    ----------
    convention
        Of effects.
    maps
        By layer.
    keep
        Whether to keep the coordinates of every image, on the CPU.
    """

    def __init__(
        self, convention: str, maps: Mapping[int, CentredMap], *, keep: bool = False
    ) -> None:
        super().__init__(maps, keep=keep)
        self.convention, self._maps = convention, maps
        for each in maps.values():
            each.centre_on(0.0)

    def see(self, batch: Seen) -> None:
        """Add the images of a batch that are finite."""
        if not bool(batch.seen.sound.all()):
            finite = batch.finite_part()
            if finite is None:
                return
            batch = finite
        seen = batch.seen
        self.positions += batch.positions
        scaled = ScaledPass(seen, self.convention, dtype_of(self._maps))
        for layer in sorted(self._maps, reverse=True):
            summed = seen.activations[layer].sum(dim=0, dtype=seen.scale.dtype)
            each = self._maps[layer]
            self.add(layer, each(scaled, layer).to(each.unit) * each.unit[:, None, None], summed)


class TotalMeansPass(CoordinateSums):
    """Moments of total effects."""

    def see(self, totals: Totals) -> None:
        """Add the images of a batch."""
        self.positions += totals.positions
        for layer, z in totals.effects.items():
            self.add(layer, z, totals.activations[layer])


class RankingPass:
    """Top images and sums around a centre, by layer.

    Parameters
    ----------
    convention
        Of effects.
    maps, centres
        By layer.
    top
        Images to keep for each neuron.
    """

    def __init__(
        self,
        convention: str,
        maps: Mapping[int, CentredMap],
        centres: Mapping[int, Centre],
        top: int,
    ) -> None:
        self.convention, self._maps = convention, maps
        self._rankings: dict[int, Ranking] = {}
        for layer, each in maps.items():
            each.centre_on(centres[layer].mean)
            self._rankings[layer] = Ranking(centres[layer], top, each.unit, each.weights.dtype)
        self.positions: list[int] = []

    def see(self, batch: Seen) -> None:
        """Rank the images of a batch that are finite, waiting for the device once if all are."""
        scaled = ScaledPass(batch.seen, self.convention, dtype_of(self._maps))
        positions = torch.tensor(batch.positions).to(scaled.scale.device, non_blocking=True)
        offers: dict[int, Offer] = {}
        # the last layers first: they have few paths, and each lets go of its activations
        for layer in sorted(self._maps, reverse=True):
            centred = self._maps[layer](scaled, layer)
            offers[layer] = self._rankings[layer].offer(centred, positions)
        sound = batch.seen.sound.all().long()
        found = torch.cat([sound[None], *(offer.counts for offer in offers.values())]).tolist()
        if not found[0]:
            offers.clear()
            finite = batch.finite_part()
            if finite is not None:
                self.see(finite)
            return
        self.positions += batch.positions
        counts = dict(zip(offers, _threes(found[1:]), strict=True))
        for layer, (broken, entries, neurons) in counts.items():
            if broken:
                raise SecondLensError(
                    f"effects of layer {layer} are too large for {dtype_of(self._maps)}: use a "
                    "wider precision"
                )
            self._rankings[layer].take(offers.pop(layer), entries, neurons)

    def ranked(self) -> dict[int, Ranked]:
        """Return what all batches tell."""
        return {layer: ranking.ranked() for layer, ranking in self._rankings.items()}


class TotalRankingPass:
    """Top images and sums around a centre, by layer, of total effects.

    Parameters
    ----------
    centres
        By layer.
    top
        Images to keep for each neuron.
    """

    def __init__(self, centres: Mapping[int, Centre], top: int) -> None:
        self._centres = centres
        self._rankings = {layer: Ranking(centre, top) for layer, centre in centres.items()}
        self.positions: list[int] = []

    def see(self, totals: Totals) -> None:
        """Rank the images of a batch."""
        self.positions += totals.positions
        for layer, z in totals.effects.items():
            positions = torch.tensor(totals.positions, device=z.device)
            self._rankings[layer].see(z - self._centres[layer].mean[:, None], positions)

    def ranked(self) -> dict[int, Ranked]:
        """Return what all batches tell."""
        return {layer: ranking.ranked() for layer, ranking in self._rankings.items()}


def dtype_of(maps: Mapping[int, CentredMap]) -> torch.dtype:
    """In which they pool."""
    return next(iter(maps.values())).weights.dtype


def _threes(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
