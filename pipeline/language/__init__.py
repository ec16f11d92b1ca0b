"""From text to numbers and back."""
