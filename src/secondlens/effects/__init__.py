"""Effects of single neurons on the image embedding: second-order, direct and indirect.

`capture` reads a forward pass; `value_paths` joins it with the half that depends on no image;
`ablated_runs` runs the network on without a neuron; `projections` takes products with vectors
before any effect is in memory.
"""
