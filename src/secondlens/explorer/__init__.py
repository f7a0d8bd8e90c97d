"""The explorer: every neuron of a lens in a browser, served alive or written as a static folder.

`survey` looks at the pictures once with the model and keeps what pages show beside the lens.
`atlas` answers every question of the pages from the lens and that survey; `live` answers those
that need the model itself. `pages` turns answers into HTML, `app` serves them, `export` writes
them to a folder.

Pages that need nothing but their name are registered here.
"""

from ..registry import Registry

page_kinds: Registry[str] = Registry("page", "pages")
"""Factories of `(pages, name)`, which give HTML. A page is at its name; its help is its title."""

for _name, _title in (
    ("neurons", "Neurons"),
    ("map", "Map"),
    ("search", "Search"),
    ("image", "Images"),
    ("compare", "Compare"),
    ("lists", "Lists"),
    ("runs", "Runs"),
    ("how", "How it is computed"),
):
    page_kinds.register(_name, f"{__name__}.pages:titled", help=_title)
