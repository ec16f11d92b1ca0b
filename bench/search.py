"""Beam search (5) over 1,000 images: ours, batched, beside the plain one-by-one search, in one run.

python -m bench.search [--json]

The plain way is the tutorials': one image at a time, its captions as the batch; the regions repeated for each of them
and chosen anew at every word, projected at every word within the attention, whose energy is written as it reads; the
query, the gate and the LSTM layers of their own; log-softmax and top-k over all words, and a Python loop over the
captions that are kept. It has the same weights and ranks as ours does, so that the captions must be the same, and they
are asserted to be. It runs on the first images only, the same that are compared; its time grows with their number.

The decoder is random, but counts its words and so ends its captions after about eleven, as people do. Regions are
196 x 2048 float32, 512 wide elsewhere, 2,600 words: Flickr8k on a ResNet.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import show, wants_json
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.search import beam_search
from pipeline.captioners.soft import SoftCaptioner, SoftOptions
from pipeline.language.vocabulary import END, PAD, START, UNKNOWN

IMAGES, PLAIN, AT_ONCE = 1000, 40, 64
REGIONS, CHANNELS, SIZE, VOCABULARY = 196, 2048, 512, 2600
BEAM, PENALTY, MOST = 5, 0.7, 30


def decoder() -> SoftCaptioner:
    """A random decoder whose first hidden unit counts words and drives END."""
    torch.manual_seed(0)
    shape = DecoderShape(VOCABULARY, CHANNELS, SIZE, SIZE, SIZE, 0.5)
    captioner = SoftCaptioner(shape, SoftOptions(activation="relu", gate=True, normalise=True, tie=False)).eval()
    gates = torch.tensor([0, SIZE, 2 * SIZE, 3 * SIZE])  # of the first unit: enter, forget, leave, candidate
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
        captioner.output.weight.mul_(4)  # words differ in probability as a trained decoder's do
        for layer in (captioner.from_word, captioner.from_context):
            layer.weight[gates] = 0
        captioner.from_hidden.weight[gates - 4 * SIZE] = 0
        captioner.from_hidden.bias[gates - 4 * SIZE] = 0
        captioner.from_context.bias[gates] = torch.tensor([9.0, 9.0, 9.0, 0.1])  # 0.1 more at every word
        captioner.initial.weight[SIZE], captioner.initial.bias[SIZE] = 0, -5.0  # from -1 on
        captioner.embedding.weight[:, 0], captioner.output_state.weight[0], captioner.output_state.bias[0] = 0, 0, 0
        captioner.output_state.weight[0, 0] = 1.5
        captioner.output.weight[END, 0], captioner.output.bias[END] = 30.0, 12.0
    return captioner


def pictures(count: int, first: int) -> Tensor:
    """Regions (count, R, C) that differ from image to image."""
    generator = torch.Generator().manual_seed(first)
    means = torch.randn(count, 1, CHANNELS, generator=generator)
    return means + 0.7 * torch.randn(count, REGIONS, CHANNELS, generator=generator)


class PlainDecoder(nn.Module):
    """The soft decoder as the tutorials write a step, with the weights of ours."""

    def __init__(self, ours: SoftCaptioner) -> None:
        super().__init__()
        self.ours = ours
        parts = [ours.attention_size, CHANNELS, 4 * SIZE]
        query, gate, gates = ours.from_hidden.weight.split(parts)
        query_bias, gate_bias, gates_bias = ours.from_hidden.bias.split(parts)
        self.query, self.query_bias, self.gate, self.gate_bias = query, query_bias, gate, gate_bias
        self.cell = nn.LSTMCell(SIZE + CHANNELS, SIZE)
        order = torch.arange(4 * SIZE).view(4, SIZE)[[0, 1, 3, 2]].flatten()  # torch has the candidate third
        self.cell.weight_ih.data = torch.cat((ours.from_word.weight, ours.from_context.weight), 1)[order]
        self.cell.weight_hh.data, self.cell.bias_hh.data = gates[order], gates_bias[order]
        self.cell.bias_ih.data = ours.from_context.bias[order]

    def step(self, words: Tensor, regions: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        """One word of K captions: logits (K, V), attention (K, R), hidden and cell (K, H); regions (K, R, C)."""
        ours = self.ours
        word = ours.embedding(words)
        keys, query = ours.attention.key(regions), functional.linear(hidden, self.query, self.query_bias)
        weights = torch.softmax(torch.relu(keys + query[:, None]) @ ours.attention.score, 1)
        context = (regions * weights[..., None]).sum(1)
        context = torch.sigmoid(functional.linear(hidden, self.gate, self.gate_bias)) * context
        hidden, cell = self.cell(torch.cat((word, context), 1), (hidden, cell))
        seen = ours.output_state(torch.cat((hidden, context), 1))
        return ours.output(torch.tanh(word + seen)), weights, hidden, cell


@dataclass(frozen=True)
class Kept:
    log: float
    words: list[int]
    row: int


@torch.no_grad()
def one_by_one(decoder: PlainDecoder, regions: Tensor) -> tuple[int, ...]:
    """The caption of one image, regions (R, C); ranked and stopped as ours."""
    regions = functional.layer_norm(regions, (CHANNELS,)).expand(BEAM, -1, -1).clone()
    hidden, cell = torch.tanh(decoder.ours.initial(regions.mean(1))).chunk(2, 1)
    kept = [Kept(0.0 if row == 0 else -math.inf, [START], row) for row in range(BEAM)]
    best, finished = (-math.inf, [START]), 0
    for length in range(1, MOST + 2):
        words = torch.tensor([caption.words[-1] for caption in kept])
        logits, _, hidden, cell = decoder.step(words, regions, hidden, cell)
        logits[:, [PAD, START, UNKNOWN]] = -math.inf
        logs = torch.log_softmax(logits, 1) + torch.tensor([caption.log for caption in kept])[:, None]
        values, places = logs.flatten().topk(2 * BEAM)
        grown = []
        for rank, (log, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            row, word = divmod(place, logs.shape[1])
            if word != END:
                grown.append(Kept(log, [*kept[row].words, word], row))
            elif rank < BEAM:
                finished += 1
                best = max(best, (log / length**PENALTY, kept[row].words), key=lambda entry: entry[0])
        if finished >= BEAM or length > MOST:
            break
        kept = grown[:BEAM]
        rows = torch.tensor([caption.row for caption in kept])
        regions, hidden, cell = regions[rows], hidden[rows], cell[rows]
    return tuple((best[1] if finished else kept[0].words)[1:])


def ours(captioner: SoftCaptioner, regions: Tensor) -> list[Hypothesis]:
    return beam_search(captioner, regions, beam=BEAM, length_penalty=PENALTY, max_length=MOST)


def main() -> None:
    as_json = wants_json(str(__doc__))
    captioner = decoder()
    plain = PlainDecoder(captioner)
    first = pictures(AT_ONCE, 0)
    ours(captioner, first)  # compiles and warms up
    ours(captioner, first[:1])
    taken, done = 0.0, 0
    captions: list[Hypothesis] = []
    while done < IMAGES:
        regions = pictures(min(AT_ONCE, IMAGES - done), done)
        started = time.perf_counter()
        captions += ours(captioner, regions)
        taken, done = taken + time.perf_counter() - started, done + len(regions)
    some = torch.cat([pictures(AT_ONCE, start) for start in range(0, PLAIN, AT_ONCE)])[:PLAIN]
    one_by_one(plain, some[0])
    started = time.perf_counter()
    said = [one_by_one(plain, regions) for regions in some]
    slow = time.perf_counter() - started
    started = time.perf_counter()
    alone = [ours(captioner, regions[None])[0] for regions in some]
    single = time.perf_counter() - started
    if not [one.words for one in captions[:PLAIN]] == [one.words for one in alone] == said:
        raise SystemExit("The captions differ.")
    length = sum(len(one.words) for one in captions) / IMAGES
    table = [
        ("ours, batched", 1000 * taken / IMAGES, f"ms an image ({IMAGES:,} images, {length:.1f} words)"),
        ("ours, one image at a time", 1000 * single / PLAIN, f"ms an image ({PLAIN} images)"),
        ("plain, one image at a time", 1000 * slow / PLAIN, f"ms an image ({PLAIN} images)"),
    ]
    ratios = {"ratio_search": slow / PLAIN * IMAGES / taken, "ratio_search_alone": single / PLAIN * IMAGES / taken}
    show(table, ratios, as_json)


if __name__ == "__main__":
    main()
