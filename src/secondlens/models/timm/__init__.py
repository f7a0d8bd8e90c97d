"""Models of timm: their towers, blocks, and the options that are covered."""
