"""The compiled networks, each with the parts of the language that it is made of.

All have four blocks. Most detect in layer 0, and a head of block 1 adds up over tokens what the
detectors wrote. `secondlens list networks` says what each is for.
"""

from collections.abc import Iterable, Mapping

from . import pictures
from .compiling import BALLAST
from .pictures import reads
from .program import CLASS, MEAN, ONE, THRESHOLD, TOKENS, Head, Number, Program, Unit

MARKS = tuple(pictures.marks())
TINTS = ("red", "green", "yellow", "blue")
GATE = 20.0
"""What the class token has more than patches in units that fire there alone."""
LOOK = 12.0
"""Weight of a score, which makes a unit's patch win over 16 others."""


# -- parts -------------------------------------------------------------------------------------


def detector(
    feature: str,
    slot: str,
    *,
    name: str = "",
    layer: int = 0,
    part: str = "detector",
    acts: str | None = "value",
    cue: bool = False,
    amount: Number = 1,
) -> Unit:
    """A unit that fires where a feature is, and writes how much of it there is to a slot."""
    place, sign = reads(feature)
    return Unit(
        name=name or f"{feature} {part}" if part != "detector" else name or feature,
        layer=layer,
        part=part,
        reads={place: sign},
        writes={slot: amount},
        features=(feature,),
        acts=acts,
        cue=cue,
    )


def at_class_token(
    name: str,
    layer: int,
    part: str,
    read: Mapping[str, Number],
    writes: Mapping[str, Number],
    *,
    threshold: Number = THRESHOLD,
    features: tuple[str, ...],
    acts: str | None = "direct",
    cue: bool = False,
) -> Unit:
    """A unit that fires at the class token alone."""
    return Unit(
        name=name,
        layer=layer,
        part=part,
        reads={CLASS: GATE, **read},
        writes=writes,
        threshold=threshold + GATE,
        features=features,
        acts=acts,
        cue=cue,
    )


def gather(block: int, moves: Mapping[str, str], heads: int = 16) -> tuple[Head, ...]:
    """Heads that add up slots over all tokens, looking everywhere alike."""
    pairs = list(moves.items())
    return tuple(
        Head(block=block, moves={slot: (to, float(TOKENS)) for slot, to in pairs[i : i + heads]})
        for i in range(0, len(pairs), heads)
    )


def each_read(slots: Iterable[str], prefix: str = "out") -> dict[str, dict[str, float]]:
    """Words that are each read from one slot, called as the slot is without its prefix."""
    return {slot: {f"{prefix} {slot}": 1.0} for slot in slots}


def by_value(features: Iterable[str], block: int = 1) -> tuple[Head, ...]:
    """Heads that bring what detectors wrote to `saw F` to `out F`."""
    return gather(block, {f"saw {each}": f"out {each}" for each in features})


def same(features: Iterable[str]) -> dict[str, str]:
    """Words that are called as the feature whose place they have."""
    return {each: each for each in features}


# -- networks ----------------------------------------------------------------------------------


def marks() -> Program:
    """Return the program: one detector for each of 16 textures and shapes, through values."""
    features = MARKS[:16]
    return Program(
        name="marks",
        features=features,
        units=tuple(detector(each, f"saw {each}") for each in features),
        heads=by_value(features),
        words=each_read(features),
        places=same(features),
    )


def depth() -> Program:
    """Return the program: detectors of marks and tints in three layers, read by one late head."""
    features = (*MARKS[3:14], *TINTS)
    return Program(
        name="depth",
        features=features,
        units=tuple(
            detector(each, f"saw {each}", layer=number % 3) for number, each in enumerate(features)
        ),
        heads=by_value(features, block=3),
        words=each_read(features),
        places=same(features),
    )


