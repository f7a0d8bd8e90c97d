"""What a link to a neuron shows elsewhere."""

import io

from PIL import Image, ImageDraw, ImageFont

from .atlas import Atlas
from .prepared import GROUPS

SIZE = (1200, 630)
"""Pixels, as networks crop the pictures of links."""
SIDE = 258
"""Pixels of a picture on it."""
PICTURES = 4
LONGEST_NAME = 38
"""Letters that fit."""
DARK, GREY, LIGHT = "#14161c", "#a0a6b1", "#eceef2"


def preview(atlas: Atlas, layer: int, neuron: int) -> bytes:
    """A PNG with a neuron's name and its strongest images.

    Raises
    ------
    SecondLensError
        The lens lacks the neuron.
    """
    atlas.check(layer, neuron)
    card = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(card)
    small, large = ImageFont.load_default(34), ImageFont.load_default(58)
    name = atlas.name(layer, neuron)
    if len(name) >= LONGEST_NAME:
        name = name[: LONGEST_NAME - 2] + "…"
    draw.text((60, 48), f"Layer {layer} · neuron {neuron}", GREY, small)
    draw.text((60, 100), name, LIGHT, large)
    if atlas.survey is not None:
        images = atlas.survey.layers[layer].images[neuron, GROUPS["strongest"]].tolist()
        for column, position in enumerate(each for each in images[:PICTURES] if each >= 0):
            picture = Image.open(io.BytesIO(atlas.survey.picture(position))).convert("RGB")
            card.paste(picture.resize((SIDE, SIDE)), (60 + 274 * column, 220))
    draw.text((60, 530), f"{atlas.lens.model['name']} · secondlens", GREY, small)
    buffer = io.BytesIO()
    card.save(buffer, "png")
    return buffer.getvalue()
