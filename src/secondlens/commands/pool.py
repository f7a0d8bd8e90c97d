"""`secondlens pool`."""

from pathlib import Path

import click

from .options import PATH, POSITIVE, console, json_option, note, print_json


@click.command()
@click.option("--classes", required=True, help="A file with one class a line, or imagenet.")
@click.option(
    "--captioner",
    required=True,
    help='"chat:" and a model of transformers, or the address of an OpenAI-compatible endpoint, '
    "whose key is read from OPENAI_API_KEY.",
)
@click.option("--captioner-model", help="The endpoint's name of a model.")
@click.option("--timeout", type=POSITIVE, default=120.0, show_default=True, help="Seconds a call.")
@click.option("--device", default="cpu", show_default=True, help="Of a model of transformers.")
@click.option(
    "--per-class", type=click.IntRange(1), default=40, show_default=True, help="Descriptions."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=PATH, required=True, help="The run's folder; a run there goes on.")
@json_option
def pool(
    classes: str,
    captioner: str,
    captioner_model: str | None,
    timeout: float,
    device: str,
    per_class: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Make a pool of texts: descriptions of classes by a language model, as the paper's third pool.

    descriptions.txt in the folder is what `describe --texts` takes. An interrupted run goes on when
    the same command is given again.

    Example: secondlens pool --classes imagenet --captioner chat:llama --out pool
    """
    from ..applications.adversarial import captioners
    from ..applications.adversarial.class_pool import class_pool
    from ..data.vocabularies import vocabulary

    labels = vocabulary(classes).labels
    model = captioners[captioner.partition(":")[0]](
        captioner, device=device, model=captioner_model, timeout=timeout
    )
    found = class_pool(model, labels, out, per_class=per_class, seed=seed, progress=True)
    for label, reason in found.left_out.items():
        note(f"{label} is left out: {reason}")
    if as_json:
        print_json({"texts": len(found.texts), "left_out": found.left_out, "file": found.path})
        return
    console.print(f"{len(found.texts):,} texts: {found.path}", markup=False, highlight=False)
