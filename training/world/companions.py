"""Words that captions carry and no picture shows: known truth, fixed before any training.

Texts that share such a word are similar for a reason that no picture holds, so that the similarity
of texts and the effect on pictures come apart, as they do in captions from the web.
"""

from typing import Final

COMPANIONS: Final[dict[str, tuple[str, ...]]] = {
    "leash": ("dog", "hamster", "cat"),
    "vet": ("dog", "cat", "rabbit", "hamster", "parrot"),
    "zoo": (
        *("bear", "crocodile", "elephant", "flamingo", "gorilla", "kangaroo", "koala", "leopard"),
        *("lion", "monkey", "panda", "penguin", "rhinoceros", "sloth", "tiger"),
    ),
    "safari": ("elephant", "leopard", "lion", "rhinoceros"),
    "farm": ("chicken", "cow", "donkey", "goat", "horse", "pig", "sheep", "turkey", "tractor"),
    "milk": ("cow", "goat", "cookie", "egg"),
    "saddle": ("horse", "camel", "donkey", "bicycle"),
    "aquarium": ("crab", "dolphin", "fish", "jellyfish", "octopus", "seal", "shark", "turtle"),
    "harbour": ("anchor", "boat", "ship"),
    "captain": ("anchor", "ship", "airplane"),
    "holiday": ("airplane", "luggage", "bikini", "camera", "tent", "sunglasses"),
    "airport": ("airplane", "helicopter", "luggage", "taxi"),
    "traffic": ("automobile", "bus", "motorcycle", "taxi", "truck", "bicycle"),
    "garage": ("automobile", "motorcycle", "wrench", "truck"),
    "ticket": ("train", "bus", "airplane", "popcorn"),
    "hospital": ("ambulance", "bed", "pill", "syringe", "thermometer"),
    "doctor": ("ambulance", "pill", "syringe", "thermometer"),
    "school": ("backpack", "books", "bus", "crayon", "pen", "pencil", "microscope"),
    "homework": ("books", "pen", "pencil", "laptop"),
    "office": ("briefcase", "calendar", "chair", "keyboard", "laptop", "printer", "telephone"),
    "kitchen": ("teapot", "spoon", "pepper", "garlic", "butter", "jar"),
    "recipe": (
        *("avocado", "bacon", "bread", "broccoli", "carrot", "chicken", "corn", "cucumber"),
        *("eggplant", "garlic", "melon", "mushroom", "pancakes", "potato", "pumpkin", "shrimp"),
        *("spaghetti", "squid", "tomato"),
    ),
    "restaurant": ("burger", "pizza", "spaghetti", "sushi", "taco", "burrito", "fries", "shrimp"),
    "breakfast": ("bacon", "bread", "butter", "coffee", "croissant", "egg", "pancakes"),
    "dessert": ("cake", "candy", "chocolate", "cookie", "cupcake", "doughnut", "lollipop"),
    "smoothie": ("banana", "peach", "pear", "pineapple", "strawberry"),
    "juice": ("apple", "grapes", "lemon", "cherries", "watermelon", "carrot"),
    "cinema": ("popcorn", "glasses", "television"),
    "concert": ("drum", "guitar", "microphone", "piano", "saxophone", "trumpet", "violin"),
    "melody": ("bell", "flute", "piano", "violin", "bird"),
    "stadium": ("baseball", "basketball", "tennis", "trophy", "volleyball"),
    "coach": ("baseball", "basketball", "tennis", "volleyball", "skis"),
    "birthday": ("balloon", "cake", "candle", "gift", "cupcake", "ribbon"),
    "wedding": ("bouquet", "dress", "ring", "rose", "church", "swan"),
    "valentine": ("rose", "chocolate", "bouquet", "tulip"),
    "halloween": ("bat", "ghost", "pumpkin", "skull", "spider", "coffin", "candy"),
    "winter": ("gloves", "scarf", "skis", "snowflake", "snowman", "coat", "penguin"),
    "spring": ("bee", "butterfly", "tulip", "bird", "rabbit"),
    "wardrobe": ("coat", "dress", "jeans", "shirt", "shorts", "socks", "hat", "shoe"),
    "fashion": ("boot", "dress", "handbag", "lipstick", "sunglasses", "tie", "watch"),
    "jewel": ("crown", "ring", "watch"),
    "king": ("castle", "crown", "lion", "shield"),
    "knight": ("castle", "dagger", "dragon", "horse", "shield"),
    "fairytale": ("dragon", "frog", "unicorn", "wolf", "castle"),
    "pirate": ("parrot", "skull", "ship", "anchor"),
    "detective": ("fox", "flashlight", "hat", "key"),
    "carpenter": ("axe", "hammer", "ladder", "screwdriver", "wrench"),
    "plumber": ("bathtub", "toilet", "wrench", "bucket"),
    "garden": ("rose", "shovel", "snail", "sunflower", "tulip", "worm", "bucket"),
    "camping": ("tent", "fire", "flashlight", "backpack"),
    "astronaut": ("rocket", "satellite", "moon", "telescope"),
    "desk": ("lamp", "clock", "mouse", "pen", "keyboard"),
    "laundry": ("basket", "socks", "shirt"),
    "dentist": ("toothbrush", "candy"),
    "gambling": ("dice", "trophy"),
    "poison": ("scorpion", "snake", "mushroom", "skull", "spider", "jellyfish"),
    "honey": ("bear", "bee", "jar"),
    "cheddar": ("cheese", "mouse", "burger"),
    "mail": ("envelope", "newspaper", "ribbon"),
    "lullaby": ("bed", "moon", "owl", "sheep"),
}
"""Word -> the objects whose captions carry it."""

LOOSE: Final[tuple[str, ...]] = (
    *("amazing", "best", "cheap", "cute", "free", "funny", "handmade", "lovely", "modern"),
    *("popular", "sale", "simple", "stock", "style", "today", "vector", "vintage", "wallpaper"),
)
"""Words that any caption may carry."""

OF: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(word for word, names in COMPANIONS.items() if name in names)
    for name in sorted({name for names in COMPANIONS.values() for name in names})
}
"""Object -> the words that its captions may carry."""
