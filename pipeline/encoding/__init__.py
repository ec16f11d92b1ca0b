"""From images to a finished cache."""
