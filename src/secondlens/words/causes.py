"""Whether drawing a thing in raises the effect of the neurons that fire on pictures of it.

A name says that a neuron's effect is larger on pictures that hold a text. The cause may be
something else that such pictures hold: a neuron that fires on scarves finds pictures of snow where
the two go together. Pairs of pictures that differ in nothing but the thing tell the two apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..effects.projections import project
from ..effects.value_paths import chunks
from ..errors import SecondLensError
from ..lens.lens import Lens, projectors
from ..lens.names import Names
from ..models.view import Clip
from ..progress import tracked
from .naming import FALSE_DISCOVERIES, benjamini_hochberg, binomial_tail

Picture = Image.Image | Tensor
Pair = Callable[[str, int], tuple[Picture, Picture]]
"""A picture that holds a text, and the same picture without it, for a text and a seed."""
PAIRS, LEAST_PAIRS = 16, 6
TEXTS_PER_PASS = 16


@checked
@undisturbed
@torch.no_grad()
def confirm(
    clip: Clip,
    lens: Lens,
    pair: Pair,
    *,
    names: str | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Names:
    """Ask of every name in a lens whether its thing raises the neuron's effect.

    For every text that is a name, pictures are drawn with and without it. A name is confirmed if
    the effect along the neuron's direction is larger with the thing in more pairs than chance
    gives: the one-sided sign test, at 5 % false discoveries after Benjamini and Hochberg over all
    names. A name that is not confirmed only goes with what the neuron fires on, see `Names.title`.
    The result takes the place of the names in the lens.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        With names.
    pair
        Draws a text in, such as `secondlens.demo.scenes.with_and_without` for the embedded world,
        or an image generator with the same seed for two captions.
    names
        Which names of the lens, as in `Lens.names`; by default the first.
    pairs
        For each text; at least 6.
    seed
        Of the first pair; the others follow.

    Raises
    ------
    SecondLensError
        Another model's lens, one without such names, too few pairs, or a picture that cannot be
        drawn.
    """
    lens.check_model(clip)
    known = lens.first_names if names is None else lens.names.get(names)
    if known is None:
        raise SecondLensError(
            f"this lens has no names{f' {names!r}' if names else ''}: run secondlens name first"
        )
    if pairs < LEAST_PAIRS:
        raise SecondLensError(f"{pairs} pairs tell too little: draw at least {LEAST_PAIRS}")
    rose = {n: torch.zeros_like(each) for n, each in known.texts.items()}
    texts = sorted({t for each in known.texts.values() for t in each.flatten().tolist()} - {-1})
    along = projectors(clip, lens, {n: lens[n].directions[:, None] for n in known.texts})
    for some in tracked(list(chunks(len(texts), TEXTS_PER_PASS)), "pairs drawn", progress):
        own = texts[some]
        source = _Drawn(pair, [known.labels[text] for text in own], range(seed, seed + pairs))
        seen = project(clip, source, along, batch_size=batch_size)
        if seen.skipped:
            unreadable, reason = next(iter(seen.skipped.items()))
            raise SecondLensError(f"the picture {unreadable} was not drawn: {reason}")
        for layer, products in seen.products.items():
            drawn = products[:, :, 0].unflatten(0, (len(own), pairs, 2))
            larger = (drawn[:, :, 0] > drawn[:, :, 1]).sum(1).cpu()
            for place, text in enumerate(own):
                neurons, ranks = (known.texts[layer] == text).nonzero(as_tuple=True)
                rose[layer][neurons, ranks] = larger[place, neurons]
    found = replace(known, pairs=pairs, rose=rose, confirmed=_confirmed(known, rose, pairs))
    lens.names[known.name] = found
    return found


def _confirmed(names: Names, rose: dict[int, Tensor], pairs: int) -> dict[int, Tensor]:
    """Which names pass the sign test, by layer, over all names together."""
    there = {layer: each >= 0 for layer, each in names.texts.items()}
    counts = torch.cat([each[there[layer]] for layer, each in rose.items()])
    q = benjamini_hochberg(binomial_tail(counts, pairs, torch.full(counts.shape, 0.5)))
    passed = {layer: torch.zeros_like(each) for layer, each in there.items()}
    for layer, own in zip(rose, q.split([int(e.sum()) for e in there.values()]), strict=True):
        passed[layer][there[layer]] = own <= FALSE_DISCOVERIES
    return passed


@dataclass(frozen=True)
class _Drawn:
    """Pairs of pictures: texts, then seeds, then with and without."""

    pair: Pair
    texts: Sequence[str]
    seeds: range

    @property
    def ids(self) -> list[str]:
        sides = ("with", "without")
        return [f"{seed}-{side}-{t}" for t in self.texts for seed in self.seeds for side in sides]

    def load(self, index: int) -> Picture:
        """One side of a pair."""
        number, side = divmod(index, 2)
        text, seed = divmod(number, len(self.seeds))
        return self.pair(self.texts[text], self.seeds[seed])[side]
