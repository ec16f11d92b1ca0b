"""Decoders and their search."""
