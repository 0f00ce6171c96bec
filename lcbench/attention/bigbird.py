"""BigBird: every block of tokens reads a window of blocks, a few random blocks and the global ones.

Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed, "Big Bird: Transformers for
Longer Sequences", 2020, arXiv 2007.14062. A document is cut into blocks of b positions. Queries of block j read

    window   blocks j - (w-1)/2 .. j + (w-1)/2
    random   r blocks outside window and global blocks, drawn once for every block, head and layer
    global   g blocks, which every block reads and which read every block
    o = softmax(c q k^T + what the encoding adds) v,  one softmax over the distinct keys of all three;  y = W_o o

That is the form that reads both ways (an encoder; internal global tokens, "ITC"). Of g global blocks the first
``g - g // 2`` of the document and its last ``g // 2`` are taken: the first and the last for g = 2, as released.

The causal form is not in the paper; the last block cannot be global, and a two-way global token would hand the future
to all. Queries of block j read, up to themselves,

    window   blocks j - w + 1 .. j
    random   min(r, j - w + 1 - g) of the blocks g .. j - w
    global   blocks 0 .. g - 1

It keeps the keys that a query reads, ``(g + w + r) b``, and the block structure, but not the theorems: information
flows forward only, and a global block does not summarise the sequence.

Random blocks are part of the model, not of a run: they follow from (seed, layer, head, j) by a counter-based generator
(SplitMix64; Steele, Lea, Flood 2014) and are never drawn again. In the causal form they do not depend on how long the
document is or how it is cut; read both ways, the blocks to draw from are all of the document's, so they depend on
their number as well. They are uniform (``draw=uniform``), as in the paper's text. The released code draws early blocks
only, for most lengths among the first ``2 r + 5`` of every row: ``draw=early``.

An encoding that counts all keys up to the query (CoPE) is refused; all others see true distances. Attention weights
are dropped as elsewhere, which the released block-sparse code does not do. Cost is linear in time. The state is every
key and value, since any block may be drawn later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.blocks import Ints, on
from lcbench.attention.cache import KeyValues
from lcbench.attention.gathered import Gathering, Part, gather, refuse_counting, weigh
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.tiles import Tiles, tile
from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding
from lcbench.units import Length

Draw = Literal["uniform", "early"]

#: pairs of query and key, of all heads, that a group holds at a time
_PAIRS = 2**21


class BigBird(MultiHead):
    """A window, random blocks and global blocks.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        block: b, positions in a block.
        window: w, blocks in the window, odd.
        random: r, random blocks.
        global_blocks: g.
        draw: what random blocks are drawn from: all, or early blocks only.
        seed: of the random blocks.

    Raises:
        ConfigurationError: for sizes that are none, an even window, and an encoding that counts keys; where it reads
            both ways, for an encoding that reads backwards only.
    """

    reads_together = True
    footprint = "H (dk + dv) T"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        block: Length = 64,
        window: int = 3,
        random: int = 3,
        global_blocks: int = 2,
        draw: Draw = "uniform",
        seed: int = 0,
    ) -> None:
        super().__init__(shape, position)
        for name, value, least in (("block", block, 1), ("random", random, 0), ("global_blocks", global_blocks, 0)):
            if value < least:
                raise ConfigurationError(
                    f"attention.{name}={value} is too small; the least is attention.{name}={least}."
                )
        if window < 1 or window % 2 == 0:
            closest = max(1, window - 1)
            raise ConfigurationError(
                f"attention.window={window} has no block in its middle; it must be odd, and the closest choice is "
                f"attention.window={closest}."
            )
        refuse_counting(position, "attention=bigbird")
        self.plan = Plan(window, random, global_blocks, draw, seed, shape.layer, shape.n_heads)
        self.block = block

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        causal = not self.both_ways(context)
        if not q.numel():
            return AttentionOutput(self.merge(q), keys)
        tiles = tile(keys, context, self.block)
        rotated_q, rotated_k = self.position.rotate(q, keys.k, context.positions, keys.positions)
        reads_content = self.position.reads_content(keys.positions)
        seed = int(torch.randint(2**62, (), device="cpu")) if self.dropped else 0
        blocks = BlockSparse(tiles, self.plan, self.position, len(x), causal, reads_content, self.dropped, seed)
        plain_q = plain_k = None
        if reads_content and rotated_q is not q:
            plain_q, plain_k = tiles.lay_queries(q), tiles.lay(keys.k)
        features = None if keys.features is None else tiles.lay(keys.features)
        laid = tiles.lay_queries(rotated_q), tiles.lay(rotated_k), tiles.lay(keys.v), plain_q, plain_k, features
        o = gather(blocks, *(None if tensor is None else tensor.contiguous() for tensor in laid))
        return AttentionOutput(self.merge(tiles.take_back(o, q.shape[2])), keys)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, and its position."""
        return batch * length * self.key_bytes(dtype.itemsize)


