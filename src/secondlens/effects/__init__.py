"""Effects of single neurons on the image embedding: second-order, direct and indirect.

`paths` is the half that depends on no image, `second_order` joins it with what `capture` reads of
a forward pass, and `projections` takes products with vectors before any effect is in memory.
"""
