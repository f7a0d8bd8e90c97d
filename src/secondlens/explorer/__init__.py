"""The explorer: every neuron of a lens in a browser, served alive or written as a static folder.

`survey` looks at the pictures once with the model and keeps what pages show beside the lens.
`atlas` answers every question of the pages from the lens and that survey; `live` answers those
that need the model itself. `pages` turns answers into HTML, `app` serves them, `export` writes
them to a folder.
"""
