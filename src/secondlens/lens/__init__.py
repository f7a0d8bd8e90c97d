"""The fitted object: what images show about every neuron of some layers, and how it is made.

A `Lens` has a `LayerLens` for each layer, `Codes` for each vocabulary it was described with, and
the evidence for these; `folder` is how it lies on disk, `hub` how it is shared. `plan` says
beforehand what a fit needs and `fitting` does it: `shards` has what a worker does with its images,
`moments` the statistics that shards merge, and `capacity` how long it takes.
"""
