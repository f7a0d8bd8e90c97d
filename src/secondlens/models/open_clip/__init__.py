"""Models of open_clip: a file for each kind of tower."""