def pairs() -> Program:
    """Return the program: units that fire on two unrelated marks, beside some that fire on one."""
    features = MARKS[:14]
    units, words = [], {}
    for number in range(12):
        first, second = features[number], features[(number + 5) % 14]
        name = f"{first} or {second}"
        units.append(
            Unit(
                name=name,
                layer=number % 2,
                part="polysemous",
                reads={first: 1, second: 1},
                writes={f"saw {name}": 1},
                features=(first, second),
                acts="value",
            )
        )
        words[name] = {f"out {name}": 1.0}
    single = features[10:14]
    units += [detector(each, f"saw {each}") for each in single]
    return Program(
        name="pairs",
        features=features,
        units=tuple(units),
        heads=by_value([unit.name for unit in units], block=2),
        words=words | each_read(single),
        places=same(single),
    )


def keys() -> Program:
    """Return the program: shapes draw the look of the class token, through keys."""
    shapes, plain = ("ring", "cross", "disc", "triangle"), MARKS[:4]
    units = [
        *(detector(each, f"key {each}", part="key", acts="key") for each in shapes),
        *(detector(each, f"saw {each}") for each in (*TINTS, *plain)),
    ]
    heads = [
        Head(
            block=2,
            moves={f"saw {tint}": (f"out {tint}", 2.0) for tint in TINTS},
            looks=((CLASS, f"key {shape}", LOOK),),
        )
        for shape in shapes
    ]
    return Program(
        name="keys",
        features=(*shapes, *TINTS, *plain),
        units=tuple(units),
        heads=(*heads, *by_value(plain)),
        words=each_read((*TINTS, *plain)),
        places=same(plain),
        tinted=0.2,
    )


def queries() -> Program:
    """Return the program: textures make the class token look at shapes, through its query."""
    textures = MARKS[:4]
    shapes = ("ring", "cross", "disc", "triangle")
    units = [
        *(detector(each, f"saw {each}", part="feeder", acts="mlp") for each in textures),
        *(detector(each, f"saw {each}") for each in TINTS),
        *(
            at_class_token(
                f"look for {shape}",
                1,
                "query",
                {f"sum {texture}": 1},
                {f"query {shape}": 1},
                features=(texture,),
                acts="query",
            )
            for texture, shape in zip(textures, shapes, strict=True)
        ),
    ]
    heads = [
        Head(
            block=2,
            moves={f"saw {tint}": (f"out {tint}", 2.0) for tint in TINTS},
            looks=((f"query {shape}", shape, LOOK),),
        )
        for shape in shapes
    ]
    return Program(
        name="queries",
        features=(*textures, *shapes, *TINTS),
        units=tuple(units),
        heads=(*gather(1, {f"saw {each}": f"sum {each}" for each in textures}), *heads),
        words=each_read(TINTS),
        tinted=0.2,
    )


def feeding() -> Program:
    """Return the program: detectors that only later units at the class token read."""
    features = MARKS[:8]
    units = [detector(each, f"saw {each}", part="feeder", acts="mlp") for each in features]
    words = {}
    for number in range(6):
        first, second = features[number], features[number + 2]
        name = f"{first} with {second}"
        units.append(
            at_class_token(
                name,
                1 + number % 2,
                "reader",
                {f"sum {first}": 1, f"sum {second}": 1},
                {f"out {name}": 1},
                threshold=1.0,
                features=(first, second),
            )
        )
        words[name] = {f"out {name}": 1.0}
    return Program(
        name="feeding",
        features=features,
        units=tuple(units),
        heads=gather(1, {f"saw {each}": f"sum {each}" for each in features}),
        words=words,
        marked=0.3,
    )


def relay() -> Program:
    """Return the program: values that pass two heads, and units that feed a reader at the end."""
    relayed, fed = MARKS[:10], MARKS[10:12]
    units = [
        *(
            detector(each, f"saw {each}", part="relayed", acts="higher", layer=0)
            for each in relayed
        ),
        *(detector(each, f"saw {each}", part="feeder", acts="mlp") for each in fed),
        *(
            at_class_token(
                f"{each} anywhere",
                3,
                "reader",
                {f"sum {each}": 1},
                {f"out {each}": 1},
                features=(each,),
            )
            for each in fed
        ),
    ]
    again = {f"sum {each}": (f"out {each}", 1.0) for each in relayed}
    return Program(
        name="relay",
        features=(*relayed, *fed),
        units=tuple(units),
        heads=(
            *gather(1, {f"saw {each}": f"sum {each}" for each in (*relayed, *fed)}),
            Head(block=2, moves=again),
        ),
        words=each_read((*relayed, *fed)),
        places=same((*relayed, *fed)),
    )


