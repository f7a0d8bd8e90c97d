"""The embedded world, second edition: 128 pixels, written words, captions as on the web.

It moves into `secondlens.demo` together with the weights that are trained on it.
"""
