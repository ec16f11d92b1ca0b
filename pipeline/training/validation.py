"""How good the captions are that a decoder says by itself.

Owns the validation of an epoch: a loss under teacher forcing, and scores of freely generated captions, which are
what decides. Does not know how the decoder was trained.
"""

from collections.abc import Callable, Sequence

import torch

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.search import beam_search
from pipeline.language.vocabulary import Vocabulary
from pipeline.language.words import tokenize
from pipeline.scoring.bleu import corpus_counts
from pipeline.scoring.scores import score_captions
from pipeline.training.batches import CaptionedImages, Regions
from pipeline.training.losses import captioning_loss

SCORES = ("loss", "bleu4", "cider")
MAX_WORDS = 30


def generate(captioner: Captioner, regions: Regions, rows: Sequence[int], vocabulary: Vocabulary) -> list[list[str]]:
    """Greedy captions of the images `rows`, as words."""
    captions: list[list[str]] = []
    for _, seen in regions.parts(rows):
        found = beam_search(captioner, seen, beam=1, length_penalty=0.0, max_length=MAX_WORDS)
        captions += [vocabulary.decode(hypothesis.words) for hypothesis in found]
    return captions


class Validation:
    """The validation images: their captions for the loss, all their references for the scores.

    Args:
        images: with their encoded captions.
        rows: of all validation images.
        references: of each of them, as words.
        vocabulary: of the captioner.
        batch_images: images a batch of the loss.
    """

    def __init__(
        self,
        images: CaptionedImages,
        rows: Sequence[int],
        references: Sequence[Sequence[Sequence[str]]],
        vocabulary: Vocabulary,
        batch_images: int,
    ) -> None:
        self.images, self.rows, self.references = images, rows, references
        self.vocabulary, self.batch_images = vocabulary, batch_images

    @torch.no_grad()
    def __call__(self, captioner: Captioner, precise: Callable[[], torch.autocast]) -> dict[str, float]:
        """`SCORES`: the validation loss, BLEU-4 and CIDEr-D (x 100; 0 for a single image, where CIDEr is undefined).

        BLEU-4 is 0 where no 4-gram is right: what coco-caption's guards against division by zero then leave, up to 3 of
        100, says how long captions are, and must not decide between epochs.

        Args:
            captioner: to be judged; dropout is off.
            precise: the precision to compute in, as a context.
        """
        total, count = torch.zeros((), dtype=torch.float64, device=self.images.regions.device), 0
        with precise():
            for batch in self.images.in_order(self.batch_images):
                output = captioner(batch.regions, batch.captions, batch.lengths, None)
                loss = captioning_loss(output, batch.captions, batch.lengths, 0.0)
                total, count = total + loss.words.double() * loss.count, count + loss.count
            captions = generate(captioner, self.images.regions, self.rows, self.vocabulary)
        said = [tokenize(" ".join(words)) for words in captions]  # split again, as whoever scores the text does
        scores, (correct, *_) = score_captions(said, self.references), corpus_counts(said, self.references)
        bleu4 = scores["bleu4"] if correct[-1] else 0.0
        return {"loss": total.item() / count, "bleu4": bleu4 or 0.0, "cider": scores["cider"] or 0.0}