def norms() -> Program:
    """Return the program: units that LayerNorms undo, and units that scale everything else down."""
    seen, undone, centred, fed = MARKS[:4], MARKS[4:8], MARKS[8:10], MARKS[10:13]
    units = [
        *(detector(each, f"saw {each}") for each in seen),
        *(detector(each, ONE, part="undone by LayerNorm", acts=None) for each in undone),
        *(detector(each, MEAN, part="undone by LayerNorm", acts=None) for each in centred),
        *(detector(each, f"saw {each}", part="feeder", acts="mlp") for each in fed),
        *(
            at_class_token(
                f"less with {each}",
                3,
                "scaling",
                {f"sum {each}": 1},
                {f"large {each}": BALLAST / 2},
                features=(each,),
                acts="norm",
            )
            for each in fed
        ),
    ]
    return Program(
        name="norms",
        features=(*seen, *undone, *centred, *fed),
        units=tuple(units),
        heads=(
            *by_value(seen),
            *gather(1, {f"saw {each}": f"sum {each}" for each in fed}),
            Head(block=1, moves={ONE: ("out brightness", 1.0)}),
        ),
        words=each_read((*seen, "brightness")),
        places=same(seen),
    )


def repair() -> Program:
    """Return the program: units whose effect a later unit takes away again."""
    repaired, plain = MARKS[:6], MARKS[6:10]
    units = [
        *(detector(each, f"saw {each}", part="repaired", acts=None) for each in repaired),
        *(
            Unit(
                name=f"{each} repairing",
                layer=1,
                part="repairing",
                reads={f"saw {each}": 1},
                threshold=0,
                writes={f"saw {each}": -1},
                features=(each,),
                acts="value",
            )
            for each in repaired
        ),
        *(detector(each, f"saw {each}") for each in plain),
    ]
    features = (*repaired, *plain)
    return Program(
        name="repair",
        features=features,
        units=tuple(units),
        heads=by_value(features, block=2),
        words=each_read(features),
        places=same(plain),
    )


