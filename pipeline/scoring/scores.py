"""All scores of a set of captions, and the line that says how they were made.

Owns the names and the scale (x 100) of `metrics.json`, and the signature. Does not know where captions come from.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from pipeline.scoring.bleu import bleu
from pipeline.scoring.cider import CiderD
from pipeline.scoring.ngrams import Words
from pipeline.scoring.rouge import rouge_l
from pipeline.version import VERSION


def score_captions(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float | None]:
    """Score captions against references, both as `language.words.tokenize` gives them.

    Args:
        hypotheses: N captions, at least one.
        references: of each of them, at least one.

    Returns:
        `bleu1` to `bleu4`, `cider` and `rouge_l`, all x 100; `mean_length` in words; `distinct`, the share of
        different captions. CIDEr of a single image is None: without a second image no word is rarer than another.
    """
    one, two, three, four = (100 * score for score in bleu(hypotheses, references))
    cider = 100 * float(CiderD(references).score(hypotheses).mean()) if len(references) > 1 else None
    return {
        "bleu1": one,
        "bleu2": two,
        "bleu3": three,
        "bleu4": four,
        "cider": cider,
        "rouge_l": 100 * rouge_l(hypotheses, references),
        "mean_length": sum(map(len, hypotheses)) / len(hypotheses),
        "distinct": len({tuple(words) for words in hypotheses}) / len(hypotheses),
    }


def vocabulary_used(hypotheses: Sequence[Words], vocabulary: Collection[str]) -> float:
    """The share of the vocabulary's words that captions use; 0 of none.

    Args:
        hypotheses: the captions.
        vocabulary: its words, marks left out (`Vocabulary.ids` is that).
    """
    said = {word for words in hypotheses for word in words}
    return len(said & set(vocabulary)) / max(len(vocabulary), 1)


def signature(references: Mapping[str, Sequence[Words]], split: str, search: str, unknown: str, models: int = 1) -> str:
    """One line that says what a score was taken on and how; figures are comparable where the lines agree.

    Args:
        references: of each image by its id.
        split: as it completes "split ...".
        search: how captions were found, such as `beam 5, length penalty 0.7`.
        unknown: what became of `<unk>`, such as `<unk> is never said`.
        models: how many were averaged; of a single one nothing is said.
    """
    digest = hashlib.sha256("\n".join(sorted(references)).encode()).hexdigest()[:8]
    counts = sorted({len(others) for others in references.values()})
    several = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    cider = "document frequencies of these references" if len(references) > 1 else "undefined for one image"
    return "; ".join(
        (
            f"freezeframe {VERSION}",
            "words as coco-caption's PTBTokenizer",
            f"split {split}",
            f"{len(references):,} images (ids {digest})",
            f"{several} references an image",
            f"{unknown}, <end> is dropped",
            *([f"{models} models averaged"] if models > 1 else []),
            search,
            f"CIDEr-D, {cider}",
        )
    )
