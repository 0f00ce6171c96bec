"""The LSTM, a control: it keeps one bit exactly, whatever the distance.

Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; the control of flip-flop language modelling
(Liu et al. 2023, arXiv 2306.00946).

    [i, f, g, o]_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f_t) * c_{t-1} + sigmoid(i_t) * tanh(g_t)
    h_t = sigmoid(o_t) * tanh(c_t)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lcbench.attention.base import Facts, State
from lcbench.model.base import Model, ModelOutput, ModelState, check_network, place


@dataclass(frozen=True)
class LSTMState(State):
    """``h`` and ``c``, both ``[batch, layers, d_model]``."""

    h: Tensor
    c: Tensor


class LSTM(Model):
    """A stack of LSTM layers over token embeddings; the output map has no bias.

    At a document's first token ``h`` and ``c`` are cleared; at padding they stay as they are.

    Initialisation: embeddings normal with standard deviation ``d_model ** -0.5``; everything else uniform within
    ``d_model ** -0.5`` either side of 0, as torch has it.

    Args:
        vocabulary_size: number of token ids.
        d_model: width of embeddings, ``h`` and ``c``.
        n_layers: number of layers.
        dropout: probability of dropping embeddings and what one layer hands to the next.
        tie_embeddings: whether the output map is the embedding table.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        d_model: int = 64,
        n_layers: int = 1,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        check_network({"d_model": d_model, "n_layers": n_layers}, dropout)
        self.d_model = d_model
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.dropout = nn.Dropout(dropout)
        between_layers = dropout if n_layers > 1 else 0.0
        self.lstm = nn.LSTM(d_model, d_model, n_layers, batch_first=True, dropout=between_layers)
        self.output = nn.Linear(d_model, vocabulary_size, bias=False)
        if tie_embeddings:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, context: Facts | None = None, state: ModelState | None = None) -> ModelOutput:
        """See ``Model.forward``: ``tokens`` ``[batch, time]``, logits ``[batch, time, vocabulary]``."""
        network = f"{self.lstm.num_layers} layers of LSTM, width {self.d_model}"
        placement = place(tokens, context, state, network)
        x = self.dropout(self.embedding(tokens))  # [batch, time, d_model]
        if state is None:
            zero = x.new_zeros(self.lstm.num_layers, x.shape[0], x.shape[2])
            h, c = zero, zero
        else:
            (before,) = state.layers
            assert isinstance(before, LSTMState)
            h, c = before.h.transpose(0, 1).contiguous(), before.c.transpose(0, 1).contiguous()
        padding = placement.context.padding
        if placement.starts is None and padding is None:
            hidden, (h, c) = self.lstm(x, (h, c))
        else:
            hidden, (h, c) = self.step_by_step(x, h, c, placement.starts, padding)
        after = LSTMState(h.transpose(0, 1), c.transpose(0, 1))
        state = replace(placement.reached, layers=(after,))
        return ModelOutput(self.output, self.output.out_features, state, hidden, hidden)

    def step_by_step(
        self, x: Tensor, h: Tensor, c: Tensor, starts: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The LSTM with documents and padding: ``x`` ``[batch, time, d_model]``, ``h`` and ``c`` ``[layers, batch,
        d_model]``, ``starts`` and ``padding`` ``[batch, time]``; returns what ``nn.LSTM`` does."""
        outputs = []
        for t in range(x.shape[1]):
            if starts is not None:
                h, c = (tensor.masked_fill(starts[None, :, t, None], 0) for tensor in (h, c))
            output, (h_read, c_read) = self.lstm(x[:, t : t + 1], (h, c))
            if padding is None:
                h, c = h_read, c_read
            else:
                h = torch.where(padding[None, :, t, None], h, h_read)
                c = torch.where(padding[None, :, t, None], c, c_read)
            outputs.append(output)
        return torch.cat(outputs, 1), (h, c)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """See ``Model.state_bytes``: ``h``, ``c`` and the next position, whatever the length."""
        return batch * (2 * self.lstm.num_layers * self.lstm.hidden_size * dtype.itemsize + 8)
