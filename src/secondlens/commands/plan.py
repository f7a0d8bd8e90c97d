"""`secondlens plan`."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    POSITIVE,
    STORES,
    ChosenModel,
    PictureChoice,
    batch_option,
    console,
    convention_option,
    json_option,
    layer_numbers,
    print_json,
    shape_alone,
    tables,
    with_choice,
    with_model,
)

if TYPE_CHECKING:
    from ..lens.capacity import Rates, Timing
    from ..lens.plan import Plan
    from ..models.view import Clip

UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


@click.command()
@click.argument("images", type=click.Path(), required=False)
@click.option("--images", "how_many", help="The same, such as 50000 or 400M.")
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option(
    "--top", type=click.IntRange(2), help="Top images a neuron; by default 2 %, at most 100."
)
@convention_option
@click.option("--store", type=click.Choice(STORES), default="auto", show_default=True)
@batch_option
@click.option(
    "--out", type=click.Path(), default="lens", show_default=True, help="Where it will be."
)
@click.option(
    "--paths",
    type=click.Choice(("value", "all")),
    default="value",
    show_default=True,
    help="Whose effects, as fit takes it.",
)
@click.option(
    "--axes", type=click.IntRange(1), help="Of the embedding, along which total effects are read."
)
@click.option("--gpus", type=click.IntRange(1), help="Workers of a cluster, with a GPU each.")
@click.option("--tflops", type=POSITIVE, help="Of a GPU; by default those of --device here.")
@click.option("--decoders", type=click.IntRange(1), default=8, show_default=True, help="A worker.")
@click.option("--decoded", type=POSITIVE, help="Pictures a second and core; by default as here.")
@click.option("--network", type=POSITIVE, default=1.0, show_default=True, help="GB/s of a worker.")
@click.option(
    "--bandwidth", type=POSITIVE, default=25.0, show_default=True, help="GB/s of the store."
)
@click.option("--picture", type=POSITIVE, default=100.0, show_default=True, help="kB of a file.")
@click.option("--memory", type=POSITIVE, default=80.0, show_default=True, help="GB of a worker.")
@click.option("--shard-size", type=click.IntRange(1), help="By default 4 shards a worker.")
@json_option
@with_choice
@with_model
def plan(
    images: str | None,
    how_many: str | None,
    choice: PictureChoice,
    model: ChosenModel,
    **settings: Any,
) -> None:
    """Say what a fit on IMAGES (a folder, or a number) will need: passes, memory, disk, time.

    Time is measured on a few batches of noise, and leaves out the decoding of pictures. With
    --gpus, the fit of a cluster is simulated, stage by stage, from rates that are printed too.

    Example: secondlens plan photos

    Example: secondlens plan 50000 --model ViT-B-32 --layers 8,9,10

    
    Example: secondlens plan photos --paths all

    
    Example: secondlens plan --model ViT-L-14 --images 400M --gpus 64 --tflops 100
    """
    wanted = how_many or images
    if wanted is None:
        raise SecondLensError("say how many images: a folder, or a number such as 50000 or 400M")
    if model.tower == "text":
        raise SecondLensError(
            "plans are of fits on pictures: texts are short, so fit with --tower text at once"
        )
    layer_numbers(settings["layers"])
    if settings["gpus"] is not None and settings["paths"] == "all":
        raise SecondLensError(
            "a cluster is simulated for value paths only: leave out --gpus or --paths all"
        )
    count = count_of(wanted, choice)
    if settings["gpus"] is None:
        _here(count, model, **settings)
    else:
        _cluster(count, model, **settings)


def count_of(images: str, choice: PictureChoice) -> int:
    """A number such as 50000 or 400M, or how many pictures a folder holds."""
    unit = UNITS.get(images[-1:], 1)
    number = images if unit == 1 else images[:-1]
    if number.replace(".", "", 1).isdecimal():
        return int(float(number) * unit)
    return len(choice.source(images).ids)


def _here(count: int, model: ChosenModel, as_json: bool, **settings: Any) -> None:
    from ..data.reader import default_batch
    from ..lens.fitting import checked_axes
    from ..lens.moments import top_count
    from ..lens.plan import make_plan, together
    from ..lens.plan import size as bytes_as_text
    from ..lens.rehearsal import seconds_for_axes, total_pace, value_pace

    with shape_alone(model.model, model.pretrained):
        clip = model.load(untrained=True)
    convention, batch_size = settings["convention"], settings["batch_size"] or default_batch(clip)
    axes = checked_axes(clip, settings["paths"], settings["axes"], convention)
    planned = partial(
        make_plan,
        clip,
        count,
        clip.chosen_layers(layer_numbers(settings["layers"])),
        top=top_count(settings["top"], count),
        convention=convention,
        batch_size=batch_size,
        store=settings["store"],
        out=settings["out"],
        shard_size=settings["shard_size"],
    )
    plans = [planned()] if axes is None else [planned(), planned(axes=axes)]
    for plan in plans:
        tables(as_json).print(str(plan), highlight=False)
    paces = [value_pace(clip, plans[0], batch_size, convention)]
    seconds = [paces[0].seconds(plans[0])]
    need = together(plans)
    if axes is not None:
        paces.append(total_pace(clip, plans[1], batch_size))
        finding = seconds_for_axes(clip, plans[1], *paces)
        seconds.append(finding + paces[1].seconds(plans[1]))
    if as_json:
        documents = [
            _as_document(plan) | {"seconds_per_image_and_pass": pace.per_image, "seconds": taken}
            for plan, pace, taken in zip(plans, paces, seconds, strict=True)
        ]
        if axes is not None:
            documents[0] |= {
                "all_paths": documents[1] | {"seconds_for_axes": finding},
                "together": vars(need) | {"seconds": sum(seconds)},
            }
        print_json(documents[0])
        return
    for plan, pace, taken in zip(plans, paces, seconds, strict=True):
        whose, more = "", ""
        if axes is not None:
            whose = "value paths: " if plan.axes is None else "all paths: "
            more = "" if plan.axes is None else f"{duration(finding)} for the axes, "
        each = pace.per_image
        an_image = f"{each:.3g} s" if each >= 1 else f"{1000 * each:.3g} ms"
        console.print(
            f"{whose}about {duration(taken)} in all: {more}{duration(pace.fixed)} however many "
            f"images there are, and {an_image} an image"
            f"{' and pass' if plan.passes > 1 else ''}",
            highlight=False,
        )
    if axes is not None:
        console.print(
            f"together about {duration(sum(seconds))}, up to {bytes_as_text(need.memory)} of "
            f"memory besides the model, {bytes_as_text(need.disk)} of work files, "
            f"{bytes_as_text(need.lens)} for the lens",
            highlight=False,
        )


def _cluster(count: int, model: ChosenModel, gpus: int, as_json: bool, **settings: Any) -> None:
    from ..formatting import counted
    from ..lens import capacity
    from ..lens.capacity import measured
    from ..lens.moments import top_count
    from ..lens.plan import size

    clip = _shapes(model)
    source = 1000 * settings["picture"]
    top = top_count(settings["top"], count)
    found = capacity.spread_plan(
        clip,
        count,
        clip.chosen_layers(layer_numbers(settings["layers"])),
        workers=gpus,
        top=top,
        memory=int(settings["memory"] * 1e9),
        batch_size=settings["batch_size"],
        shard_size=settings["shard_size"],
    )
    rates, sources = measured(
        model.device,
        clip.dtype,
        tflops=settings["tflops"],
        network=settings["network"] * 1e9,
        store=settings["bandwidth"] * 1e9,
        decoders=settings["decoders"],
        decoded=settings["decoded"],
    )
    job = capacity.job(clip, found, top, source)
    row = capacity.stages(job, rates, gpus)
    timings = capacity.simulate(row, rates, gpus)
    if as_json:
        times = {"stages": [_stage(timing) for timing in timings], "rates": vars(rates)}
        print_json(_as_document(found) | times | {"seconds": capacity.total(timings)})
        return
    console.print(f"{found}\nfit --shard-size {len(found.shards[0])}", highlight=False)
    table = Table(title=f"{clip.name}, {counted(count, 'image')}, {counted(gpus, 'worker')}")
    for title in ("stage", "tasks", "time", "idle", "read", "written"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for timing in timings:
        stage = timing.stage
        table.add_row(
            *(stage.name, f"{stage.tasks:,}", duration(timing.seconds), f"{timing.idle:.0%}"),
            *(size(stage.tasks * stage.read), size(stage.tasks * stage.written)),
        )
    table.add_section()
    read, written = (sum(s.tasks * getattr(s, what) for s in row) for what in ("read", "written"))
    total = duration(capacity.total(timings))
    table.add_row("all", "", total, "", size(read), size(written))
    console.print(table)
    console.print("rates:", ", ".join(_said(rates, sources)), highlight=False)


def _as_document(plan: "Plan") -> dict[str, Any]:
    """The plan with sizes in bytes; of its shards, how many there are and how long."""
    shards = {"shards": len(plan.shards), "shard_size": len(plan.shards[0])}
    found = vars(plan) | {"passes": plan.passes} | shards
    del found["sample_shard"]
    return found


def _stage(timing: "Timing") -> dict[str, Any]:
    stage = timing.stage
    moved = {name: stage.tasks * getattr(stage, name) for name in ("read", "written")}
    facts = {"stage": stage.name, "tasks": stage.tasks, "seconds": timing.seconds}
    return facts | {"idle": timing.idle} | moved


def _said(rates: "Rates", sources: dict[str, str]) -> list[str]:
    return [f"{name} {value:.3g} ({sources[name]})" for name, value in vars(rates).items()]


def _shapes(model: ChosenModel) -> "Clip":
    """The model without its weights where that is possible: a large one takes long to make."""
    import open_clip

    from ..models.open_clip.views import from_open_clip

    with shape_alone(model.model, model.pretrained):
        if model.pretrained is not None or model.model not in open_clip.list_models():
            return model.load(untrained=True)
        empty = open_clip.create_model(model.model, precision=model.precision, device="meta")
    return from_open_clip(empty.eval(), name=model.model, check=False)


def duration(seconds: float | int) -> str:
    """As people read it, such as "3.2 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
