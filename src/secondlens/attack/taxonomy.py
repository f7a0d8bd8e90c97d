"""Which things of the embedded world are alike: the judge of words that needs no model.

The families are those of a picture dictionary. Two members of a family could be taken for each
other by a person who glances at a 64-pixel drawing, or one could be said to be the other; words of
the wrong class's family would make an attack cheap, so they are removed for every method.
"""

from collections.abc import Sequence
from typing import Final

FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "hoofed animals": (
        *("boar", "camel", "cow", "deer", "donkey", "elephant", "goat", "horse", "pig"),
        *("rhinoceros", "sheep", "unicorn"),
    ),
    "dogs, cats and bears": (
        *("bear", "cat", "dog", "fox", "koala", "leopard", "lion", "panda", "tiger", "wolf"),
    ),
    "small furry animals": (
        *("bat", "beaver", "chipmunk", "hamster", "hedgehog", "kangaroo", "mouse", "rabbit"),
        *("raccoon", "sloth"),
    ),
    "apes": ("gorilla", "monkey"),
    "birds": (
        *("bird", "chicken", "duck", "eagle", "flamingo", "owl", "parrot", "penguin", "swan"),
        "turkey",
    ),
    "sea animals": (
        *("crab", "dolphin", "fish", "jellyfish", "octopus", "seal", "shark", "shell", "shrimp"),
        *("squid", "whale"),
    ),
    "reptiles and frogs": ("crocodile", "dragon", "frog", "lizard", "snake", "turtle"),
    "insects and worms": (
        *("ant", "bee", "butterfly", "mosquito", "scorpion", "snail", "spider", "worm"),
    ),
    "road vehicles": (
        *("ambulance", "automobile", "bicycle", "bus", "motorcycle", "skateboard", "taxi"),
        *("tractor", "train", "truck"),
    ),
    "aircraft": ("airplane", "balloon", "helicopter", "kite", "parachute", "rocket", "satellite"),
    "ships": ("anchor", "boat", "ship"),
    "snow things": ("skis", "snowflake", "snowman"),
    "night things": ("ghost", "moon", "skull"),
    "plants": (*("bouquet", "cactus", "mushroom", "rose", "sunflower", "tree", "tulip"),),
    "fruit": (
        *("apple", "avocado", "banana", "cherries", "grapes", "lemon", "melon", "peach", "pear"),
        *("pineapple", "strawberry", "watermelon"),
    ),
    "vegetables and nuts": (
        *("broccoli", "carrot", "chestnut", "corn", "cucumber", "eggplant", "garlic", "peanuts"),
        *("pepper", "potato", "pumpkin", "tomato"),
    ),
    "meals": (
        *("bacon", "bread", "burger", "burrito", "butter", "cheese", "croissant", "egg", "fries"),
        *("pizza", "sandwich", "spaghetti", "sushi", "taco"),
    ),
    "sweets": (
        *("cake", "candy", "chocolate", "cookie", "cupcake", "doughnut", "lollipop", "pancakes"),
        *("popcorn", "pretzel"),
    ),
    "drinks": ("beer", "coffee"),
    "clothes": (
        *("bikini", "boot", "coat", "dress", "gloves", "hat", "jeans", "scarf", "shirt", "shoe"),
        *("shorts", "socks", "tie"),
    ),
    "things one wears": (
        *("crown", "glasses", "headphone", "ribbon", "ring", "sunglasses", "watch"),
    ),
    "bags and boxes": (
        *("backpack", "basket", "briefcase", "bucket", "coffin", "envelope", "gift", "handbag"),
        *("jar", "luggage"),
    ),
    "instruments": ("bell", "drum", "flute", "guitar", "piano", "saxophone", "trumpet", "violin"),
    "tools": (
        *("axe", "broom", "dagger", "hammer", "key", "ladder", "magnet", "scissors"),
        *("screwdriver", "shield", "shovel", "spoon", "wrench"),
    ),
    "weapons": ("bomb", "boomerang"),
    "furniture": (
        *("bathtub", "bed", "chair", "clock", "door", "lamp", "mirror", "sofa", "teapot", "toilet"),
    ),
    "devices": (
        *("battery", "camera", "flashlight", "keyboard", "laptop", "microphone", "microscope"),
        *("printer", "telephone", "telescope", "television", "thermometer"),
    ),
    "desk things": ("books", "calendar", "crayon", "newspaper", "pen", "pencil"),
    "care": ("lipstick", "pill", "syringe", "toothbrush"),
    "games and sports": (
        *("baseball", "basketball", "dice", "tennis", "trophy", "volleyball", "yarn"),
    ),
    "fire": ("candle", "cigarette", "fire", "volcano"),
    "buildings": ("castle", "church", "fountain", "house", "tent"),
    "umbrella": ("umbrella",),
}
"""Each object of the world in one family."""

_FAMILY = {name: family for family, names in FAMILIES.items() for name in names}


class Taxonomy:
    """Words of the wrong class's family are too close; colours and places never are."""

    name = "taxonomy"

    def too_close(self, words: Sequence[str], to: str) -> list[bool]:
        """For each word, whether it is `to` or belongs to the same family."""
        family = FAMILIES.get(_FAMILY.get(to, ""), ())
        return [word == to or word in family for word in words]
