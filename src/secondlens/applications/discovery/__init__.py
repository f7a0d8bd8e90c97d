"""What images show, in words."""
