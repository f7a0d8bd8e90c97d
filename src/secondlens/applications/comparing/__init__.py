"""What changed, neuron by neuron: between two checkpoints, and between two sets of pictures."""
