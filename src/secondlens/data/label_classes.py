"""Names of the classes of sets with label maps, in the order of their labels.

They are the sets' own names, with spaces between words. What a model knows better by another name
can be given another one, or several, see `data.label_maps.named`.
"""


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(","))


VOC = _names(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, "
    "horse, motorbike, person, potted plant, sheep, sofa, train, tv monitor "
)
"""Pascal VOC: values 1 to 20."""

CONTEXT = _names(
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, "
    "cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, "
    "floor, flower, food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse, "
    "person, plate, platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, sky, "
    "snow, sofa, table, track, train, tree, truck, tv monitor, wall, water, window, wood "
)
"""Pascal Context: values 1 to 59."""

ADE20K = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, "
    "sidewalk, person, earth, door, table, mountain, plant, curtain, chair, car, water, "
    "painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, "
    "wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, "
    "counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, "
    "runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, "
    "coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, "
    "computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, "
    "chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, "
    "apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, "
    "ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, "
    "basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, "
    "sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin "
    "board, shower, radiator, glass, clock, flag "
)
"""ADE20K: values 1 to 150."""

CITYSCAPES = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle "
)
"""Cityscapes: its 19 classes for training."""

COCO_OBJECTS = _names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, "
    "snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis "
    "racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, "
    "orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, "
    "toothbrush "
)
"""COCO: its 80 things."""

COCO_STUFF = _names(
    "banner, blanket, branch, bridge, other building, bush, cabinet, cage, cardboard, carpet, "
    "other ceiling, tile ceiling, cloth, clothes, clouds, counter, cupboard, curtain, desk, "
    "dirt, door, fence, marble floor, other floor, stone floor, tile floor, wood floor, flower, "
    "fog, other food, fruit, other furniture, grass, gravel, other ground, hill, house, leaves, "
    "light, mat, metal, mirror, moss, mountain, mud, napkin, net, paper, pavement, pillow, "
    "other plant, plastic, platform, playing field, railing, railroad, river, road, rock, roof, "
    "rug, salad, sand, sea, shelf, other sky, skyscraper, snow, other solid, stairs, stone, "
    "straw, other structural, table, tent, other textile, towel, tree, vegetable, brick wall, "
    "concrete wall, other wall, panel wall, stone wall, tile wall, wood wall, other water, "
    "water drops, blind window, other window, wood "
)
"""COCO-Stuff: its 91 kinds of stuff, which follow the things."""
