"""What the library and its commands gave before their modules moved, and how it is compared."""
