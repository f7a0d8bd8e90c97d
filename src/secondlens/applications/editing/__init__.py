"""Edits that stay: what was chosen to be cut, written into ordinary weights."""
