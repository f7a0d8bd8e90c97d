"""Files of a lens and of long work, here or in an object store: whole or absent, never half."""
