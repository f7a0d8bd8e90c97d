"""Semantic adversarial images: pictures of one class that a CLIP takes for another.

The steps of the attack (section 5 of arXiv 2406.04341) have a file each: `selection` of words,
`captioning`, `generation` of images, `judging`. `attacks` does all of them for one pair of classes
or many, in the run folders of `runs`.
"""