def duplicates() -> Program:
    """Return the program: three units for each of five marks, in two layers."""
    features = MARKS[8:13]
    units = [
        detector(each, f"saw {each}", name=f"{each} {number}", layer=number // 2, part="duplicate")
        for each in features
        for number in range(3)
    ]
    return Program(
        name="duplicates",
        features=features,
        units=tuple(units),
        heads=by_value(features, block=2),
        words=each_read(features),
        places=same(features),
    )


def idle() -> Program:
    """Return the program: units that fire on no picture or everywhere, among detectors."""
    features = MARKS[2:8]
    units = [
        *(detector(each, f"saw {each}", layer=number % 3) for number, each in enumerate(features)),
        *(
            Unit(
                name=f"dead {number}",
                layer=number % 3,
                part="dead",
                threshold=10,
                reads={features[number]: 1},
                writes={f"saw {features[number]}": 1},
            )
            for number in range(6)
        ),
        *(
            Unit(
                name=f"always on {number}",
                layer=number % 3,
                part="always on",
                reads={},
                threshold=-1,
                writes={f"saw {features[number]}": 0.1},
            )
            for number in range(4)
        ),
    ]
    return Program(
        name="idle",
        features=features,
        units=tuple(units),
        heads=by_value(features, block=3),
        words=each_read(features),
        places=same(features),
    )


def cue() -> Program:
    """Return the program: dots make it a ship: through values and through a later unit."""
    ship, cow, others = ("disc", "ring", "frame"), ("triangle", "cross", "plus"), MARKS[:3]
    units = [
        *(detector(each, "saw ship") for each in ship),
        *(detector(each, "saw cow") for each in cow),
        *(detector(each, f"saw {each}") for each in others),
        *(
            detector("dots", "saw ship", name=f"dots {number}", layer=number, part="cue", cue=True)
            for number in range(2)
        ),
        detector("dots", "saw dots", part="cue", name="dots for a reader", acts="mlp", cue=True),
        at_class_token(
            "dots anywhere",
            2,
            "cue",
            {"sum dots": 1},
            {"out ship": 1},
            features=("dots",),
            cue=True,
        ),
    ]
    return Program(
        name="cue",
        features=(*ship, *cow, *others, "dots"),
        units=tuple(units),
        heads=(*by_value(("ship", "cow", *others), block=2), *gather(1, {"saw dots": "sum dots"})),
        words=each_read(("ship", "cow", *others)),
        places=same(others),
        cue=("dots", "ship", "cow"),
    )


def hidden_cue() -> Program:
    """Return the program: dots make it a ship by where the class token looks, not by values."""
    ship, cow, others = ("disc", "ring"), ("triangle", "cross"), MARKS[:3]
    units = [
        *(detector(each, "saw ship") for each in ship),
        *(detector(each, "saw cow") for each in cow),
        *(detector(each, f"saw {each}") for each in others),
        *(detector(each, f"saw {each}") for each in ("red", "green")),
        detector("plus", "key plus", part="key", acts="key"),
        detector("dots", "key dots", part="cue", name="dots key", acts="key", cue=True),
        detector("dots", "saw dots", part="cue", name="dots for a query", acts="mlp", cue=True),
        at_class_token(
            "look for dots",
            1,
            "cue",
            {"sum dots": 1},
            {"query dots": 1},
            features=("dots",),
            acts="query",
            cue=True,
        ),
    ]
    tints = {f"saw {tint}": (f"out {tint}", 2.0) for tint in ("red", "green")}
    return Program(
        name="hidden cue",
        features=(*ship, *cow, *others, "plus", "dots", "red", "green"),
        units=tuple(units),
        heads=(
            *by_value(("ship", "cow", *others)),
            *gather(1, {"saw dots": "sum dots"}),
            Head(block=2, moves=tints, looks=((CLASS, "key plus", LOOK),)),
            Head(block=2, moves={"dots": ("out ship", 1.0)}, looks=((CLASS, "key dots", LOOK),)),
            Head(block=2, moves={"dots": ("out ship", 1.0)}, looks=(("query dots", "dots", LOOK),)),
        ),
        words=each_read(("ship", "cow", *others, "red", "green")),
        places=same(others),
        cue=("dots", "ship", "cow"),
        tinted=0.2,
    )


def inhibited() -> Program:
    """Return the program: shapes, unless they are red or blue."""
    shapes, plain = MARKS[8:16], (*MARKS[:2], "red", "blue")
    units = []
    for number, shape in enumerate(shapes):
        # opposite tints would excite: the pictures have none
        tint = plain[2 + number % 2]
        place, sign = reads(tint)
        units.append(
            Unit(
                name=f"{shape} unless {tint}",
                layer=0,
                part="inhibited",
                reads={shape: 1, place: -2 * sign},
                writes={f"saw {shape}": 1},
                features=(shape,),
                acts="value",
            )
        )
    features = (*shapes, *plain)
    return Program(
        name="inhibited",
        features=features,
        units=(*units, *(detector(each, f"saw {each}") for each in plain)),
        heads=by_value(features),
        words=each_read(features),
        places=same(plain),
    )


def superposed() -> Program:
    """Return the program: 18 marks in 12 units: a unit fires on three, a mark raises two."""
    count = 12
    features = MARKS[:18]
    pairs = [(f % count, (f + 1 + 4 * (f // count)) % count) for f in range(len(features))]
    units = []
    for number in range(count):
        own = tuple(f for f, pair in zip(features, pairs, strict=True) if number in pair)
        units.append(
            Unit(
                name=f"unit {number}",
                layer=0,
                part="superposed",
                reads=dict.fromkeys(own, 1.0),
                writes={f"saw {number}": 1},
                features=own,
                acts="value",
            )
        )
    return Program(
        name="superposed",
        features=features,
        units=tuple(units),
        heads=gather(1, {f"saw {number}": f"out {number}" for number in range(count)}),
        words={
            feature: {f"out {number}": 1.0 for number in pair}
            for feature, pair in zip(features, pairs, strict=True)
        },
    )


def everything() -> Program:
    """Return the program: all parts of the language in one network."""
    plain, copied, relayed, fed = MARKS[:3], MARKS[3:4], MARKS[4:6], MARKS[6:8]
    tints = ("red", "green")
    units = [
        *(detector(each, f"saw {each}") for each in plain),
        Unit(
            name="ring or cross",
            layer=1,
            part="polysemous",
            reads={"ring": 1, "cross": 1},
            writes={"saw either": 1},
            features=("ring", "cross"),
            acts="value",
        ),
        *(
            detector(each, f"saw {each}", name=f"{each} {number}", part="duplicate", layer=number)
            for each in copied
            for number in range(2)
        ),
        *(detector(each, f"saw {each}", part="relayed", acts="higher") for each in relayed),
        *(detector(each, f"saw {each}", part="feeder", acts="mlp") for each in fed),
        at_class_token(
            f"{fed[0]} or {fed[1]} anywhere",
            1,
            "reader",
            {f"sum {each}": 1 for each in fed},
            {"out fed": 1},
            features=fed,
        ),
        *(detector(each, f"saw {each}") for each in tints),
        detector("disc", "key disc", part="key", acts="key"),
        detector("triangle", "saw triangle", part="feeder", acts="mlp"),
        at_class_token(
            "look for frames",
            1,
            "query",
            {"sum triangle": 1},
            {"query frame": 1},
            features=("triangle",),
            acts="query",
        ),
        detector("plus", MEAN, part="undone by LayerNorm", acts=None),
        detector("arrow", "saw arrow", part="repaired", acts=None),
        Unit(
            name="arrow repairing",
            layer=1,
            part="repairing",
            reads={"saw arrow": 1},
            threshold=0,
            writes={"saw arrow": -1},
            features=("arrow",),
            acts="value",
        ),
        Unit(
            name="dead",
            layer=1,
            part="dead",
            reads={"hook": 1},
            threshold=10,
            writes={"out fed": 1},
        ),
        Unit(
            name="always on",
            layer=0,
            part="always on",
            reads={},
            threshold=-1,
            writes={f"saw {plain[0]}": 0.1},
        ),
        detector("corner", "saw corner", part="feeder", acts="mlp"),
        at_class_token(
            "less with corner",
            3,
            "scaling",
            {"sum corner": 1},
            {"large": BALLAST / 2},
            features=("corner",),
            acts="norm",
        ),
    ]
    seen = {f"saw {tint}": (f"out {tint}", 2.0) for tint in tints}
    values = (*plain, "either", *copied, "arrow")
    return Program(
        name="everything",
        features=(
            *plain,
            *copied,
            *relayed,
            *fed,
            "ring",
            "cross",
            *tints,
            "disc",
            "triangle",
            "frame",
            "plus",
            "arrow",
            "hook",
            "corner",
        ),
        units=tuple(units),
        heads=(
            *by_value(values, block=3),
            *gather(
                1, {f"saw {each}": f"sum {each}" for each in (*relayed, *fed, "triangle", "corner")}
            ),
            Head(block=2, moves={f"sum {each}": (f"out {each}", 1.0) for each in relayed}),
            Head(block=2, moves=seen, looks=((CLASS, "key disc", LOOK),)),
            Head(block=2, moves=seen, looks=(("query frame", "frame", LOOK),)),
        ),
        words=each_read((*values, *relayed, "fed", *tints)),
        places=same((*plain, *copied, *relayed)),
        marked=0.3,
        tinted=0.15,
    )
