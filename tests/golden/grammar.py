"""Sentences from a small grammar, for golden files and for tests."""

import random

GRAMMAR = {
    "S": ["N V P N", "N V", "N and N V P N", "there is N P N", "N P N V P N while N V"],
    "N": ["a A O", "the O", "two A O", "a O", "some A A O", "a O with a A O"],
    "A": ["small", "red", "black", "wet", "happy", "striped"],
    "O": ["dog", "child", "ball", "boat", "horse", "umbrella", "field"],
    "V": ["runs", "is jumping", "stands", "plays", "is looking at N"],
    "P": ["in front of", "near", "on", "behind", "over"],
}


def sentence(source: random.Random, symbol: str = "S") -> str:
    """One sentence, its words parted by blanks."""
    parts = source.choice(GRAMMAR[symbol]).split()
    return " ".join(sentence(source, part) if part in GRAMMAR else part for part in parts)
