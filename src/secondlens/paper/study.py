"""What reproductions have in common: a model, a lens on it, labelled pictures, and settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from ..applications.ablation.accuracy import Ablation, ablate
from ..applications.ablation.recoding import SIZES, TextCodes
from ..data.labelled import TEMPLATE, Labelled, evenly, labelled, training_pictures
from ..data.reader import Reader
from ..data.sources import ImageSource, Subset
from ..data.vocabularies import Vocabulary, object_names, vocabulary
from ..demo.scenes import Scenes, World
from ..demo.world import NAMES
from ..errors import SecondLensError
from ..formatting import differences
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..models.view import Clip
from ..storage.files import unfinished
from ..storage.locks import locked
from ..storage.remote import remove
from ..words.describing import default_size
from .pools import extended
from .results import Setting

TEST_SEED, LAYER_SEED, SHIFTED_SEED = 41, 42, 43
"""Of scenes to test on, to choose a layer by, and in another style."""


def scenes(seed: int, count: int, *, planted: bool, style: bool = False) -> Labelled:
    """Single-object scenes of the embedded world, labelled with the object."""
    world = World(planted=planted, split="style" if style else "train")
    source = Scenes(world, seed, count, single=True)
    labels = tuple(NAMES.index(source.scene(i).objects[0]) for i in range(count))
    name = "unseen scenes in a held-out style" if style else "unseen scenes"
    return Labelled(name=name, source=source, labels=labels, classes=object_names())


def kept_lens(path: Path, clip: Clip, source: ImageSource, convention: str) -> Lens:
    """The lens that an earlier run has left, as this run would fit it.

    Raises
    ------
    SecondLensError
        It was fitted with other settings, or another process is writing it.
    """
    with locked(path):  # the fit may have been stopped at its very end
        remove(unfinished(path))
    found = Lens.load(path)
    found.check_model(clip)
    # what lies beside the pictures is skipped too
    ids = {*found.image_ids, *(set(found.skipped) & set(source.ids))}
    differing = differences(
        {"pictures": len(ids), "convention": found.convention},
        {"pictures": len(source.ids), "convention": convention},
    )
    if differing or ids != set(source.ids):
        raise SecondLensError(
            f"{path} was fitted with {differing or 'other pictures'}: remove it, or name a new "
            "folder with --out"
        )
    return found


def _is_lens(path: Path) -> bool:
    return (path / "lens.json").is_file()


PAPER_MODEL = "ViT-B-32 (openai)"
PAPER_SECOND_MODEL = "ViT-L-14 (laion2b_s32b_b82k)"
PAPER_LAYER = 9
FIT_IMAGES = 5000
CODE_STEP = 10
CODE_FIT_STEP = 250
"""The published code tests on every tenth picture, and fits on every 250th: 5,124 of ImageNet."""
FEWEST_TO_FIT = 50
"""Of a smaller set than ImageNet, every 250th picture may be too few."""

DEMO_FIT_IMAGES = 1200
DEMO_TEST_IMAGES = 600
DEMO_LAYER_IMAGES = 200
BUDGET_IMAGES = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondModel:
    """A model for Figures 9 and 12."""

    model: str
    published: str | None
    load: Callable[[], Clip]


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """One model and its pictures; what takes time is made when it is first asked for.

    Parameters
    ----------
    model
        What results call it, such as "ViT-B-32 (openai)".
    published
        What its weights were published as, in the same words; None if that is not known.
    load
        Loads it.
    demo
        Whether pictures are scenes of the embedded world.
    images
        ImageNet, or what `labelled` takes; to fit on, its training pictures are taken.
    shifted
        Pictures of another distribution, such as ImageNet-R.
    lens_path
        A lens that was fitted already.
    out
        Where results are written, and a lens that has to be fitted is kept.
    subset
        Take every so many-th test picture; by default the paper's choice for each result.
    fit_images
        Pictures to fit on, evenly spaced; by default as many as the paper's text says, or every
        250th, as its code takes them.
    chosen_layer
        By default the paper's, counted from the end; in the embedded world the layer that costs
        most on scenes of their own.
    shown
        Neurons of that layer that tables and pictures show; by default the paper's in its model and
        layer, else the most selective ones.
    sample
        Neurons whose indirect effects are measured, drawn at random.
    effect_images
        Pictures of the fit that they are measured on.
    pools
        Texts to describe neurons with.
    follow
        Where the paper's text and its published code disagree, which one.
    convention
        Of a lens that has to be fitted.
    masks
        Images with masks, for Table 4.
    second_model
        For Figures 9 and 12; by default those are of the study's own.
    paper_words
        Whether built-in pools get the words of the paper that they lack.
    """

    model: str
    published: str | None
    load: Callable[[], Clip]
    demo: bool
    images: Path | str | None
    shifted: Path | str | None
    lens_path: Path | None
    out: Path
    subset: int | None
    fit_images: int | None
    chosen_layer: int | None
    shown: tuple[int, ...]
    sample: int
    effect_images: int
    pools: tuple[str, ...]
    follow: Literal["paper", "code"]
    convention: str
    paper_words: bool = False
    masks: Path | None = None
    second_model: SecondModel | None = None

    @cached_property
    def clip(self) -> Clip:
        """The model."""
        return self.load()

    @cached_property
    def test(self) -> Labelled:
        """The pictures that accuracies are measured on: all of them."""
        if self.demo:
            return self.scenes(TEST_SEED, DEMO_TEST_IMAGES)
        if self.images is None:
            raise SecondLensError("name pictures with --images, or take --demo")
        return self.prompted(labelled(self.images))

    @cached_property
    def shifted_test(self) -> Labelled:
        """Pictures of another distribution."""
        if self.demo:
            return self.scenes(SHIFTED_SEED, DEMO_TEST_IMAGES, style=True)
        if self.shifted is None:
            raise SecondLensError("name a folder such as ImageNet-R with --shifted")
        return self.prompted(labelled(self.shifted, all_classes=self.follow == "code"))

    def some(self, pictures: Labelled, paper: int) -> Labelled:
        """Every `step`-th picture."""
        return pictures.every(self.step(paper))

    def step(self, paper: int) -> int:
        """`subset`, or else what the paper's text says; its code takes every tenth of all sets. Of
        scenes, all."""
        default = CODE_STEP if self.follow == "code" else paper
        return self.subset or (1 if self.demo else default)

    def scenes(self, seed: int, count: int, *, style: bool = False) -> Labelled:
        """Single-object scenes of the embedded world, in the model's own kind of it."""
        return scenes(seed, count, planted=self.clip.name == "demo", style=style)

    def prompted(self, pictures: Labelled) -> Labelled:
        """With the prompts of the paper's text or of its code."""
        return pictures if self.follow == "code" else pictures.prompted([TEMPLATE])

    def pixels(self, source: ImageSource, place: int) -> Float[Tensor, "3 height width"]:
        """One picture as the model sees it."""
        reader = Reader(source=source, clip=self.clip, positions=[place])
        batches = list(reader)
        reader.check_read()
        return batches[0].pixels[0]

    def classifier(self, pictures: Labelled) -> Float[Tensor, "classes dim"]:
        """Unit embeddings of the classes of some pictures."""
        return pictures.classes.embed(self.clip, progress=not self.demo)

    @cached_property
    def fit_source(self) -> ImageSource:
        """The pictures that a lens is fitted on."""
        if self.demo:
            from ..demo.scenes import FIT_SEED, Scenes, World

            planted = self.clip.name == "demo"
            return Scenes(World(planted=planted), FIT_SEED, self.fit_images or DEMO_FIT_IMAGES)
        if self.images is None:
            raise SecondLensError("name ImageNet with --images, or a lens with --lens")
        training = training_pictures(self.images)
        every = len(training.ids) // CODE_FIT_STEP
        if self.fit_images is None and self.follow == "code" and every >= FEWEST_TO_FIT:
            return Subset(training, range(0, every * CODE_FIT_STEP, CODE_FIT_STEP))
        return evenly(training, self.fit_images or FIT_IMAGES)

    @cached_property
    def reference(self) -> ImageSource:
        """Some of them, for the statistics of effects that a lens does not have."""
        return evenly(self.fit_source, self.effect_images)

    @cached_property
    def budget_pictures(self) -> ImageSource:
        """Unseen pictures that total effects are divided on: a run for each neuron and picture."""
        return evenly(self.test.source, BUDGET_IMAGES)

    @cached_property
    def lens(self) -> Lens:
        """The lens that was named; one that an earlier run has left; or a new one of all layers."""
        if self.lens_path is not None:
            found = Lens.load(self.lens_path)
            found.check_model(self.clip)
            return found
        return self._fitted(self._kept(), "all")

    def check_exact(self) -> None:
        """Raise `SecondLensError`, before anything is fitted, if effects are "official"."""
        if self.lens_path is not None:
            self.lens.check_exact()
        elif self.convention != "exact":
            raise SecondLensError(
                "official effects share a part that belongs to no neuron: take --convention exact "
                "for this result"
            )

    @cached_property
    def layer_lens(self) -> Lens:
        """A lens with `layer` in it: `lens` where it is there, else a new one of that layer."""
        there = self.lens_path is not None or "lens" in vars(self) or _is_lens(self._kept())
        if self.demo or there:
            self.lens[self.layer]
            return self.lens
        return self._fitted(self._kept(f"-layer-{self.layer}"), [self.layer])

    def _kept(self, suffix: str = "") -> Path:
        return self.out / "lens" / f"{self.model.replace('/', '-')}{suffix}"

    def _fitted(self, kept: Path, layers: Sequence[int] | Literal["all"]) -> Lens:
        source, convention = self.fit_source, self.convention
        if _is_lens(kept):
            return kept_lens(kept, self.clip, source, convention)
        return fit(self.clip, source, layers, convention=convention, out=kept, progress=True)

    @cached_property
    def layer(self) -> int:
        """The layer that single-layer results are about."""
        if self.chosen_layer is not None or not self.demo:
            paper = self.clip.layers - 12 + PAPER_LAYER
            layer = paper if self.chosen_layer is None else self.chosen_layer
            self.clip.check_layer(layer)
            return layer
        found = self.ablate(self.scenes(LAYER_SEED, DEMO_LAYER_IMAGES))
        return min(found.layers, key=lambda layer: found.accuracy(layer, "all"))

    @cached_property
    def texts(self) -> list[Vocabulary]:
        """The vocabularies to describe neurons with."""
        found = [vocabulary(pool) for pool in self.pools]
        return [extended(texts) for texts in found] if self.paper_words else found

    @property
    def atoms(self) -> str:
        """How text embeddings become atoms: as they are, or as the published code scales them."""
        return "unit" if self.follow == "paper" else "official"

    def code_size(self, texts: Vocabulary) -> int:
        """Texts in a description: the paper's 128 where the embedding is wide enough."""
        return default_size(self.clip, texts)

    def code_sizes(self, texts: Vocabulary) -> list[int]:
        """Numbers of texts in Figure 4; those of a narrow embedding begin lower."""
        most = min(len(texts), self.clip.dim)
        return [size for size in (1, 2, *SIZES) if size <= most and (size >= 4 or most < 512)]

    @cached_property
    def ablation(self) -> Ablation:
        """Second-order effects of every layer ablated, on the test pictures."""
        return self.ablate(self.some(self.test, 1))

    def ablate_codes(self, texts: Vocabulary, pictures: Labelled) -> Ablation:
        """The one layer with its directions replaced by their codes."""
        codes = TextCodes(self.clip, texts, self.code_sizes(texts), how=self.atoms)
        return self.ablate(
            pictures,
            lens=self.layer_lens,
            layers=[self.layer],
            recode=codes,
            shrunk=self.follow == "code",
        )

    def ablate(self, pictures: Labelled, *, lens: Lens | None = None, **options: Any) -> Ablation:
        """`ablate` on these pictures; by default with the lens of all layers."""
        classifier = self.classifier(pictures)
        return ablate(
            *(self.clip, lens or self.lens, pictures.source, pictures.labels, classifier),
            progress=True,
            **options,
        )

    @cached_property
    def second(self) -> "Study":
        """The study of another model: the one that was named; in the embedded world, the twin; else
        this one."""
        other = self._twin() if self.demo else self.second_model
        if other is None:
            return self
        return replace(
            self,
            model=other.model,
            published=other.published,
            load=other.load,
            lens_path=None,
            # a layer and neurons were named for the first model
            chosen_layer=self.chosen_layer if self.demo else None,
            shown=(),
        )

    def _twin(self) -> SecondModel:
        from ..models.loading import load

        device = self.clip.device
        return SecondModel(
            model="demo-twin", published=None, load=lambda: load("demo-twin", device=device)
        )

    @property
    def known_model(self) -> str:
        """The model for a table of settings: what its weights are, or else what it is called."""
        return self.published or self.model

    def settings(
        self,
        pictures: Labelled | None = None,
        *,
        model: str = PAPER_MODEL,
        paper_pictures: str = "ImageNet validation",
        step: int = 1,
        layers: tuple[str, str] | None = None,
        more: Sequence[Setting] = (),
    ) -> list[Setting]:
        """Settings that all results have in common, and more.

        Parameters
        ----------
        pictures
            What accuracies are measured on.
        paper_pictures, step
            What the paper measures them on: of which pictures every so many-th.
        model, layers
            The paper's model; our layers and the paper's.
        more
            Settings of this result alone.
        """
        found = [Setting(name="model", ours=self.known_model, paper=model)]
        if pictures is not None:
            prompts = len(pictures.classes.prompts[0])
            templates = f'"{TEMPLATE}"' if prompts == 1 else f"{prompts} prompts a class"
            found += [
                Setting(name="pictures", ours=pictures.name, paper=paper_pictures),
                Setting(name="of these", ours=_every(self.step(step)), paper=_every(step)),
                Setting(
                    name="classes",
                    ours=f"{len(pictures.classes):,}",
                    paper="1,000" if "validation" in paper_pictures else "not said",
                    harmless="validation" not in paper_pictures,
                ),
                Setting(
                    name="prompts",
                    ours=templates,
                    paper=f'"{TEMPLATE}"',
                    # an example in the text, which leaves open whether there are others
                    harmless=prompts in (1, 80),
                ),
            ]
        if layers is not None:
            found.append(Setting(name="layers", ours=layers[0], paper=layers[1]))
        lens = self.layer_lens
        count = len(lens.image_ids)
        about = 0.9 * FIT_IMAGES <= count <= 1.1 * FIT_IMAGES
        return [
            *found,
            Setting(
                name="pictures of the fit",
                ours="about 5,000" if about else f"{count:,}",
                paper="about 5,000",
            ),
            Setting(name="top images", ours=str(lens.top), paper="100"),
            Setting(
                name="LayerNorm",
                ours={
                    "exact": "means and biases with those they belong to",
                    "official": "means and biases split equally",
                }[lens.convention],
                paper="means and biases split equally",
            ),
            *more,
        ]


def _every(step: int) -> str:
    return "all" if step == 1 else f"every {step}th"
