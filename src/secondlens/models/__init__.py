"""One view over any CLIP: where models come from, what the mathematics reads, and whether it is so.

A family of models is one file (`open_clip`, `transformers`) that turns a model in memory into a
`Clip` of `view`; `loading` finds models by name, `checks` holds the view against what the model
computes.

A tower that computes anything else than the mathematics describes is refused, with the reason, and
every view is checked against the model's own forward pass before it is handed out.
"""
