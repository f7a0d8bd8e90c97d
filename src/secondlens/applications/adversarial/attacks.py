"""Attacks on one pair of classes, or on every ordered pair of a list, and what these share."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from ...arguments import checked
from ...data.vocabularies import Vocabulary, object_names, vocabulary
from ...devices import undisturbed
from ...engine.local import Local
from ...engine.pool import Engine
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.loading import DEMOS
from ...models.view import Clip
from ...storage.files import check_empty, save_json
from ...storage.locks import writing
from ...words.describing import described
from . import gallery
from .captioning import Captioner, TemplateCaptioner
from .earlier import OLD_NAMES, new_names
from .generation import ImageGenerator
from .judging import ExactJudge, Judge, RefereeJudge, Zeroshot
from .runs import Report, Steps, folder_name, run
from .selection import METHODS, NEURONS, NothingLeft, Pair, TooClose, selector
from .sprites import SpriteGenerator, Taxonomy

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
    steps: Steps
    settings: dict[str, Any]

    def __call__(self, pair: Pair, out: str | Path, *, progress: bool = False) -> Report:
        """Attack one pair, or do what is missing of it, and write its gallery.

        Raises
        ------
        SecondLensError
            The same class twice, an unknown class, a folder that holds something else or that
            another process writes, or a step that cannot go on.
        """
        if pair.draw == pair.mistake_for:
            raise SecondLensError(f"{pair.draw} cannot be mistaken for itself: name two classes")
        texts = self.classes.embed(self.clip)
        zeroshot = Zeroshot(self.clip, self.classes.labels, texts, pair)
        with writing(out):
            report = run(
                pair, self.steps, zeroshot, Path(out), settings=self.settings, progress=progress
            )
            gallery.write(self.clip, self.lens, report, zeroshot.v, Path(out))
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
    captioner: Captioner | None = None,
    image_generator: ImageGenerator | None = None,
    judge: Judge | None = None,
) -> Attacker:
    """An `Attacker` with the defaults of `attack`, which explains the parameters."""
    lens.check_model(clip)
    if isinstance(judge, RefereeJudge) and judge.clip.weights_hash == clip.weights_hash:
        raise SecondLensError(
            f"the referee is {clip.name} itself, which is attacked: name another model"
        )
    embedded = clip.name in DEMOS
    if not embedded:
        missing: dict[str, Any] = {"classes": classes, "too_close": too_close}
        missing |= {"image_generator": image_generator, "judge": judge}
        if unnamed := [name for name, given in missing.items() if given is None]:
            raise SecondLensError(
                f"an attack on {clip.name} needs {unnamed[0].replace('_', ' ')}: only the embedded "
                "models have a world of their own"
            )
    pool, codes = described(lens, texts)
    if (wanted := _words(words, len(pool))) < 1 or min(captions, images) < 1:
        raise SecondLensError("an attack needs at least one word, one caption and one image")
    steps = Steps(
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
        captioner=captioner or TemplateCaptioner(),
        image_generator=image_generator or SpriteGenerator(),
        judge=judge or ExactJudge(),
        words=wanted,
        captions=captions,
        images=images,
        seed=seed,
    )
    names = object_names() if classes is None else vocabulary(classes)
    settings = {
        "model": lens.model["name"],
        "weights": clip.weights_hash,
        "activation_function": clip.activation,
        "lens_images": len(lens.image_ids),
        "texts": pool.name,
        "lens_description": _digest(
            lens.image_ids, lens.top, lens.convention, codes.labels, codes.normalise, codes.size
        ),
        "class_names": names.name,
        "class_texts": _digest(names.labels, names.prompts),
        "whole_codes": whole_codes,
        "layers": list(layers or lens.layers),
        "neurons": neurons,
    }
    if lens.paths == "all":
        settings |= {"paths": "all"}
    return Attacker(clip=clip, lens=lens, texts=pool, classes=names, steps=steps, settings=settings)


def _digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _words(asked: int | None, pool: int) -> int:
    return min(MOST_WORDS, max(1, int(SHARE_OF_POOL * pool))) if asked is None else asked


@checked
@undisturbed
def attack(
    clip: Clip,
    lens: Lens,
    draw: str,
    mistake_for: str,
    out: str | Path,
    *,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Pictures of `draw` that the model takes for `mistake_for`, and how many of them it does.

    For the embedded models all parts have defaults; any other model needs `classes`, `too_close`,
    `image_generator` and `judge`. An attack that was interrupted goes on when called again.

    Parameters
    ----------
    clip, lens
        A model, and a lens fitted on it and described.
    draw, mistake_for
        Two of the classes.
    out
        The run folder: see `run`.
    options
        - `classes`: what `vocabulary` takes; the pair is among them;
        - `texts`: the words to choose from, which the lens was described with; by default those
          of its first description;
        - `method`: one of `METHODS`; `layers`, by default all fitted, and `neurons`, 100;
        - `whole_codes`: take the whole codes of the description, as the paper does, and not the
          brief ones;
        - `words`: to keep, by default 25 and at most 1 in 32 of the pool; `captions`, 10;
          `images`, 100; `seed`;
        - `too_close`, `captioner`, `image_generator`, `judge`: who filters words, writes captions,
          draws them, and says whether a picture counts.

    Raises
    ------
    SecondLensError
        The same class twice, an unknown class, another model's lens, one without a description,
        a folder that holds something else or that another process writes, no word or caption that
        may be used, or a step that fails.
    """
    made = attacker(clip, lens, **_new_options(options))
    return made(Pair(draw=draw, mistake_for=mistake_for), out, progress=progress)


