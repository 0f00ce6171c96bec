"""LongT5's transient global attention: the tokens nearby, and one summary of every block of k tokens.

Guo, Ainslie, Uthus, Ontanon, Ni, Sung, Yang, "LongT5: Efficient Text-To-Text Transformer for Long Sequences", 2022,
arXiv 2112.07916. With h the layer's input, block b of a document holding its positions ``b k`` to ``(b + 1) k - 1``:

    s_b = sum_{i in block b} h_i,   g_b = RMSNorm_g(s_b)          a scale vector of the layer's own, eps 1e-6
    K_g = W_k g,   V_g = W_v g                                    the maps of the tokens
    o_i = softmax(q_i [k_local ; K_g]^T + what the encoding adds) [v_local ; V_g],   y = W_o o

k_local are the keys at most r positions away. Summaries are made anew in every layer and are read by nobody else.

- Both ways (an encoder): every token reads all summaries of its document. Tokens left over after the last complete
  block join it; a document shorter than k has no summary. In a call that goes on from earlier ones, left-over tokens
  whose block began before the call join none.
- Causal (as in the authors' module, though LongT5 does not use it): a summary contains its own block, hence the
  future. Token i therefore reads those of finished blocks before its own only, ``b < block(i)``.

Where the encoding is T5's, summaries have a table of their own, for ``block(i) - b``; tokens left over count as of the
block that they join. All layers share it if they share the other. Every other encoding finds a summary where its block
ends, at position ``(b + 1) k - 1``. One that counts all keys up to the query (CoPE) is refused. What is said of
scaling in ``longt5_local`` holds here.

Cost is ``2 r + 1 + N / k`` keys a token: still quadratic, with a small constant; memory is linear. The state is the
last r keys and values, those of finished blocks, and the sum of the block that is not finished. Sums are float32 at
least.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

from lcbench.attention.base import Attention, AttentionOutput, Context, Looks, State
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.gathered import Gathering, Part, gather, refuse_counting, weigh
from lcbench.attention.longt5_local import LongT5Local
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.reach import Window
from lcbench.attention.segments import Reached
from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding
from lcbench.position.t5 import T5
from lcbench.units import Length

#: queries in a group, and pairs of query and key, of all heads, that it holds at a time
_ROWS, _PAIRS = 128, 2**21


@dataclass(frozen=True)
class TransientState(State):
    """What was read before.

    Args:
        local: keys and values of the last tokens.
        blocks: those of finished blocks, whose positions are where a block ends.
        total: the sum of the block that is not finished, ``[batch, d_model]``, in float32 at least.
        reached: the last token.
    """

    local: KeyValues
    blocks: KeyValues
    total: Tensor
    reached: Reached


@dataclass(frozen=True)
class Sums:
    """The blocks that a call's tokens lie in, first the one that was not finished before; the last is not finished.

    Args:
        total: sums, ``[batch, pieces, d_model]``.
        number: of a piece's block in its document, ``[1 or batch, pieces]``.
        document: ``[batch, pieces]``, or None.
        last: the last piece of each row, ``[batch]``; None where rows are alike.
        of_token: the piece of each token, ``[batch, time]``; None where rows are alike.
    """

    total: Tensor
    number: Tensor
    document: Tensor | None
    last: Tensor | None
    of_token: Tensor | None


class LongT5Global(LongT5Local):
    """Tokens nearby, and a summary of every block.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        radius: r.
        block: k, tokens in a block.
        scaled: scores are ``c q.k`` as elsewhere, and not T5's ``q.k``.

    Raises:
        ConfigurationError: for sizes that are none, and an encoding that counts keys; where it reads both ways, for an
            encoding that reads backwards only.
    """

    footprint = "H (dk + dv) (r + T / k) + d"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        radius: Length = 127,
        block: Length = 16,
        scaled: bool = False,
    ) -> None:
        super().__init__(shape, position, radius=radius, scaled=scaled)
        if block < 1:
            raise ConfigurationError(f"attention.block={block} holds nothing; the least is attention.block=1.")
        refuse_counting(position, "attention=longt5_global")
        self.block = block
        self.summary_norm = nn.RMSNorm(shape.d_model, eps=1e-6)
        self.of_blocks: T5 | None = None
        if isinstance(position, T5):
            self.of_blocks = copy.deepcopy(position)
            nn.init.normal_(self.of_blocks.table, std=shape.d_model**-0.5)

    def share(self, first: Attention) -> None:
        if isinstance(first, LongT5Global) and self.of_blocks is not None and first.of_blocks is not None:
            self.of_blocks.share(first.of_blocks)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``TransientState`` after what was read before."""
        before = state if isinstance(state, TransientState) else None
        if context.padding is None or not x.numel():
            return self._read(x, context, before)
        # padding between two tokens would push what the later one sees out of its reach
        order = context.padding.long().argsort(dim=1, stable=True)  # [batch, time], tokens first
        output = self._read(along_time(x, order), context.map(lambda tensor: tensor.gather(1, order)), before)
        return dataclasses.replace(output, y=along_time(output.y, order.argsort(dim=1)))

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``: summaries of blocks are no tokens."""
        return Attention.looks(self, x, context)

    def _read(self, x: Tensor, context: Context, state: TransientState | None) -> AttentionOutput:
        """The same of tokens that stand before all padding."""
        q, keys = self.project(x, context)
        if not x.numel():
            return AttentionOutput(self.merge(q), state)
        causal = not self.both_ways(context)
        keys = keys if state is None else state.local.append(keys)
        sums = self._sums(x, context, state, causal)
        blocks = self._finished(x, sums, None if state is None else state.blocks)
        summaries, q_block = blocks, context.positions // self.block
        if not causal:
            earlier = None if state is None else state.blocks
            summaries, q_block = self._all(x, context, sums, earlier)

        read = NearAndSummaries(self, context, keys, summaries, q_block, causal, alike=sums.last is None)
        rotated_q, rotated_k = self.position.rotate(q, keys.k, context.positions, keys.positions)
        of_blocks = self.position.rotate(q[:, :, :0], summaries.k, context.positions[:, :0], summaries.positions)[1]
        plain = (q, keys.k, summaries.k) if read.reads_content and rotated_q is not q else (None, None, None)
        o = gather(read, rotated_q, rotated_k, keys.v, of_blocks, summaries.v, *plain)
        total = sums.total[:, -1]
        if sums.last is not None:
            total = along_time(sums.total, sums.last[:, None])[:, 0]
        after = TransientState(keys.recent(self.radius), blocks, total.clone(), self._reached(context, state))
        return AttentionOutput(self.merge(o), after)

    def _sums(self, x: Tensor, context: Context, state: TransientState | None, causal: bool) -> Sums:
        start, k = context.start, self.block
        named = state is not None and (state.reached.document is not None or state.blocks.padding is not None)
        dtype = wide(x[:0]).dtype
        if causal and start is not None and not named:
            first = start // k if state is None else max(0, start - 1) // k
            before = start - first * k
            after = -(before + x.shape[1]) % k
            total = pad(x, (0, 0, before, after)).unflatten(1, (-1, k)).sum(2, dtype=dtype)
            if state is not None:
                total = torch.cat([total[:, :1] + state.total[:, None], total[:, 1:]], 1)
            number = torch.arange(first, first + total.shape[1], device=x.device)
            return Sums(total, number[None], None, None, None)

        batch = len(x)
        block, real = context.positions // k, self._real(context)
        document = torch.zeros_like(block) if context.documents is None else context.documents
        reached = state.reached if state is not None else Reached(real.new_zeros(batch), block.new_zeros(batch))
        last_block = reached.position // k
        last_document = torch.zeros_like(last_block) if reached.document is None else reached.document
        begins = block != torch.cat([last_block[:, None], block[:, :-1]], 1)
        begins |= document != torch.cat([last_document[:, None], document[:, :-1]], 1)
        begins &= real
        begins[:, 0] &= reached.read  # with nothing before it, a row's first token is in piece 0
        of_token = begins.cumsum(1)  # [batch, time]
        last = of_token[:, -1]
        pieces = int(last.max()) + 1
        total = x.new_zeros(batch, pieces, x.shape[-1], dtype=dtype)
        if state is not None:
            total = torch.cat([state.total.to(dtype)[:, None], total[:, 1:]], 1)
        total = total.scatter_add(1, of_token[..., None].expand_as(x), x.to(dtype).masked_fill(~real[..., None], 0))
        # padding goes where nobody looks
        place = of_token.masked_fill(~real, pieces)
        number, of = (block.new_zeros(batch, pieces + 1).scatter(1, place, fact)[:, :-1] for fact in (block, document))
        number, of = number.clone(), of.clone()
        number[:, 0] = torch.where(reached.read, last_block, number[:, 0])
        of[:, 0] = torch.where(reached.read, last_document, of[:, 0])
        return Sums(total, number, of, last, of_token)

    def _real(self, context: Context) -> Tensor:
        return torch.ones_like(context.positions, dtype=torch.bool) if context.padding is None else ~context.padding

    def _reached(self, context: Context, state: TransientState | None) -> Reached:
        """The last token of each row, after this call."""
        positions, documents, before = context.positions, context.documents, None if state is None else state.reached
        some, last = torch.ones_like(positions[:, 0], dtype=torch.bool), positions.shape[1] - 1
        at = torch.full_like(positions[:, :1], last)
        if context.padding is not None:
            count = (~context.padding).sum(1)
            some, at = count > 0, (count - 1).clamp(min=0)[:, None]
        position = positions.gather(1, at)[:, 0]
        document = None if documents is None else documents.gather(1, at)[:, 0]
        if before is None:
            return Reached(some, position.masked_fill(~some, 0), None if document is None else document * some)
        if document is not None or before.document is not None:
            old = torch.zeros_like(position) if before.document is None else before.document
            document = torch.where(some, torch.zeros_like(position) if document is None else document, old)
        return Reached(before.read | some, torch.where(some, position, before.position), document)

    def _finished(self, x: Tensor, sums: Sums, earlier: KeyValues | None) -> KeyValues:
        """Those of ``earlier``, and of the call's blocks those behind which their document goes on."""
        padding, document = None, None
        if sums.document is not None:
            assert sums.last is not None
            piece = torch.arange(sums.number.shape[1] - 1, device=x.device)
            document = sums.document[:, :-1]
            padding = (piece >= sums.last[:, None]) | (document != sums.document[:, 1:])
        return self._joined(earlier, self._keys(x, sums.total[:, :-1], sums.number[:, :-1], document, padding))

    def _all(self, x: Tensor, context: Context, sums: Sums, earlier: KeyValues | None) -> tuple[KeyValues, Tensor]:
        """What is read both ways: those of ``earlier``, and of all complete blocks of the call with what is left over
        behind them; and the block that each token counts as of, ``[batch, time]``."""
        assert sums.document is not None
        assert sums.last is not None
        assert sums.of_token is not None
        pieces, number, document = sums.number.shape[1], sums.number, sums.document
        piece = torch.arange(pieces, device=x.device)
        exists = piece <= sums.last[:, None]
        # the last position in each piece
        end = torch.full_like(number, -1).scatter_reduce(
            1, sums.of_token, context.positions.masked_fill(~self._real(context), -1), "amax"
        )
        goes_on = torch.zeros_like(exists)
        goes_on[:, :-1] = exists[:, 1:] & (document[:, 1:] == document[:, :-1])
        complete = exists & (goes_on | (end == (number + 1) * self.block - 1))
        follows = torch.zeros_like(exists)
        follows[:, 1:] = exists[:, 1:] & (document[:, 1:] == document[:, :-1])
        joins = exists & ~complete & follows
        left_over = torch.where(joins[..., None], sums.total, torch.zeros_like(sums.total))
        total = sums.total + torch.cat([left_over[:, 1:], torch.zeros_like(left_over[:, :1])], 1)
        counts_as = torch.where(joins, number.roll(1, 1), number)
        summaries = self._joined(earlier, self._keys(x, total, number, document, ~complete))
        return summaries, counts_as.gather(1, sums.of_token)

    def _keys(
        self, x: Tensor, total: Tensor, number: Tensor, document: Tensor | None, padding: Tensor | None
    ) -> KeyValues:
        """Keys and values of blocks by their sums ``[batch, pieces, d_model]``."""
        with without_autocast(x.device):
            norm = self.summary_norm
            g = rms_norm(total, total.shape[-1:], eps=norm.eps) * norm.weight.to(total.dtype)
        g = g.to(x.dtype)
        k, v = self.split(self.k(g)), self.split(self.v(g))
        positions = ((number + 1) * self.block - 1).expand(len(x), -1)
        return KeyValues(k, v, positions=positions, documents=document, padding=padding)

    def _joined(self, earlier: KeyValues | None, new: KeyValues) -> KeyValues:
        """Blocks in their order, without what all rows lack."""
        blocks = new if earlier is None else earlier.append(new)
        return blocks if blocks.padding is None else blocks.recent(_most(~blocks.padding))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys and values of the last r tokens and of all blocks but the last, one sum, and the last token's facts."""
        kept = min(length, self.radius) + (length - 1) // self.block
        total = self.shape.d_model * torch.promote_types(dtype, torch.float32).itemsize
        return batch * (kept * self.key_bytes(dtype.itemsize) + total + 8 + 1)