@dataclass(frozen=True)
class Plan:
    """Which blocks a block reads; see the module's text."""

    window: int
    random: int
    global_blocks: int
    draw: Draw
    seed: int
    layer: int
    n_heads: int

    @property
    def leading(self) -> int:
        """Global blocks at the start of a document read both ways."""
        return self.global_blocks - self.global_blocks // 2

    @property
    def trailing(self) -> int:
        return self.global_blocks // 2

    @property
    def side(self) -> int:
        """Blocks of the window on either side, read both ways."""
        return self.window // 2

    def random_blocks(self, j: Ints, total: Ints | None) -> Ints:
        """The random blocks of blocks ``j`` ``[any]``: int64 ``[any, heads, r]``, -1 where there are no more.

        ``total``: blocks in their document, ``[any]``, read both ways; None: the causal form.
        """
        limit = 2 * self.random + 5 if self.draw == "early" else np.iinfo(np.int64).max
        if total is None:
            first = np.full_like(j, self.global_blocks)
            before = np.maximum(np.minimum(j - self.window + 1, limit) - first, 0)
            resume, after = first, np.zeros_like(j)
        else:
            # the blocks from ``first`` up to the window, and those from ``resume`` on behind it
            first, end = np.full_like(j, self.leading), np.minimum(total - self.trailing, limit)
            before = np.maximum(np.minimum(j - self.side, end) - first, 0)
            resume = np.maximum(j + self.side + 1, first)
            after = np.maximum(end - resume, 0)
        drawn = self._draw(j, before + after)
        index = drawn - before[:, None, None]
        found = np.where(index < 0, first[:, None, None] + drawn, resume[:, None, None] + index)
        return np.where(drawn < 0, -1, found)

    def _draw(self, j: Ints, count: Ints) -> Ints:
        """r of ``count`` without replacement, from 0, in rising order but for what is -1; all ``[any]``."""
        head = np.arange(self.n_heads)
        state = _mixed(_mixed(_mixed(_mixed(np.uint64(0), self.seed), self.layer), head), j[:, None])  # [any, heads]
        chosen: list[Ints] = []
        for n in range(self.random):
            left = (count - n)[:, None]
            uniform = (_mixed(state, n) >> np.uint64(11)) * 2.0**-53
            rank = (uniform * np.maximum(left, 0)).astype(np.int64)  # among those not chosen yet
            for before in np.sort(np.stack(chosen), 0) if chosen else ():
                rank += (rank >= before) & (before >= 0)
            chosen.append(np.where(left > 0, rank, -1))
        return np.stack(chosen, -1) if chosen else np.zeros((*state.shape, 0), np.int64)