def _new_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options under today's names, with a warning for each old one."""
    for old in options.keys() & OLD_NAMES.keys():
        message = f"the option {old} of attack is called {OLD_NAMES[old]} now; {old} ends with 0.3"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return new_names(options)


def attack_pairs(
    made: Attacker,
    names: Sequence[str],
    out: str | Path,
    *,
    engine: Engine | None = None,
    progress: bool = False,
) -> tuple[list[Report], dict[Pair, str]]:
    """Attack every ordered pair of some classes, each in a folder of its own below `out`.

    Pairs for which no word or caption is left are listed with the reason; the others go on. An
    index of all galleries is written at the end. An engine, as in `fit`, attacks several pairs at a
    time; all its workers must reach `out`.

    Raises
    ------
    SecondLensError
        As `attack`, or fewer than two classes.
    """
    if len(set(names)) < 2:
        raise SecondLensError("pairs need two different classes at least: list more of them")
    if unknown := [name for name in names if name not in made.classes.labels]:
        raise SecondLensError(f"there is no class {unknown[0]!r}: list classes of the vocabulary")
    folder = Path(out)
    pairs = [
        Pair(draw=drawn, mistake_for=wrong)
        for drawn, wrong in permutations(dict.fromkeys(names), 2)
    ]
    engine = engine or Local()
    # side by side, the bars of several pairs would say nothing
    shown = progress and engine.shared == "nobody"
    with writing(folder):
        if not (folder / "pairs.json").is_file():
            check_empty(folder)
        save_json(folder / "pairs.json", {"classes": list(names)})
        with engine.start(partial(_attacked, made, folder.absolute(), shown)) as workers:
            found = dict(workers.map(pairs))
        reports = [found[pair] for pair in pairs if isinstance(found[pair], Report)]
        left_out = {pair: found[pair] for pair in pairs if isinstance(found[pair], str)}
        if not reports:
            raise SecondLensError(
                f"none of the pairs could be attacked: {next(iter(left_out.values()))}"
            )
        gallery.write_index(reports, left_out, folder)
    return reports, left_out


def _attacked(made: Attacker, folder: Path, progress: bool, pair: Pair) -> Report | str:
    """The report of one pair, or the reason why it is left out."""
    try:
        return made(pair, folder / folder_name(pair), progress=progress)
    except NothingLeft as error:
        return str(error)
