"""The embedded CLIP, its twin, and the world of drawn scenes that they were trained on."""
