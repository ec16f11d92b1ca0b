"""How a decoder learns."""
