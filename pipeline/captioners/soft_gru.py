"""Soft attention with a GRU in the LSTM's place; all else is the soft decoder's, so that the two can be compared.

Owns that difference. `train.decoder_options` are the soft decoder's.
"""

from torch import Tensor

from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.gru import gru_step
from pipeline.captioners.looking import Looking
from pipeline.captioners.show_attend import Saw, ShowAttendTell
from pipeline.captioners.soft import SoftOptions
from pipeline.captioners.stepwise import Memory


class SoftGruCaptioner(ShowAttendTell):
    """Xu et al. 2015 with a GRU: the context joins the word in its input, and its one state begins as the LSTM's do."""

    def __init__(self, shape: DecoderShape, options: SoftOptions) -> None:
        super().__init__(shape, options, gates=3, states=1)

    def see(self, look: Looking, query: Tensor) -> Saw:
        looked = look(query)
        return Saw(looked.context, looked.weights)

    def remember(self, from_word: Tensor, from_hidden: Tensor, from_context: Tensor, memory: Memory) -> Memory:
        (hidden,) = memory
        return (gru_step(from_word.to(hidden.dtype) + from_context, from_hidden, hidden),)