def _mixed(state: Ints | np.uint64, value: Ints | int) -> Ints:
    """One step of SplitMix64 from ``state``, advanced by ``value``; arrays of uint64."""
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        z = np.asarray(state) + golden * (np.asarray(value).astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Group:
    """Some tiles of queries.

    Args:
        row: batch rows, ``[tiles]``.
        tile: which tiles of those rows.
        alike: tiles that all heads read, ``[tiles, any]``, and whether they do.
        apart: tiles that each head reads, ``[tiles, heads, r]``, and whether it does.
        number: added to the seed of dropout.
    """

    row: Ints
    tile: Ints
    alike: tuple[Ints, Ints]
    apart: tuple[Ints, Ints]
    number: int


class BlockSparse(Gathering[Group]):
    """The tiles of one call, and which of them each tile of queries reads."""

    def __init__(
        self,
        tiles: Tiles,
        plan: Plan,
        position: PositionEncoding,
        batch: int,
        causal: bool,
        reads_content: bool,
        dropout: float,
        seed: int,
    ) -> None:
        super().__init__([position])
        self.tiles, self.plan, self.position = tiles, plan, position
        self.batch, self.causal, self.reads_content = batch, causal, reads_content
        self.dropout, self.seed = dropout, seed
        self._groups = list(self._planned())

    def groups(self) -> Iterator[Group]:
        return iter(self._groups)

    def _planned(self) -> Iterator[Group]:
        """Tiles of queries, so many at a time; those of global blocks that read everything apart."""
        tiles, plan = self.tiles, self.plan
        first, last = tiles.of_document()
        row, tile_ = np.nonzero(tiles.document[:, tiles.since :] >= 0)
        tile_ = tile_ + tiles.since
        j, total = tiles.block[row, tile_], np.take_along_axis(tiles.block, np.maximum(last, 0), 1)[row, tile_] + 1
        dense = np.zeros_like(j, dtype=bool)
        if not self.causal:
            dense = (j < plan.leading) | (j >= total - plan.trailing)
        repeats = self.batch // len(tiles.block)  # rows that are alike
        for everything in (False, True):
            some = np.nonzero(dense == everything)[0]
            if not len(some):
                continue
            r, t, begin, end = row[some], tile_[some], first[row, tile_][some], last[row, tile_][some]
            if everything:
                alike = self._valid(r, t, begin[:, None] + np.arange(int((end - begin).max()) + 1))
                apart = np.zeros((len(some), plan.n_heads, 0), np.int64), np.zeros((len(some), plan.n_heads, 0), bool)
            else:
                alike = self._window_and_global(r, t, begin, end, total[some])
                apart = self._random(r, t, total[some])
            if repeats > 1:
                r = np.repeat(np.arange(repeats), len(r))
                t, alike, apart = (_tiled(arrays, repeats) for arrays in ((t,), alike, apart))
            yield from self._split(r, t, alike, apart)

    def _valid(self, row: Ints, tile_: Ints, found: Ints) -> tuple[Ints, Ints]:
        """``found`` ``[tiles, any]``, and where those are tiles of the same document."""
        inside = np.clip(found, 0, self.tiles.count - 1)
        same = self.tiles.document[row[:, None], inside] == self.tiles.document[row, tile_][:, None]
        return inside, same & (inside == found)

    def _window_and_global(self, row: Ints, tile_: Ints, begin: Ints, end: Ints, total: Ints) -> tuple[Ints, Ints]:
        plan, tiles = self.plan, self.tiles
        j = tiles.block[row, tile_][:, None]
        back, ahead = (plan.window - 1, 0) if self.causal else (plan.side, plan.side)
        leading = plan.global_blocks if self.causal else plan.leading
        trailing = 0 if self.causal else plan.trailing

        def at(found: Ints) -> tuple[Ints, Ints, Ints]:
            """Tiles, whether they are of the document, and their blocks."""
            inside, same = self._valid(row, tile_, found)
            return inside, same, tiles.block[row[:, None], inside]

        # blocks without a token have no tile: so many tiles are at most so many blocks away
        window, seen, block = at(tile_[:, None] + np.arange(-min(back, tiles.count), min(ahead, tiles.count) + 1))
        seen = seen & (block >= j - back) & (block <= j + ahead)
        head, is_head, block = at(begin[:, None] + np.arange(min(leading, tiles.count)))
        is_head = is_head & (block < leading) & ((block < j - back) | (block > j + ahead))
        tail, is_tail, block = at(end[:, None] - np.arange(min(trailing, tiles.count)))
        is_tail = is_tail & (block >= np.maximum(total[:, None] - trailing, leading))
        is_tail = is_tail & ((block < j - back) | (block > j + ahead))
        return np.concatenate([head, window, tail], 1), np.concatenate([is_head, seen, is_tail], 1)

    def _random(self, row: Ints, tile_: Ints, total: Ints) -> tuple[Ints, Ints]:
        tiles = self.tiles
        block = self.plan.random_blocks(tiles.block[row, tile_], None if self.causal else total)
        row, document = (np.broadcast_to(a[:, None, None], block.shape) for a in (row, tiles.document[row, tile_]))
        found, there = tiles.find(row.ravel(), document.ravel(), block.ravel())
        return found.reshape(block.shape), there.reshape(block.shape)

    def take(self, tensors: Sequence[Tensor | None], group: Group) -> list[Tensor | None]:
        """Queries; keys that heads read alike, and apart; the same of values, plain keys, features; plain queries."""
        q, k, v, plain_q, plain_k, features = tensors
        q_index, *k_index = self._indices(group)
        of_keys = [self._taken(tensor, index) for tensor in (k, v, plain_k, features) for index in k_index]
        return [self._taken(q, q_index), *of_keys, self._taken(plain_q, q_index)]

    def give(self, sums: Sequence[Tensor | None], group: Group, gradients: Sequence[Tensor | None]) -> None:
        d_q, d_k, d_v, d_plain_q, d_plain_k, d_features = sums
        q_index, *k_index = self._indices(group)
        of_keys = [(total, index) for total in (d_k, d_v, d_plain_k, d_features) for index in k_index]
        targets = [(d_q, q_index), *of_keys, (d_plain_q, q_index)]
        for (total, index), gradient in zip(targets, gradients, strict=True):
            if gradient is not None:
                assert total is not None
                rows = total.view(-1, self.tiles.b * total.shape[-1])
                rows.index_add_(0, index.flatten(), gradient.reshape(-1, rows.shape[1]).to(rows.dtype))

    def read(self, taken: Sequence[Tensor | None], group: Group) -> Tensor:
        q, k, k_apart, v, v_apart, plain_k, plain_k_apart, features, features_apart, plain_q = taken
        assert q is not None
        heads, b, device = self.plan.n_heads, self.tiles.b, q.device
        row = group.row if len(self.tiles.block) > 1 else np.zeros_like(group.row)
        row_, slot = on(device, row), torch.arange(b, device=device)
        q_place = on(device, group.tile)[:, None] * b + slot  # [tiles, b]
        q_at = self.tiles.positions[row_[:, None], q_place]
        parts = []
        for (index, valid), of_k, of_v, of_plain, of_features in (
            (group.alike, k, v, plain_k, features),
            (group.apart, k_apart, v_apart, plain_k_apart, features_apart),
        ):
            if of_k is None or of_v is None:
                continue
            apart = index.ndim == 3
            place = (on(device, index)[..., None] * b + slot).flatten(-2)  # [tiles, keys] or [tiles, heads, keys]
            rows = row_.view(-1, *[1] * (place.dim() - 1))
            seen = self._visible(index if apart else index[:, None], valid if apart else valid[:, None], row_, q_place)
            k_at = self.tiles.positions[rows, place]
            if apart:
                alignment = Alignment(q_at.repeat_interleave(heads, 0), k_at.flatten(0, 1), None)
            else:
                alignment = Alignment(q_at, k_at, None)
            parts.append(
                Part(
                    k=of_k,
                    v=of_v,
                    plain_k=of_k if of_plain is None else of_plain,
                    features=of_features,
                    visible=seen,
                    alignment=alignment,
                    apart=apart,
                    position=self.position,
                )
            )
        return weigh(
            q,
            q if plain_q is None else plain_q,
            parts,
            reads_content=self.reads_content,
            dropout=self.dropout,
            seed=self.seed + group.number,
            ragged=self.tiles.hole is not None,
        )

    def _visible(self, index: Ints, valid: Ints, row: Tensor, q_place: Tensor) -> Tensor:
        """Which keys of tiles ``index`` ``[tiles, 1 or heads, any]`` queries at ``q_place`` ``[tiles, b]`` see:
        ``[tiles, 1 or heads, b, keys]``."""
        b, hole, device = self.tiles.b, self.tiles.hole, row.device
        if hole is None and bool((valid == valid[:, :1]).all()):
            index, valid = index[:, :1], valid[:, :1]  # random blocks differ, but lie before the query in all heads
        place = (on(device, index)[..., None] * b + torch.arange(b, device=device)).flatten(-2)[:, :, None]
        seen = on(device, valid).repeat_interleave(b, -1)[:, :, None]
        if hole is not None:
            seen = seen & ~hole[row.view(-1, 1, 1, 1), place]
        return seen & (place <= q_place[:, None, :, None]) if self.causal else seen.expand(-1, -1, b, -1)

    def put(self, out: Tensor, group: Group, o: Tensor) -> None:
        rows = out.view(-1, self.tiles.b * out.shape[-1])
        rows.index_copy_(0, self._indices(group)[0].flatten(), o.reshape(-1, rows.shape[1]))

    def find(self, out: Tensor, group: Group) -> Tensor:
        found = self._taken(out, self._indices(group)[0])
        assert found is not None
        return found

    def _split(self, row: Ints, tile_: Ints, alike: tuple[Ints, Ints], apart: tuple[Ints, Ints]) -> Iterator[Group]:
        """Tiles of queries, so many at a time."""
        keys = alike[0].shape[1] + apart[0].shape[2]
        heads = self.plan.n_heads
        joined = apart[0].shape[2] > 0
        if joined and (self.reads_content or type(self.position).position_bias is not PositionEncoding.position_bias):
            heads *= heads  # a bias is made for every head at each head's places: not for more keys than must be
            joined = False
        numbers = self.tiles.b**2 * keys * heads * (self.position.pair_width if self.reads_content else 1)
        size = max(1, _PAIRS // max(numbers, 1))
        for start in range(0, len(row), size):
            some = slice(start, start + size)
            used = alike[1][some].any(0)
            near, far = [array[some][:, used] for array in alike], [array[some] for array in apart]
            if joined:
                shape = (len(near[0]), heads, near[0].shape[1])
                far = [
                    np.concatenate([np.broadcast_to(n[:, None], shape), f], 2) for n, f in zip(near, far, strict=True)
                ]
                near = [n[:, :0] for n in near]
            yield Group(row[some], tile_[some], (near[0], near[1]), (far[0], far[1]), start)

    def _indices(self, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles of queries, and of keys that heads read alike and apart, in ``[batch * heads * tiles, ...]``; each
        ``[tiles, heads, any]``."""
        heads, tiles, device = self.plan.n_heads, self.tiles, self.tiles.positions.device
        lane = (group.row[:, None] * heads + np.arange(heads))[..., None]  # [tiles, heads, 1]
        q_index = lane * (tiles.count - tiles.since) + (group.tile - tiles.since)[:, None, None]
        alike, apart = lane * tiles.count + group.alike[0][:, None], lane * tiles.count + group.apart[0]
        return on(device, q_index), on(device, alike), on(device, apart)

    def _taken(self, tensor: Tensor | None, index: Tensor) -> Tensor | None:
        """Tiles ``index`` ``[tiles, heads, any]`` of ``[batch, heads, time, width]``, as
        ``[tiles, heads, any * b, width]``; None of nothing."""
        if tensor is None or not index.shape[2]:
            return None
        width = tensor.shape[-1]
        rows = tensor.view(-1, self.tiles.b * width).index_select(0, index.flatten())
        return rows.view(*index.shape[:2], -1, width)


def _tiled(arrays: Sequence[Ints], repeats: int) -> Any:
    """Arrays ``[any, ...]`` one after the other, so many times; one of them as itself."""
    found = tuple(np.tile(array, (repeats, *[1] * (array.ndim - 1))) for array in arrays)
    return found if len(found) > 1 else found[0]
