"""Captions that stop in the middle: their last word calls for another one.

Owns the words that do. Models trained for a score learn to stop there when the end of a caption is no part of the
score; cross-entropy hardly ever does.
"""

from collections.abc import Sequence

from pipeline.scoring.ngrams import Words

ARTICLES = frozenset("a an the".split())
# Without those that end whole sentences as adverbs ("a dog runs outside", "people look up").
PREPOSITIONS = frozenset(
    "against amid among amongst as at beside between during for from in into like of on onto per than "
    "through to toward towards upon via with within without".split()
)
CONJUNCTIONS = frozenset("although and because but if nor or that unless when where whether which while whose".split())
OPEN = ARTICLES | PREPOSITIONS | CONJUNCTIONS


def fragments(captions: Sequence[Words]) -> float:
    """How many captions end in an English article, preposition or conjunction, in percent.

    People are not quite at 0 ("while others look on"): of Flickr8k's captions 0.6 % do.

    Args:
        captions: at least one, as `language.words.tokenize` gives them; one without a word is no fragment.
    """
    return 100 * sum(bool(words) and words[-1] in OPEN for words in captions) / len(captions)
