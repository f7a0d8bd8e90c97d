"""What attacks on different pairs of classes share, with defaults for the embedded models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clip import DEMOS
from ..clip.view import Clip
from ..describe.search import description_of
from ..errors import SecondLensError
from ..lens import Codes, Lens
from ..texts import Vocabulary, vocabulary
from ..texts.world import object_names
from . import gallery
from .draw import Drawer
from .judge import Check, Exact, Zeroshot
from .methods import METHODS, selector
from .report import Report
from .run import Parts, run
from .select import NEURONS, Pair, TooClose
from .sprites import SpriteDrawer
from .taxonomy import Taxonomy
from .write import TemplateWriter, Writer

MOST_WORDS = 25
"""The paper's, of a pool of 30,000."""

SHARE_OF_POOL = 1 / 32
"""Words of a small pool, at most: 8 of the embedded world's 274."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacker:
    """Everything that attacks on different pairs of classes share."""

    clip: Clip
    lens: Lens
    texts: Vocabulary
    classes: Vocabulary
    parts: Parts
    settings: dict[str, Any]

    def __call__(self, pair: Pair, out: str | Path, *, progress: bool = False) -> Report:
        """Attack one pair, or do what is missing of it, and write its gallery.

        Raises
        ------
        SecondLensError
            The same class twice, an unknown class, a folder that holds something else, or a step
            that cannot go on.
        """
        if pair.draw == pair.mistake_for:
            raise SecondLensError(f"{pair.draw} cannot be mistaken for itself: name two classes")
        texts = self.classes.embed(self.clip)
        judge = Zeroshot(self.clip, self.classes.labels, texts, pair)
        report = run(pair, self.parts, judge, Path(out), settings=self.settings, progress=progress)
        gallery.write(self.clip, self.lens, report, judge.v, Path(out))
        return report


def attacker(
    clip: Clip,
    lens: Lens,
    *,
    classes: "str | Path | Iterable[str] | Vocabulary | None" = None,
    texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
    method: str = METHODS[0],
    layers: Sequence[int] | None = None,
    neurons: int = NEURONS,
    whole_codes: bool = False,
    words: int | None = None,
    captions: int = 10,
    images: int = 100,
    seed: int = 0,
    too_close: TooClose | None = None,
    writer: Writer | None = None,
    drawer: Drawer | None = None,
    check: Check | None = None,
) -> Attacker:
    """An `Attacker` with the defaults of `attack`, which explains the parameters."""
    lens.check_model(clip)
    embedded = clip.name in DEMOS
    if not embedded:
        missing = {"classes": classes, "too_close": too_close, "drawer": drawer, "check": check}
        if unnamed := [name for name, given in missing.items() if given is None]:
            raise SecondLensError(
                f"an attack on {clip.name} needs {unnamed[0].replace('_', ' ')}: only the embedded "
                "models have a world of their own"
            )
    pool, codes = _described(lens, texts)
    if (wanted := _words(words, len(pool))) < 1 or min(captions, images) < 1:
        raise SecondLensError("an attack needs at least one word, one caption and one image")
    parts = Parts(
        selector=selector(
            method,
            clip,
            lens,
            pool,
            codes,
            layers=layers,
            neurons=neurons,
            whole_codes=whole_codes,
            seed=seed,
        ),
        too_close=too_close or Taxonomy(),
        writer=writer or TemplateWriter(),
        drawer=drawer or SpriteDrawer(),
        check=check or Exact(),
        words=wanted,
        captions=captions,
        images=images,
        seed=seed,
    )
    settings = {
        "model": lens.model["name"],
        "weights": clip.weights_hash,
        "lens_images": len(lens.image_ids),
        "texts": pool.name,
        "whole_codes": whole_codes,
        "layers": list(layers or lens.layers),
        "neurons": neurons,
    }
    names = object_names() if classes is None else vocabulary(classes)
    return Attacker(clip=clip, lens=lens, texts=pool, classes=names, parts=parts, settings=settings)


def _described(lens: Lens, texts: Any) -> tuple[Vocabulary, Codes]:
    """The pool, and the description of the lens in its words."""
    from ..texts.builtin import BUILTIN

    pool = None if texts is None else vocabulary(texts)
    codes = description_of(lens, None if pool is None else pool.name)
    if pool is None:
        name = next(name for name, each in lens.codes.items() if each is codes)
        pool = BUILTIN[name]() if name in BUILTIN else vocabulary(codes.labels, name=name)
    if pool.labels != codes.labels:
        raise SecondLensError(
            f"the lens was described with other texts of the name {pool.name}: describe it again"
        )
    return pool, codes


def _words(asked: int | None, pool: int) -> int:
    return min(MOST_WORDS, max(1, int(SHARE_OF_POOL * pool))) if asked is None else asked
