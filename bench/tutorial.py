"""The soft-attention decoder as the tutorials train it: a feature row a caption, regions projected again at each word.

Owns that way, which the benches compare with; it follows the most copied PyTorch tutorial of Show, Attend and Tell
(batches of captions sorted by length, `LSTMCell`, autograd, float32, Adam). Knows nothing of ours.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TutorialDecoder(nn.Module):
    """Attention, gate, LSTM and word scores.

    Args:
        channels: C of the regions.
        size: of attention, embedding and state.
        words: V.
    """

    def __init__(self, channels: int, size: int, words: int) -> None:
        super().__init__()
        self.region, self.query, self.score = nn.Linear(channels, size), nn.Linear(size, size), nn.Linear(size, 1)
        self.embedding, self.drop = nn.Embedding(words, size), nn.Dropout(0.5)
        self.cell = nn.LSTMCell(size + channels, size)
        self.first_hidden, self.first_cell = nn.Linear(channels, size), nn.Linear(channels, size)
        self.gate, self.output = nn.Linear(size, channels), nn.Linear(size, words)

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, T - 1, V) and attention (N, T - 1, R) of N captions (N, T), the longest first."""
        mean = regions.mean(1)
        hidden, cell = self.first_hidden(mean), self.first_cell(mean)
        embedded, said = self.embedding(captions), (lengths - 1).tolist()
        scores = regions.new_zeros(len(captions), said[0], self.output.out_features)
        attention = regions.new_zeros(len(captions), said[0], regions.shape[1])
        for time in range(said[0]):
            count = sum(length > time for length in said)
            keys = self.region(regions[:count])
            energy = self.score(torch.relu(keys + self.query(hidden[:count])[:, None]))[..., 0]
            weights = torch.softmax(energy, 1)
            context = (regions[:count] * weights[..., None]).sum(1)
            context = torch.sigmoid(self.gate(hidden[:count])) * context
            word = torch.cat((embedded[:count, time], context), 1)
            hidden, cell = self.cell(word, (hidden[:count], cell[:count]))
            scores[:count, time] = self.output(self.drop(hidden))
            attention[:count, time] = weights
        return scores, attention


def step(
    decoder: TutorialDecoder, optimiser: torch.optim.Optimizer, regions: Tensor, captions: Tensor, lengths: Tensor
) -> None:
    """Train on N captions and the regions of each, (N, R, C)."""
    scores, attention = decoder(regions, captions, lengths)
    spoken = torch.arange(scores.shape[1]) < (lengths - 1)[:, None]
    loss = functional.cross_entropy(scores[spoken], captions[:, 1 : 1 + scores.shape[1]][spoken])
    loss = loss + ((1 - attention.sum(1)) ** 2).mean()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(decoder.parameters(), 5.0)
    optimiser.step()
