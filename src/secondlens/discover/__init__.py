"""What an image shows, in words, and the neurons, heads and patches that say so."""
