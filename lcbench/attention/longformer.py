"""Longformer: a window, dilated in some heads, and a few global tokens.

Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv 2004.05150. A layer has a window w,
each of its heads a dilation d, and there is a set G of global tokens, here the first g positions of every document.
With ``attention(q, K, V) = softmax(c q K^T + what the encoding adds) V``:

    S_i = {i - m d : 0 <= m < w}                      causal: w keys, its own included
    S_i = {i + m d : |m| <= w / 2}                    both ways: the paper's w counts both sides
    o_i = attention(q_i, K[S_i u G], V[S_i u G])      i not in G: one softmax, no key counted twice
    o_i = attention(q^g_i, K^g, V^g)                  i in G: over all tokens
    q, k, v = W_q x, W_k x, W_v x,  q^g, k^g, v^g = W^g_q x, W^g_k x, W^g_v x,  y = W_o o

in which causal attention sees nothing after i: a global row that read the future would hand it to all others in the
next layer, so that global tokens of a language model are no more than past tokens that stay visible. Other tokens read
a global one through the local W_k, W_v. W^g start as copies of the local maps.

Through L layers a token is reached by ``L d (w - 1) + 1`` positions. In the paper's language models the window grows
from the bottom layer to the top one, and 2 heads of the upper layers are dilated. Its tables count dilation from 0;
here, as in its code, 1 is none. The released code has no causal form.

Cost is linear in time. The state is the last ``d (w - 1)`` keys and values of each head, and those of G, twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.multi_head import HeadGroups, MultiHead
from lcbench.attention.parts import InOrder, Part, attend_parts
from lcbench.attention.ranges import Chosen, First, compact, document_bounds, host, ranges
from lcbench.attention.reach import Window
from lcbench.attention.residues import Residues
from lcbench.attention.scoring import attend
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class LongformerState(State):
    """
    Args:
        local: of each group of heads with the same dilation, the last keys and values.
        far: of each group, keys and values of global tokens, through the local maps.
        own: keys and values of global tokens, through the maps of their own. Both of the last tokens of G that were
            read, at most g.
    """

    local: tuple[KeyValues, ...]
    far: tuple[KeyValues, ...] | None
    own: KeyValues | None


class Longformer(MultiHead):
    """Windows by layer, dilation by layer and head, and global tokens.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        window: w; one for all layers, or a list of one for each, the bottom one first.
        dilation: d; one for all heads, a list of one for each head, or a list of such lists, one for each layer. 1 is
            none: the paper's tables call it 0, and 1 what is 2 here.
        global_tokens: g, how many positions at the start of a document are global.

    Raises:
        ConfigurationError: for sizes below the least, a list of the wrong length, or an encoding that counts what lies
            between a query and a key where some of that is not read.
    """

    reads_together = True
    footprint = "(dk + dv) (sum over heads of d (w - 1)) + 2 H (dk + dv) g"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        window: Length | list[Length] = 128,
        dilation: int | list[int] | list[list[int]] = 1,
        global_tokens: int = 0,
    ) -> None:
        super().__init__(shape, position)
        self.window: int = _of_layer(shape, window)
        dilations = _of_heads(shape, dilation)
        for key, value, least in (("window", self.window, 1), ("dilation", min(dilations), 1)):
            if value < least:
                raise ConfigurationError(
                    f"attention.{key}={value} sees nothing; the least is attention.{key}={least}."
                )
        if global_tokens < 0:
            raise ConfigurationError(
                f"attention.global_tokens={global_tokens} is no number of tokens; the least is "
                "attention.global_tokens=0."
            )
        if position.reads_between and (global_tokens or max(dilations) > 1):
            raise ConfigurationError(
                f"position {type(position).__name__} counts every token between a query and a key, of which "
                "attention=longformer with global tokens or dilation does not read some; the closest choices are "
                "attention.global_tokens=0 with attention.dilation=1, and position=rope."
            )
        #: of each group of heads
        self.dilations = sorted(set(dilations))
        self.heads = HeadGroups([[h for h, d in enumerate(dilations) if d == one] for one in self.dilations])
        self.global_tokens = global_tokens
        if global_tokens:
            self.global_q, self.global_k, self.global_v = (
                nn.Linear(shape.d_model, shape.d_model, bias=shape.bias) for _ in range(3)
            )
            for own, local in ((self.global_q, self.q), (self.global_k, self.k), (self.global_v, self.v)):
                own.load_state_dict(local.state_dict())

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``LongformerState``."""
        before = state if isinstance(state, LongformerState) else None
        causal, back = not self.both_ways(context), None
        if context.padding is not None:
            order = context.padding.long().argsort(dim=1, stable=True)  # [batch, time], tokens first
            x, back = along_time(x, order), order.argsort(dim=1)
            context = context.map(lambda tensor: tensor.gather(1, order))
        q, new = self.project(x, context)
        chosen = Chosen(context, First(self.global_tokens)) if self.global_tokens else None

        outputs, local, far = [], [], []
        groups = zip(self.heads.groups, self.heads.split(q), self.heads.split_keys(new), strict=True)
        for n, (heads, of_q, of_new) in enumerate(groups):
            keys = of_new if before is None else before.local[n].append(of_new)
            parts = [self._near(context, keys, self.dilations[n], causal)]
            if chosen is not None:
                fresh = chosen.keys(of_new)
                held = fresh if before is None or before.far is None else before.far[n].append(fresh)
                pairs = chosen.pairs(held, Window(0) if causal else None)
                parts.append(Part(held, pairs, InOrder()))
                far.append(compact(held, self.global_tokens))
            outputs.append(attend_parts(of_q, context, parts, self.position, heads=heads, dropout=self.dropped))
            kept = keys.recent(self.dilations[n] * (self.window - 1))
            local.append(kept if len(self.heads.groups) == 1 else kept.map(Tensor.clone))
        o, own = self.heads.join(outputs), None
        if chosen is not None:
            o, own = self._global_rows(x, o, context, chosen, before.own if before else None, causal)
        y = self.merge(o)
        y = y if back is None else along_time(y, back)
        return AttentionOutput(y, LongformerState(tuple(local), tuple(far) if far else None, own))

    def _near(self, context: Context, keys: KeyValues, dilation: int, causal: bool) -> Part:
        """The window, without global tokens."""
        width = self.window if causal else self.window // 2 + 1
        if dilation == 1:
            return Part.near(context, keys, Window(width, floor=self.global_tokens or None), causal)
        residues = Residues(context, keys, dilation)
        return Part(keys, residues.window(width, causal, self.global_tokens), residues)

    def _global_rows(
        self, x: Tensor, o: Tensor, context: Context, chosen: Chosen, before: KeyValues | None, causal: bool
    ) -> tuple[Tensor, KeyValues]:
        """``o`` ``[batch, heads, time, head_dim]`` with the rows of global tokens, and the keys and values that later
        ones read."""
        of_rows = chosen.take(x)
        read, facts = (of_rows, chosen.context) if causal else (x, context)
        q, k, v = self.split(self.global_q(of_rows)), self.split(self.global_k(read)), self.split(self.global_v(read))
        new = KeyValues.of(k, v, self.position.key_features(read, k, v), facts)
        of_globals = new if causal else chosen.keys(new)
        keys = new if before is None else before.append(new)
        if chosen.width == 0:
            rows = q
        elif causal:
            rows = attend(q, chosen.context, keys, self.position, dropout=self.dropped)
        else:
            lows, highs = self._documents_of(chosen, context, keys)
            exact = chosen.alike and keys.padding is None and keys.documents is None
            pairs = ranges(chosen.context, keys, None, lows, highs, exact)
            heads = range(self.shape.n_heads)
            part = Part(keys, pairs, InOrder())
            rows = attend_parts(q, chosen.context, [part], self.position, heads=heads, dropout=self.dropped)
        own = of_globals if before is None else before.append(of_globals)
        return (chosen.put(rows, o) if chosen.width else o), compact(own, self.global_tokens)

    def _documents_of(self, chosen: Chosen, context: Context, keys: KeyValues) -> tuple[np.ndarray, np.ndarray]:
        """Between which of ``keys`` each global token's document lies."""
        time = context.positions.shape[1]
        if chosen.alike:
            return np.zeros(chosen.width, np.int64), np.full(chosen.width, keys.length)
        places = torch.arange(keys.length - time, keys.length, device=context.positions.device)
        first, last = document_bounds(context, places.expand_as(context.positions), keys.length)
        taken = (chosen.take(ends[:, :, None])[:, :, 0] for ends in (first, last))
        lows, highs = taken
        return host(lows.amin(0)), host(highs.amax(0))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values, features and positions of what each group of heads keeps, and of global tokens twice."""
        of_head = (self.key_bytes(dtype.itemsize) - 8) // self.shape.n_heads
        held, groups = min(length, self.global_tokens), zip(self.heads.groups, self.dilations, strict=True)
        total = held * self.key_bytes(dtype.itemsize)
        for heads, dilation in groups:
            total += (min(length, dilation * (self.window - 1)) + held) * (len(heads) * of_head + 8)
        return batch * total


def _of_layer(shape: LayerShape, window: int | list[int]) -> int:
    if isinstance(window, int):
        return window
    if len(window) != shape.n_layers:
        raise ConfigurationError(
            f"attention.window={window} names {len(window)} layers, and there are {shape.n_layers}; "
            "the closest choices are a window for each of them, and one for all."
        )
    return window[shape.layer]


def _of_heads(shape: LayerShape, dilation: int | list[int] | list[list[int]]) -> list[int]:
    """The dilation of each head of this layer."""
    if isinstance(dilation, int):
        return [dilation] * shape.n_heads
    of_layer: list[int] = []
    if dilation and isinstance(dilation[0], list):
        if len(dilation) != shape.n_layers:
            raise ConfigurationError(
                f"attention.dilation={dilation} names {len(dilation)} layers, and there are {shape.n_layers}; "
                "the closest choice is a list for each of them."
            )
        of_layer = dilation[shape.layer]  # type: ignore[assignment]
    else:
        of_layer = dilation  # type: ignore[assignment]
    if len(of_layer) != shape.n_heads:
        raise ConfigurationError(
            f"attention.dilation={dilation} names {len(of_layer)} heads of a layer, and there are {shape.n_heads}; "
            "the closest choices are a dilation for each of them, and one for all."
        )
    return of_layer
