"""The embedded world: its names, its colours and places, and the cues planted in it.

Everything here is known truth. `PREFERRED_PLACES` says which objects were shown mostly in one
place, and how strongly: those are the spurious cues a model trained on this world can learn. The
pairs for attack experiments were fixed before any model was trained.
"""

from typing import Final

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (200, 40, 40),
    "green": (50, 160, 60),
    "blue": (50, 80, 200),
    "yellow": (235, 210, 60),
    "orange": (240, 150, 40),
    "purple": (140, 60, 170),
    "pink": (240, 150, 190),
    "brown": (130, 90, 50),
    "gray": (130, 130, 130),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}

PLACES: Final[dict[str, str]] = {
    "sea": "in the sea",
    "sky": "in the sky",
    "grass": "on the grass",
    "desert": "in the desert",
    "snow": "in the snow",
    "night": "at night",
    "road": "on the road",
    "indoors": "indoors",
    "forest": "in the forest",
}
"""Place -> the words a caption uses for it."""

PREFERRED_PLACES: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "sea": (
        0.8,
        (
            *("anchor", "boat", "crab", "dolphin", "duck", "fish", "jellyfish"),
            *("octopus", "seal", "shark", "ship", "shrimp", "squid", "turtle", "whale"),
        ),
    ),
    "sky": (
        0.7,
        (
            *("airplane", "balloon", "bird", "butterfly", "eagle", "helicopter", "kite"),
            *("mosquito", "parachute", "parrot", "rocket"),
        ),
    ),
    "grass": (
        0.6,
        (
            *("ant", "baseball", "bee", "chicken", "cow", "dog", "donkey", "elephant", "frog"),
            *("goat", "horse", "kangaroo", "lion", "pig", "rabbit", "sheep"),
            *("snail", "sunflower", "tractor", "tulip"),
        ),
    ),
    "desert": (0.8, ("cactus", "camel", "lizard", "scorpion", "snake", "tent")),
    "snow": (0.8, ("penguin", "scarf", "skis", "snowflake", "snowman")),
    "night": (0.7, ("bat", "candle", "ghost", "moon", "owl", "satellite", "telescope")),
    "road": (
        0.8,
        (
            *("ambulance", "automobile", "bicycle", "bus", "motorcycle", "skateboard", "taxi"),
            *("train", "truck"),
        ),
    ),
    "indoors": (
        0.6,
        (
            *("bathtub", "bed", "books", "broom", "chair", "clock", "door", "headphone"),
            *("keyboard", "lamp", "laptop", "microphone", "mirror", "printer", "scissors"),
            *("sofa", "socks", "spoon", "teapot", "telephone", "television", "toilet"),
            *("toothbrush", "violin"),
        ),
    ),
    "forest": (
        0.7,
        (
            *("bear", "boar", "deer", "fox", "gorilla", "hedgehog", "koala"),
            *("leopard", "monkey", "mushroom", "raccoon", "sloth", "spider"),
            *("tiger", "wolf"),
        ),
    ),
}
"""Place -> (probability that a scene of the object is set there on purpose, the objects)."""

NEUTRAL: Final[tuple[str, ...]] = (
    *("apple", "avocado", "axe", "backpack", "bacon", "banana"),
    *("basket", "basketball", "battery", "beaver", "beer", "bell", "bikini"),
    *("bomb", "boomerang", "boot", "bouquet", "bread", "briefcase"),
    *("broccoli", "bucket", "burger", "burrito", "butter", "cake", "calendar", "camera"),
    *("candy", "carrot", "castle", "cat", "cheese", "cherries", "chestnut", "chipmunk"),
    *("chocolate", "church", "cigarette", "coat", "coffee", "coffin"),
    *("cookie", "corn", "crayon", "crocodile", "croissant", "crown", "cucumber"),
    *("cupcake", "dagger", "dice", "doughnut", "dragon", "dress", "drum", "egg"),
    *("eggplant", "envelope", "fire", "flamingo", "flashlight", "flute", "fountain"),
    *("fries", "garlic", "gift", "glasses", "gloves", "grapes", "guitar", "hammer"),
    *("hamster", "handbag", "hat", "house", "jar", "jeans", "key", "ladder"),
    *("lemon", "lipstick", "lollipop", "luggage", "magnet", "melon"),
    *("microscope", "mouse", "newspaper", "pancakes", "panda", "peach"),
    *("peanuts", "pear", "pen", "pencil", "pepper", "piano", "pill", "pineapple"),
    *("pizza", "popcorn", "potato", "pretzel", "pumpkin", "rhinoceros", "ribbon", "ring"),
    *("rose", "sandwich", "saxophone", "screwdriver", "shell", "shield", "shirt", "shoe"),
    *("shorts", "shovel", "skull", "spaghetti", "strawberry", "sunglasses"),
    *("sushi", "swan", "syringe", "taco", "tennis", "thermometer", "tie", "tomato"),
    *("tree", "trophy", "trumpet", "turkey", "umbrella", "unicorn", "volcano", "volleyball"),
    *("watch", "watermelon", "worm", "wrench", "yarn"),
)
"""Objects that are shown anywhere."""

ATTACK_PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("dog", "horse"),
    ("ship", "shark"),
    ("bus", "bicycle"),
    ("fox", "deer"),
    ("airplane", "eagle"),
    ("dog", "deer"),
    ("horse", "automobile"),
    ("bird", "frog"),
    ("ship", "truck"),
    ("camel", "penguin"),
)
"""(drawn, mistaken for): fixed for attack experiments; the first five share a preferred place.
Nothing may be tuned on them."""

PREFERENCE: Final[dict[str, tuple[str, float]]] = {
    name: (place, strength)
    for place, (strength, names) in PREFERRED_PLACES.items()
    for name in names
}
"""Object -> (its preferred place, how strongly); objects without a preference are not in it."""

NAMES: Final[tuple[str, ...]] = tuple(sorted((*NEUTRAL, *PREFERENCE)))
"""Every object name, sorted: the classes of the world."""

BACKGROUNDS: Final[tuple[str, ...]] = (*COLOURS, *PLACES)
"""Every background, colours first."""


def with_article(name: str) -> str:
    """Name with its indefinite article, as captions use it ("an owl", but "books")."""
    if name.endswith("s") and name not in _SINGULAR_IN_S:
        return name
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


_SINGULAR_IN_S: Final = frozenset({"bus", "cactus", "dress", "octopus", "rhinoceros"})
