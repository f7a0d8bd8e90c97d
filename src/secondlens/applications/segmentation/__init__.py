"""Zero-shot masks from neurons, earlier ways to make them, and one protocol that measures all."""
