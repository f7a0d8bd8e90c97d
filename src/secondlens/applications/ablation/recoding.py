"""Directions in place of which stand their sparse codes, for the ablations of Figure 4."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.embedding import normalise
from ...data.vocabularies import Vocabulary
from ...errors import SecondLensError
from ...models.view import Clip
from ...sparse.pursuit import omp_paths
from ...words.describing import random_directions, rebuild

SIZES = (4, 8, 16, 32, 64, 128)
"""Texts in a code, as in Figure 4."""


class TextCodes:
    """Rebuilds directions from sparse signed texts, for every number of texts.

    Two controls stand beside them. `random texts`: the same directions from as many random unit
    vectors, which tell how much of a code is due to its freedom to choose. `random directions`:
    codes, by the texts, of directions that no neuron has.

    Parameters
    ----------
    clip
        The model that embeds the texts.
    texts
        The vocabulary.
    sizes
        Numbers of texts.
    how
        `texts.normalise`. The paper codes with embeddings as they are, `"unit"`; the published code
        with `"official"` ones.
    controls
        Whether to make the controls.

    Raises
    ------
    SecondLensError
        A size out of range.
    """

    def __init__(
        self,
        clip: Clip,
        texts: Vocabulary,
        sizes: Sequence[int] = SIZES,
        *,
        how: str = "unit",
        controls: bool = True,
    ) -> None:
        most = min(len(texts), clip.dim)
        if bad := [size for size in sizes if not 1 <= size <= most]:
            raise SecondLensError(
                f"a code cannot have {bad[0]} texts: there are {len(texts)}, and the embedding "
                f"has {clip.dim} dimensions"
            )
        self.name, self.sizes, self.controls = texts.name, sorted(sizes), controls
        self.atoms = normalise(texts.embed(clip), how)

    def __call__(
        self, directions: Float[Tensor, "chosen dim"]
    ) -> Mapping[str, Float[Tensor, "chosen dim"]]:
        """Such as "world 8": each direction as its code of eight texts of the world."""
        found = self._rebuilt(self.name, directions, self.atoms.to(directions))
        if self.controls:
            count, dim = directions.shape
            # one draw for both, from different ends
            drawn = random_directions(count + len(self.atoms), dim).to(directions)
            found |= self._rebuilt("random texts", directions, drawn[count:])
            found |= self._rebuilt("random directions", drawn[:count], self.atoms.to(directions))
        return found

    def _rebuilt(
        self,
        name: str,
        directions: Float[Tensor, "chosen dim"],
        atoms: Float[Tensor, "texts dim"],
    ) -> dict[str, Float[Tensor, "chosen dim"]]:
        parts: dict[int, list[Tensor]] = {size: [] for size in self.sizes}
        for path in omp_paths(directions, atoms, self.sizes[-1]):
            for size in self.sizes:
                parts[size].append(rebuild(path.indices[:, :size], path.coefficients(size), atoms))
        return {f"{name} {size}": torch.cat(rows) for size, rows in parts.items()}


def all_of(
    codes: Sequence[TextCodes],
) -> Callable[[Float[Tensor, "chosen dim"]], Mapping[str, Float[Tensor, "chosen dim"]]]:
    """The codes by several vocabularies; controls are those of the first."""

    def recoded(directions: Float[Tensor, "chosen dim"]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for each in codes:
            found = {**each(directions), **found}
        return found

    return recoded
