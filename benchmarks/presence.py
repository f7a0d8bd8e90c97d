"""How often a word that is not in a picture is said to be there, on scenes of the embedded world.

python benchmarks/presence.py --dev 400 --images 500 --windows 3
"""

import argparse

from secondlens.applications.segmentation.presence import (
    WINDOWS,
    presence_readings,
    tune_presence,
)
from secondlens.data.masked import WorldMasks
from secondlens.data.vocabularies import object_names
from secondlens.demo.scenes import World
from secondlens.intervals import wilson
from secondlens.models.loading import load
from secondlens.paper.table4 import DEV_SEED, TEST_SEED, demo_lens

FIT_IMAGES = 1500


def told(scenes):
    """Pictures with the names of all objects that are visible in them."""
    examples = (scenes[index] for index in range(len(scenes)))
    return [(example.image, {label for label in example.labels if label}) for example in examples]


def main():
    """Print how many words that are there are lost, and how many that are not are found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", type=int, default=200, help="scenes to tune on")
    parser.add_argument("--images", type=int, default=500, help="scenes to test on")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="along each side")
    parser.add_argument("--lost", type=float, default=0.05, help="share that may be missed")
    given = parser.parse_args()
    clip, words, world = load("demo"), object_names(), World()
    lens = demo_lens(clip, FIT_IMAGES)
    development = told(WorldMasks(world, DEV_SEED, given.dev))
    presence = tune_presence(
        *(clip, lens, development), words=words, lost=given.lost, windows=given.windows
    )
    print(presence)
    for name, single in (("scenes", False), ("scenes of one object", True)):
        unseen = told(WorldMasks(world, TEST_SEED, given.images, single))
        readings, there = presence_readings(clip, lens, unseen, words, given.windows)
        said = presence.present(readings)
        for what, right, total in (
            ("there and lost", int((there & ~said).sum()), int(there.sum())),
            ("not there and found", int((said & ~there).sum()), int((~there).sum())),
        ):
            low, high = (100 * each for each in wilson(right, total))
            share = f"{100 * right / total:.2f} % [{low:.2f}, {high:.2f}]"
            print(f"{name}: {what}: {right:,} of {total:,}, {share}")


if __name__ == "__main__":
    main()
