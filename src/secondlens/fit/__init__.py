"""Streaming images through a model into a lens: in shards, on any engine, with any memory.

`plan` says beforehand what is needed and `fit` does it: `shards` has what a worker does with its
images, `nodes` how what it found is put together, `run` the order of all of it, and `capacity` how
long it takes.
"""
