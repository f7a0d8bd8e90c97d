"""Table 4 on the embedded world, as a result like the others: `segmentation` measures it."""

from ..numerals import counted
from ..segment.benchmark.reproduce import compare, demo_work
from ..segment.benchmark.table import METRICS
from .result import Result, Row, Setting
from .study import PAPER_MODEL, Study

DEV_IMAGES, TEST_IMAGES = 100, 200
"""Fewer than the command `reproduce table4` takes: a page with everything must not take hours."""


def table4(study: Study) -> Result:
    """Zero-shot segmentation by neurons, beside every earlier method."""
    work = demo_work(images=TEST_IMAGES, dev=DEV_IMAGES)
    found = compare(study.clip, study.lens, work, predicted=False)
    rows = []
    for row in found.rows:
        if row.group == "all images":
            values = (row.pixel_accuracy, row.miou, row.map)
            each: Row = {"method": row.method, "masks": row.protocol}
            for metric, value, paper in zip(METRICS, values, row.paper or [None] * 3, strict=True):
                each |= {f"{metric}, %": value, f"paper, {metric}": paper}
            rows.append(each)
    return Result(
        name="table4",
        title=f"zero-shot segmentation ({counted(found.facts['test images'], 'picture')})",
        rows=rows,
        settings=[
            Setting(name="model", ours=study.model, paper=PAPER_MODEL),
            Setting(name="pictures", ours=work.name, paper="ImageNet-Segmentation"),
            Setting(name="classes", ours="given", paper="predicted, in the published code"),
            Setting(
                name="masks",
                ours="tuned alike for every method (same), and each paper's own",
                paper="each paper's own",
            ),
        ],
        notes=["`secondlens reproduce table4` measures more pictures, with intervals."],
        picture=found.grid,
    )
