"""From image files to features."""
