"""Landmark attention: a landmark after every block of tokens decides how much a query reads of that block.

Mohtashami, Jaggi, "Landmark Attention: Random-Access Infinite Context Length for Transformers", 2023,
arXiv 2305.16300. For query i, with scores ``s_ij`` as in causal attention and m(j) the landmark that closes j's block:

    S_ij = softmax of s_ij over the tokens of j's block,  for a token j of a block that was closed before i
    G_i  = softmax over the tokens of i's own block up to i and the landmarks of the blocks before it
    a_ij = G_ij            for a token j of i's own block
    a_ij = G_i,m(j) S_ij   for a token j of another block
    a_ij = 0               for a landmark j, so that its value is never read             (GroupedSoftmax, section 3.1)

A landmark reads its own block and earlier landmarks, not itself. A row's weights sum to 1; if every landmark scored
the log-sum-exp of its block, they would be those of plain softmax. Both softmaxes are computed block by block, G with
the log-sum-exp of the own block in the place of its landmark, in float32 at least. Without a landmark all tokens are
one block: plain attention. Cost and state are those of full attention.

Retrieval (``k``, evaluation only; section 3.2). A document is cut into windows of ``window`` positions. A query reads
all blocks that were not closed before its window, as above, and of those that were only the k whose landmarks score
highest, chosen by each head for each token; the other landmarks are absent from G. (The paper's cheaper choice for all
tokens of a window together would let a token depend on later ones, and is not offered.) A query then reads
``T / b`` landmarks and ``k (b + 1) + window`` tokens.

Stingy positions (figure 2): a prefix of k + 1 slots of b + 1 positions precedes the first local block, and what is
retrieved is placed in it, so that no position goes beyond those of a short text. To choose, the last k landmarks stand
in the last k slots, where they truly are, and all older ones in slot 0. To read, chosen blocks are put in the order of
time: those among the last k fill the slots from the right, older ones from the left, and at least one empty slot lies
between the two. A block ends where its slot ends. Keys are cached unrotated and placed when they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.blocks import Layout, Windowed, lay_out, on, windows
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.explicit import Normalised, Run, explicit
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.scoring import attend
from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding
from lcbench.units import Length

#: numbers of retrieved keys that are gathered at a time
_GATHERED = 2**22


@dataclass(frozen=True)
class LandmarkKeys(KeyValues):
    """Keys and values of all that was read.

    Args:
        landmarks: bool, ``[batch, time, 1]``.
    """

    landmarks: Tensor | None = None


class Landmark(MultiHead):
    """Attention through landmarks, whose places the context says.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        k: blocks that a query retrieves in evaluation; null: it reads all of them, as in training.
        window: positions in a window; 250 in the paper. Used with k.
        block: b, the most tokens between two landmarks; 50 in the paper. Used with stingy positions.
        retrieval: whether each head chooses for each token, or all heads choose the same for a token, by the largest
            share that any of them gives a landmark.
        stingy: whether retrieved tokens are read at stingy positions, or at their true ones.

    Raises:
        ConfigurationError: for a size below 1, an encoding that reads queries or keys where blocks are retrieved, and
            one that adds to the input where positions are stingy.
    """

    needs_landmarks = True

    remembers = True
    footprint = "H (dk + dv) T, landmarks included"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        k: int | None = None,
        window: Length = 250,
        block: int = 50,
        retrieval: Literal["per_head_and_token", "per_token"] = "per_head_and_token",
        stingy: bool = True,
    ) -> None:
        super().__init__(shape, position)
        for key, size in {"k": k, "window": window, "block": block}.items():
            if size is not None and size < 1:
                rest = " or null, all blocks" if key == "k" else ""
                raise ConfigurationError(
                    f"attention.{key}={size} reads nothing; the least is attention.{key}=1{rest}."
                )
        if k is not None:
            _check_encoding(position, k, stingy)
        self.retrieved = k
        self.window = window
        self.block = block
        self.all_heads_alike = retrieval == "per_token"
        self.stingy = stingy
        #: positions reserved before the first local block
        self.reserved = (k + 1) * (block + 1) if k is not None else 0
        self.evaluation_differs = k is not None

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``LandmarkKeys`` of what was read before."""
        q, new = self.project(x, context)
        landmarks = torch.zeros_like(context.positions, dtype=torch.bool)
        if context.landmarks is not None:
            landmarks = context.landmarks
        fields = {f.name: getattr(new, f.name) for f in dataclasses.fields(new)}
        keys = LandmarkKeys(**fields, landmarks=landmarks[:, :, None])
        if isinstance(state, LandmarkKeys):
            keys = state.append(keys)
        o, measures = self._read(q, context, keys)
        return AttentionOutput(self.merge(o), keys, measures=measures)

    @torch.compiler.disable
    def _read(self, q: Tensor, context: Context, keys: LandmarkKeys) -> tuple[Tensor, dict[str, Tensor]]:
        assert keys.landmarks is not None
        layout = lay_out(keys, keys.landmarks[:, :, 0], self.block, self.window)
        if layout is None:
            return attend(q, context, keys, self.position, dropout=self.dropped), {}
        if self.retrieved is None or self.training:
            return grouped_attention(q, context, keys, layout, self.position, self.dropped), {}
        if self.stingy and layout.width - 1 > self.block:
            raise ConfigurationError(
                f"attention.block={self.block} is shorter than a block of {layout.width - 1} tokens that was read; "
                f"the closest that works is attention.block={layout.width - 1}."
            )
        with without_autocast(q.device):
            return self._retrieve(q, context, keys, layout, self.retrieved)

    def _retrieve(
        self, q: Tensor, context: Context, keys: LandmarkKeys, layout: Layout, k: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, heads, time, width = q.shape
        before = keys.length - time
        # queries are taken window by window, each once, so that no window's backward pass touches all of them
        most = max(1, _GATHERED // (batch * heads * k * layout.width * width))
        cut = windows(layout, layout.new(before), most)
        if not cut:
            return torch.zeros_like(q), {}
        past = Past(self, k, keys, layout)
        taken = torch.cat([on(q.device, layout.tokens(w.index) - before) for w in cut], 1)
        valid = torch.cat([on(q.device, w.valid) for w in cut], 1)  # [batch, rows of all windows]
        taken = taken.masked_fill(~valid, time)
        q_parts = along_time(pad(q, (0, 0, 0, 1)), taken).split([w.index.shape[1] for w in cut], 2)
        parts, distances = zip(*(past.read(w, q_w) for w, q_w in zip(cut, q_parts, strict=True)), strict=True)
        # padding gets the row of zeros that is appended
        back = torch.full((batch, time + 1), taken.shape[1], dtype=torch.int64, device=q.device)
        back = back.scatter(1, taken, torch.arange(taken.shape[1], device=q.device).expand_as(taken))
        back = back[:, :-1]
        o = along_time(pad(torch.cat(parts, 2), (0, 0, 0, 1)), back)
        found = [distance for distance in distances if distance is not None]
        if not found:
            return o, {}
        total, count = (torch.stack(n).sum(0) for n in zip(*found, strict=True))
        return o, {"retrieval_distance": total / count.clamp(min=1)}

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, its position, and whether it is a landmark."""
        return batch * length * (self.key_bytes(dtype.itemsize) + 1)


def _check_encoding(position: PositionEncoding, k: int, stingy: bool) -> None:
    def overrides(method: str) -> bool:
        return getattr(type(position), method) is not getattr(PositionEncoding, method)

    name = type(position).__module__.rpartition(".")[-1]
    if overrides("content_bias"):
        raise ConfigurationError(
            f"attention.k={k}: position={name} reads queries or keys, which retrieved blocks do not offer in order; "
            "take an encoding by distance such as position=rope, or attention.k=null."
        )
    if stingy and overrides("embed"):
        raise ConfigurationError(
            f"attention.stingy=true: position={name} adds to the input, and what is read cannot be placed anew; "
            "take position=rope or attention.stingy=false."
        )


def grouped_softmax(tokens: Tensor, landmarks: Tensor, own: Tensor, since: int = 0) -> tuple[Tensor, Tensor]:
    """The softmax over the tokens of each piece, and G.

    Hidden scores are the least finite number; where all of a piece are hidden, its G is 0.

    Args:
        tokens: scores, hidden at the places of landmarks, ``[..., pieces, width]``.
        landmarks: scores of the pieces' landmarks, ``[..., pieces]``.
        own: whether a piece belongs to the query's own block, bool, broadcasts to ``[..., pieces - since]``.
        since: no piece before this one does.

    Returns:
        ``[..., pieces, width]`` and ``[..., pieces]``; their product is the weights.
    """
    # the own block takes part with all its tokens: with exp(log-sum-exp) in the sum of G
    own_scores = torch.where(own, tokens[..., since:, :].logsumexp(-1), landmarks[..., since:])
    scores = torch.cat([landmarks[..., :since], own_scores], -1)
    hidden = scores <= torch.finfo(scores.dtype).min / 2
    return torch.softmax(tokens, -1), torch.softmax(scores, -1).masked_fill(hidden, 0)


@dataclass(frozen=True)
class GroupedWeights(Normalised):
    """
    Args:
        inner: S, ``[batch, heads, rows, pieces, width]``.
        outer: G, ``[batch, heads, rows, pieces]``.
        own: whether a piece is of the query's own block, ``[1 or batch, 1, rows, pieces - since]``.
        since: no piece before this one is.
    """

    inner: Tensor
    outer: Tensor
    own: Tensor
    since: int

    def backward(self, d_weights: Tensor) -> Tensor:
        """With ``a = G S``, and ``r`` the sum of ``a da`` over a piece: the landmark of a piece gets
        ``r - G sum(r)``, its tokens ``a da - S r``, those of the own block ``a da - S G sum(r)``."""
        columns = d_weights.shape[-1]
        moved = _in_pieces(d_weights.mul_(self.weights), self.inner.shape[-1])
        r = moved.sum(-1)  # [batch, heads, rows, pieces]
        shared = self.outer * r.sum(-1, keepdim=True)
        d_landmarks = r - shared
        d_landmarks[..., self.since :].masked_fill_(self.own, 0)
        r[..., self.since :] = torch.where(self.own, shared[..., self.since :], r[..., self.since :])
        moved.addcmul_(self.inner, r[..., None], value=-1)
        moved[..., -1] = d_landmarks
        return moved.flatten(-2)[..., :columns]


@dataclass(frozen=True)
class GroupedRun(Run):
    """The explicit path with grouped softmax, for keys that lie as ``layout`` has them.

    Args:
        layout: of the keys.
        start: the place of the first query.
    """

    layout: Layout
    start: int

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[Block]:
        """Those of any softmax, with whole pieces of keys."""
        width = self.layout.width
        for block in super().blocks(q, k):
            stop = min(k.shape[2], -(-block.columns.stop // width) * width)
            yield dataclasses.replace(block, columns=slice(0, stop))

    def normalise(self, scores: Tensor, block: Block) -> GroupedWeights:
        """See ``Run.normalise``."""
        layout, columns, least = self.layout, scores.shape[-1], torch.finfo(scores.dtype).min
        tokens = _in_pieces(scores, layout.width, least)
        landmarks = tokens[..., -1].clone()
        tokens[..., -1] = least
        count = landmarks.shape[-1]
        if layout.empty is not None:
            empty = on(scores.device, layout.empty[block.batch, None, None, :count])
            landmarks.masked_fill_(empty, least)
        piece = np.arange(self.start + block.rows.start, self.start + block.rows.stop) // layout.width
        first = layout.first[block.batch][:, piece]  # [batch, rows]
        since = int(first.min())
        number = np.arange(since, count)
        own = on(scores.device, ((number >= first[..., None]) & (number <= piece[:, None]))[:, None])
        inner, outer = grouped_softmax(tokens, landmarks, own, since)
        weights = (inner * outer[..., None]).flatten(-2)[..., :columns]
        return GroupedWeights(weights, inner, outer, own, since)


def _in_pieces(tensor: Tensor, width: int, value: float = 0) -> Tensor:
    """``[..., columns]`` to ``[..., pieces, width]``, the last piece filled up with ``value``."""
    missing = -tensor.shape[-1] % width
    return (pad(tensor, (0, missing), value=value) if missing else tensor).unflatten(-1, (-1, width))


def grouped_attention(
    q: Tensor, context: Context, keys: LandmarkKeys, layout: Layout, position: PositionEncoding, dropout: float
) -> Tensor:
    """Every query reads all blocks of its document: ``q`` and result ``[batch, heads, q_time, head_dim]``."""
    before, places = keys.length - q.shape[2], layout.used
    start, laid, at, q_laid = before, keys, context, q
    back, padding = layout.back(before)
    if not layout.identity:
        if padding.all():
            return torch.zeros_like(q)
        start = int(back[~padding].min())
        token = on(q.device, layout.token[:, :places])
        laid = keys.arranged(token, on(q.device, layout.hole[:, :places]))
        q_laid = along_time(q, (token[:, start:] - before).clamp(min=0))
        documents = None if laid.documents is None else laid.documents[:, start:]
        at = Context(positions=laid.positions[:, start:], documents=documents, consecutive=False)
    rotated_q, rotated_k = position.rotate(q_laid, laid.k, at.positions, laid.positions)
    run = GroupedRun(
        Pairs.of(at, laid, causal=True, reach=None),
        position,
        reads_content=position.reads_content(laid.positions),
        has_bias=type(position).position_bias is not PositionEncoding.position_bias,
        dropout=dropout,
        seed=int(torch.randint(2**62, (), device="cpu")) if dropout > 0 else 0,
        differentiable=torch.is_grad_enabled(),
        layout=layout,
        start=start,
    )
    o = explicit(run, q_laid, laid, rotated_q, rotated_k)
    if layout.identity:
        return o
    o = along_time(o, on(q.device, np.maximum(back - start, 0)))
    return o.masked_fill(on(q.device, padding)[:, None, :, None], 0)


class Past:
    """All keys of a call as retrieval reads them.

    Args:
        layer: says how.
        k: blocks to retrieve.
        keys: all of them.
        layout: of ``keys``.
    """

    def __init__(self, layer: Landmark, k: int, keys: LandmarkKeys, layout: Layout) -> None:
        self.layer, self.k, self.layout = layer, k, layout
        device = keys.k.device
        self.slot = layer.block + 1  # positions in a slot
        self.hole = on(device, layout.hole)  # [batch, places]
        token = on(device, layout.token)
        laid = keys.arranged(token, self.hole)
        self.laid_k, self.laid_v = laid.k, laid.v  # [batch, heads, places, head_dim]
        self.positions = laid.positions
        # where a token stands in slot 0; for true positions, where it is
        self.home = on(device, layout.places_in_slot(layer.block)) if layer.stingy else self.positions
        one = self.positions[:, :1]
        self.home_k = layer.position.rotate(laid.k[:, :, :1], laid.k, one, self.home)[1]
        self.empty = None if layout.empty is None else on(device, layout.empty)

    def read(self, w: Windowed, q: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """What queries ``q`` ``[batch, heads, rows, head_dim]`` of one window read, in the shape of ``q``; and the sum
        of the distances of retrieved blocks, and their number, ``[heads]`` each, if there were any."""
        layout, device = self.layout, q.device
        local, origin = on(device, w.local)[:, None], on(device, w.origin)[:, None]  # [batch, 1]
        q_place = on(device, np.take_along_axis(layout.place, w.index, 1))  # [batch, rows]
        q_block = on(device, np.take_along_axis(layout.block, w.index, 1))
        q_positions = self.positions.gather(1, q_place)
        shift = self.layer.reserved - origin if self.layer.stingy else torch.zeros_like(origin)

        pieces = w.last + 1
        place = local * layout.width + torch.arange(pieces * layout.width, device=device)  # [batch, columns]
        beyond = place >= self.hole.shape[1]
        place = place.clamp(max=self.hole.shape[1] - 1)
        hidden = (self.hole.gather(1, place) | beyond)[:, None, None]
        hidden = hidden | (place[:, None, None] > q_place[:, None, :, None])  # [batch, 1, rows, columns]
        at, k_at = q_positions + shift, self.positions.gather(1, place) + shift
        turned_q, turned_k = self.layer.position.rotate(q, along_time(self.laid_k, place), at, k_at)
        scores = self._scores(turned_q, turned_k, Alignment(at, k_at, None))
        scores = _hide(scores, hidden).unflatten(-1, (pieces, layout.width))
        values = along_time(self.laid_v, place)
        number = local + torch.arange(pieces, device=device)
        own = (number[:, None] >= q_block[..., None]) & (number[:, None] <= q_place[..., None] // layout.width)
        own = own[:, None]  # [batch, 1, rows, pieces]
        empty = self._empty_at(number)[:, None, None]

        candidates = int((w.local - w.document).max())
        if candidates == 0:
            o = torch.matmul(self._weights(scores, empty, own).flatten(-2).to(q.dtype), values)
            return o, None
        piece = local - candidates + torch.arange(candidates, device=device)  # [batch, candidates]
        known = piece >= on(device, w.document)[:, None]
        piece = piece.clamp(min=0)
        known = known & ~self._empty_at(piece)
        turned = self._turned(q, at)
        chosen = self._choose(turned, at, piece, known)  # [batch, heads, rows, blocks]
        valid = known[:, None, None].expand(*chosen.shape[:3], -1).gather(-1, chosen)
        block = piece[:, None, None].expand(*chosen.shape[:3], -1).gather(-1, chosen)
        far_scores, far_values = self._fetch(turned, at, block, self._slots(chosen, valid, candidates), valid)
        blocks = chosen.shape[-1]
        weights = self._weights(torch.cat([far_scores, scores], 3), pad(empty, (blocks, 0)), pad(own, (blocks, 0))).to(
            q.dtype
        )
        far, near = weights.split([blocks, pieces], 3)
        o = torch.matmul(near.flatten(-2), values)
        o = o + torch.matmul(far.flatten(-2)[..., None, :], far_values).squeeze(-2)

        closed = self.positions[:, layout.width - 1 :: layout.width]  # of the landmarks, [batch, pieces]
        closed = closed[:, None, None].expand(*block.shape[:3], -1).gather(-1, block)
        counted = valid & on(device, w.valid)[:, None, :, None]
        distance = (q_positions[:, None, :, None] - closed).masked_fill(~counted, 0)
        return o, (distance.sum((0, 2, 3)).to(scores.dtype), counted.sum((0, 2, 3)))

    def _empty_at(self, piece: Tensor) -> Tensor:
        if self.empty is None:
            return torch.zeros_like(piece, dtype=torch.bool)
        return self.empty.gather(1, piece.clamp(max=self.empty.shape[1] - 1))

    def _weights(self, scores: Tensor, empty: Tensor, own: Tensor) -> Tensor:
        """``[batch, heads, rows, pieces, width]``."""
        least = torch.finfo(scores.dtype).min
        tokens = pad(scores[..., :-1], (0, 1), value=least)
        inner, outer = grouped_softmax(tokens, scores[..., -1].masked_fill(empty, least), own)
        return inner * outer[..., None]

    def _scores(self, q: Tensor, k: Tensor, alignment: Alignment) -> Tensor:
        scores = wide(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)))
        bias = self.layer.position.position_bias(alignment)
        return scores if bias is None else scores + bias

    def _turned(self, q: Tensor, at: Tensor) -> Tensor:
        """Queries as a block sees them that stands in slot 0, 1, .. k: a block moved to the right is a reader moved
        to the left, and its keys need turning only once. ``[batch, heads, rows, slots, head_dim]``."""
        slots = range(self.k + 1) if self.layer.stingy else range(1)
        moved = (at - slot * self.slot for slot in slots)
        return torch.stack([self.layer.position.rotate(q, q[:, :, :0], p, p[:, :0])[0] for p in moved], 3)

    def _choose(self, turned: Tensor, at: Tensor, piece: Tensor, known: Tensor) -> Tensor:
        """Indices of the k blocks with the highest landmarks, in time order, ``[batch, heads, rows, blocks]``; of
        blocks ``piece`` ``[batch, candidates]``, the last before the window last, where ``known``."""
        width, count = self.layout.width, piece.shape[1]
        places = piece * width + width - 1
        keys, landmark_at = along_time(self.home_k, places), self.home.gather(1, places)
        if self.layer.stingy:
            slot = torch.arange(self.k - count + 1, self.k + 1, device=piece.device).clamp(min=0)
            landmark_at = landmark_at + slot * self.slot
            recent = min(self.k, count)
            old = torch.matmul(turned[..., 0, :], keys[:, :, : count - recent].transpose(-1, -2))
            last = (turned[..., 1 + self.k - recent :, :] * keys[:, :, None, count - recent :]).sum(-1)
            scores = wide(torch.cat([old, last], -1) * turned.shape[-1] ** -0.5)
            bias = self.layer.position.position_bias(Alignment(at, landmark_at, None))
            scores = scores if bias is None else scores + bias
        else:
            scores = self._scores(turned[..., 0, :], keys, Alignment(at, landmark_at, None))
        scores = _hide(scores, ~known[:, None, None])
        if self.layer.all_heads_alike:
            shares = torch.softmax(scores, -1).amax(1, keepdim=True).expand_as(scores)
            scores = shares.masked_fill(~known[:, None, None], -1)
        return scores.topk(min(self.k, count), -1).indices.sort(-1).values

    def _slots(self, chosen: Tensor, valid: Tensor, candidates: int) -> Tensor:
        """The slot of each chosen block; all ``[batch, heads, rows, blocks]``."""
        if not self.layer.stingy:
            return torch.zeros_like(chosen)
        order = valid.cumsum(-1) - 1
        from_right = self.k - (valid.sum(-1, keepdim=True) - 1 - order)
        return torch.where(chosen >= candidates - self.k, from_right, order).clamp(0, self.k)

    def _fetch(self, turned: Tensor, at: Tensor, block: Tensor, slot: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[batch, heads, rows, blocks, width]`` and values ``[batch, heads, rows, blocks * width, head_dim]``
        of pieces ``block`` ``[batch, heads, rows, blocks]`` in ``slot``."""
        batch, heads, rows, blocks = block.shape
        width, head_dim, pieces = self.layout.width, turned.shape[-1], self.layout.pieces
        row = torch.arange(batch, device=block.device)[:, None, None, None]
        head = torch.arange(heads, device=block.device)[:, None, None]
        flat = ((row * heads + head) * pieces + block).flatten()

        def fetched(tensor: Tensor) -> Tensor:
            return tensor.reshape(-1, width * head_dim).index_select(0, flat).view(*block.shape, width, head_dim)

        def fact(tensor: Tensor) -> Tensor:
            """``[batch, places]`` to ``[batch, heads, rows, blocks, width]``."""
            return tensor.view(-1, width).index_select(0, (row * pieces + block).flatten()).view(*block.shape, width)

        q = turned.gather(3, slot[..., None].expand(-1, -1, -1, -1, head_dim))
        scores = wide(torch.matmul(fetched(self.home_k), (q * head_dim**-0.5)[..., None]).squeeze(-1))
        # a bias knows no heads with places of their own: every query of every head is a row, which keeps its head's
        k_at = (fact(self.home) + slot[..., None] * self.slot).view(-1, blocks * width)
        q_at = at[:, None].expand(-1, heads, -1).reshape(-1, 1)
        bias = self.layer.position.position_bias(Alignment(q_at, k_at, None))
        if bias is not None:
            bias = bias.view(batch, heads, rows, -1, blocks, width)
            bias = bias.diagonal(dim1=1, dim2=3).movedim(-1, 1) if bias.shape[3] > 1 else bias[:, :, :, 0]
            scores = scores + bias
        hidden = fact(self.hole) | ~valid[..., None]
        return _hide(scores, hidden), fetched(self.laid_v).flatten(3, 4)


def _hide(scores: Tensor, hidden: Tensor) -> Tensor:
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