def _most(flags: Tensor) -> int:
    """The most flags in a row of ``[batch, any]``."""
    return int(flags.sum(1).max())


class NearAndSummaries(Gathering[tuple[Block, slice]]):
    """Blocks of queries, each with the keys near it and the summaries that it may see.

    Args:
        layer: whose encodings are used.
        context: describes the queries.
        keys: of tokens, those of the queries last.
        summaries: of blocks.
        q_block: the block that each query counts as of, ``[batch, q_time]``.
        causal: whether only earlier tokens, and blocks before ``q_block``, are seen.
        alike: whether all rows have the same positions and blocks.
    """

    def __init__(
        self,
        layer: LongT5Global,
        context: Context,
        keys: KeyValues,
        summaries: KeyValues,
        q_block: Tensor,
        causal: bool,
        alike: bool,
    ) -> None:
        self.position = layer.position
        self.of_blocks = layer.of_blocks
        super().__init__([self.position] if self.of_blocks is None else [self.position, self.of_blocks])
        self.pairs = Pairs.of(context, keys, causal, Window(layer.radius + 1))
        self.block, self.context, self.summaries, self.q_block = layer.block, context, summaries, q_block
        self.causal, self.alike = causal, alike
        self.reads_content = self.position.reads_content(keys.positions)
        self.heads, self.dropout = layer.shape.n_heads, layer.dropped
        self.seed = int(torch.randint(2**62, (), device="cpu")) if self.dropout else 0

    def groups(self) -> Iterator[tuple[Block, slice]]:
        batch, time = self.q_block.shape
        rows = min(_ROWS, time)
        wide_ = self.position.pair_width if self.reads_content else 1
        numbers = rows * (self.pairs.most_columns(rows) + self.summaries.length) * self.heads * wide_
        rows = max(1, min(rows, rows * _PAIRS // numbers)) if wide_ > 1 else rows
        for block in self.pairs.blocks(max(1, min(batch, _PAIRS // numbers)), rows):
            seen = self.summaries.length
            if self.causal and self.alike and self.context.start is not None:
                last = (self.context.start + self.q_block.shape[1] - 1) // self.block
                seen -= last - (self.context.start + block.rows.stop - 1) // self.block
            yield block, slice(0, max(0, seen))

    def take(self, tensors: Sequence[Tensor | None], group: tuple[Block, slice]) -> list[Tensor | None]:
        """Queries, keys, values, keys and values of summaries; queries and both kinds of keys before rotation."""
        return [None if t is None else t[place] for t, place in zip(tensors, self._places(group), strict=True)]

    def give(
        self, sums: Sequence[Tensor | None], group: tuple[Block, slice], gradients: Sequence[Tensor | None]
    ) -> None:
        for total, place, gradient in zip(sums, self._places(group), gradients, strict=True):
            if total is not None and gradient is not None:
                total[place] += gradient

    def _places(self, group: tuple[Block, slice]) -> list[tuple[slice, ...]]:
        block, summaries = group
        queries, near, far = block.of_queries, block.of_keys, (block.batch, slice(None), summaries)
        return [queries, near, near, far, far, queries, near, far]

    def read(self, taken: Sequence[Tensor | None], group: tuple[Block, slice]) -> Tensor:
        q, k, v, of_blocks, v_of_blocks, plain_q, plain_k, plain_of_blocks = taken
        assert q is not None
        assert k is not None
        assert v is not None
        assert of_blocks is not None
        assert v_of_blocks is not None
        block, seen = group
        near = Part(
            k=k,
            v=v,
            plain_k=k if plain_k is None else plain_k,
            features=None,
            visible=self.pairs.visible(block),
            alignment=self.pairs.alignment(block),
            apart=False,
            position=self.position,
        )
        parts = [near]
        if of_blocks.shape[2]:
            q_at, k_at = self.context.positions[block.batch, block.rows], self.summaries.positions[block.batch, seen]
            if self.of_blocks is not None:
                q_at, k_at = self.q_block[block.batch, block.rows], k_at // self.block
            far = Part(
                k=of_blocks,
                v=v_of_blocks,
                plain_k=of_blocks if plain_of_blocks is None else plain_of_blocks,
                features=None,
                visible=self._visible(block, seen),
                alignment=Alignment(q_at, k_at, None),
                apart=False,
                position=self.position if self.of_blocks is None else self.of_blocks,
            )
            parts = [far, near]
        return weigh(
            q,
            q if plain_q is None else plain_q,
            parts,
            reads_content=self.reads_content,
            dropout=self.dropout,
            seed=self.seed + block.batch.start * 2**32 + block.rows.start,
            ragged=self.pairs.ragged,
        )

    def _visible(self, block: Block, seen: slice) -> Tensor:
        """Which summaries the queries see, ``[1 or batch, 1, rows, summaries]``."""
        rows = slice(0, 1) if self.alike else block.batch
        q_block = self.q_block[rows, None, block.rows, None]
        number = self.summaries.positions[rows, None, None, seen] // self.block
        visible = number < q_block if self.causal else (number >= 0).expand(-1, -1, q_block.shape[2], -1)
        if self.pairs.q_documents is not None:
            documents = self.summaries.documents
            of = torch.zeros_like(self.summaries.positions) if documents is None else documents
            visible = visible & (self.pairs.q_documents[rows, None, block.rows, None] == of[rows, None, None, seen])
        if self.summaries.padding is not None:
            visible = visible & ~self.summaries.padding[rows, None, None, seen]
        return visible

    def put(self, out: Tensor, group: tuple[Block, slice], o: Tensor) -> None:
        out[group[0].of_queries] = o

    def find(self, out: Tensor, group: tuple[Block, slice]) -> Tensor:
        return out[group[0].of_queries]
