"""Options of a study, which all reproductions of the paper have in common."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click

from ..errors import SecondLensError
from .checks import check_class_folders, check_lens
from .common import PATH, ChosenModel, convention_option, with_model

OPTIONS = (
    click.option("--demo", is_flag=True, help="On the embedded world: no data needed."),
    click.option(
        "--images", type=PATH, help="ImageNet, CIFAR-10, or a folder with one for each class."
    ),
    click.option("--shifted", type=PATH, help="Shifted pictures, such as ImageNet-R."),
    click.option(
        "--lens", type=PATH, help="Of the model; fitted on training pictures if not given."
    ),
    click.option("--subset", type=click.IntRange(1), help="Take every so many-th test picture."),
    click.option(
        "--layer",
        type=click.IntRange(0),
        help="By default the paper's; with --demo, the deciding one.",
    ),
    click.option(
        "--neurons",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Drawn at random, whose indirect effects are measured.",
    ),
    click.option(
        "--fit-images",
        type=click.IntRange(50),
        help="To fit a lens on; by default 5000, with --demo 1200.",
    ),
    click.option(
        "--effect-images",
        type=click.IntRange(10),
        default=200,
        show_default=True,
        help="Of these, for statistics of direct and indirect effects.",
    ),
    click.option(
        "--texts",
        "pools",
        multiple=True,
        help="As for describe; repeatable. By default english-30k, with --demo world.",
    ),
    click.option(
        "--follow",
        type=click.Choice(["paper", "code"]),
        default="paper",
        show_default=True,
        help="The paper's text or its published code, where they disagree.",
    ),
    convention_option,
    click.option("--out", type=PATH, default=Path("secondlens-paper"), show_default=True),
)


def with_study(command: Callable[..., Any]) -> Any:
    """The options of a study, which the command gets as one argument, `study`."""

    @wraps(command)
    def parsed(
        *,
        model: ChosenModel,
        demo: bool,
        images: Path | None,
        shifted: Path | None,
        lens: Path | None,
        subset: int | None,
        layer: int | None,
        neurons: int,
        fit_images: int | None,
        effect_images: int,
        pools: tuple[str, ...],
        follow: Literal["paper", "code"],
        convention: str,
        out: Path,
        **others: Any,
    ) -> Any:
        if demo and (images is not None or not model.model.startswith("demo")):
            raise SecondLensError(
                "--demo has its own model and pictures: drop --model and --images"
            )
        if not demo and images is None:
            raise SecondLensError("name pictures with --images, or take --demo")
        check_lens(lens)
        check_class_folders(images, shifted)
        from ..reproduce.study import DEMO_FIT_IMAGES, FIT_IMAGES, Study

        weights = f" ({model.pretrained})" if model.pretrained else ""
        study = Study(
            model=f"{model.model}{weights}",
            load=model.load,
            demo=demo,
            images=images,
            shifted=shifted,
            lens_path=lens,
            out=out,
            subset=subset,
            fit_images=fit_images or (DEMO_FIT_IMAGES if demo else FIT_IMAGES),
            chosen_layer=layer,
            sample=neurons,
            effect_images=effect_images,
            pools=pools or (("world",) if demo else ("english-30k",)),
            follow=follow,
            convention=convention,
        )
        return command(study=study, **others)

    for option in reversed(OPTIONS):
        parsed = option(parsed)
    return with_model(parsed)
