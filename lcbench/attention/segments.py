"""The tokens of a call, cut into the segments of their documents: for mechanisms that go through them one by one.

Segment s of a document holds its positions ``s * length`` to ``(s + 1) * length - 1``, however the document was cut
into calls and whatever lies in the same row. A call begins in the middle of the segments that the calls before left
unfinished, and its rows need not reach the same place. So a mechanism's loop is, over ``pieces``:

    what a row remembers is cleared where ``piece.clears``, and takes in the finished segment where ``piece.opens``;
    the piece's tokens are read; what they add to the unfinished segment is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.attention.base import Context, State
from lcbench.attention.cache import along_time


@dataclass(frozen=True)
class Reached(State):
    """The last token that each row has read.

    Args:
        read: bool, ``[batch]``, False where nothing was read: a fresh start.
        position: int64, ``[batch]``.
        document: int64, ``[batch]``; None while no document was named.
    """

    read: Tensor
    position: Tensor
    document: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """Tokens of one call that lie in the same segment of their row.

    Args:
        opens: rows whose segment begins here; in the others the piece goes on with the unfinished one. bool
            ``[batch]``, or one bool for all rows.
        clears: rows in which that segment is also the first of its document, so that nothing before is its past.
        padding: bool ``[batch, width]``, True where a row has no token; None where all have one.
        positions: int64 ``[batch, width]``; anything at padding.
    """

    opens: bool | Tensor
    clears: bool | Tensor
    padding: Tensor | None
    positions: Tensor


class Segments:
    """How the tokens of ``context`` lie in segments of ``length`` positions.

    Args:
        context: describes the tokens.
        length: positions in a segment.
        reached: what the calls before read; None starts a sequence.
    """

    def __init__(self, context: Context, length: int, reached: Reached | None) -> None:
        self.context = context
        self.length = length
        start = context.start
        if start is not None and (reached is None or reached.document is None):
            self._alike(start, reached is None)
        else:
            self._apart(reached)

    def _alike(self, start: int, first: bool) -> None:
        """Rows are alike: pieces are slices of time."""
        self._order: Tensor | None = None
        time = self.context.positions.shape[1]
        head = min(time, self.length - start % self.length)
        self.widths = [head, *[self.length] * ((time - head) // self.length)]
        self.widths += [rest] if (rest := time - sum(self.widths)) else []
        positions = self.context.positions.split(self.widths, 1)
        self.pieces = [
            Piece(opens=i > 0 or start % self.length == 0, clears=i == 0 and first, padding=None, positions=p)
            for i, p in enumerate(positions)
        ]
        self.reached = Reached(
            read=torch.ones_like(self.context.positions[:, -1], dtype=torch.bool),
            position=self.context.positions[:, -1],
        )

    def _apart(self, reached: Reached | None) -> None:
        """Rows differ: each row's tokens are brought into order by piece, as wide as the longest of its rows."""
        positions = self.context.positions
        batch, time = positions.shape
        padding = self.context.padding
        if padding is None:
            padding = torch.zeros_like(positions, dtype=torch.bool)
        documents = self.context.documents
        named = documents is not None or (reached is not None and reached.document is not None)
        if documents is None:
            documents = torch.zeros_like(positions)
        if reached is None:
            reached = Reached(padding.new_zeros(batch), positions.new_zeros(batch))
        document = torch.zeros_like(reached.position) if reached.document is None else reached.document

        # tokens first, in order; then each knows the token before it
        tokens = padding.long().argsort(dim=1, stable=True)  # [batch, time]
        count = (~padding).sum(1)  # [batch]
        is_token = torch.arange(time, device=positions.device) < count[:, None]
        positions, documents = positions.gather(1, tokens), documents.gather(1, tokens)
        before_position = torch.cat([reached.position[:, None], positions[:, :-1]], 1)
        before_document = torch.cat([document[:, None], documents[:, :-1]], 1)
        other = documents != before_document
        begins = (other | (positions // self.length != before_position // self.length)) & is_token
        # with nothing before it, a row's first token is in piece 0 and begins its segment all the same
        begins[:, 0] &= reached.read
        number = begins.cumsum(1)  # [batch, time]: the piece of a token

        sizes = torch.zeros(batch, int(number.max()) + 1, dtype=torch.int64, device=positions.device)
        sizes.scatter_add_(1, number, is_token.long())  # [batch, pieces]
        # a call of padding alone has one piece, which must not be empty
        self.widths = [max(1, width) for width in sizes.amax(0).tolist()]
        ends = torch.tensor(self.widths, device=positions.device).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        # a token's place: where its piece starts, and how many tokens of its row and piece come before it
        before = sizes.cumsum(1) - sizes
        place = starts[number] + torch.arange(time, device=positions.device) - before.gather(1, number)
        total = sum(self.widths)
        order = torch.zeros(batch, total + 1, dtype=torch.int64, device=positions.device)
        order.scatter_(1, place.masked_fill(~is_token, total), tokens)
        self._order = order[:, :-1]
        empty = torch.ones(batch, total + 1, dtype=torch.bool, device=positions.device)
        empty.scatter_(1, place.masked_fill(~is_token, total), False)
        self._empty = empty[:, :-1]
        self._back = torch.zeros_like(tokens).scatter(1, tokens, place.masked_fill(~is_token, 0))
        self._padding = padding

        fresh = ~reached.read & (count > 0)
        opens = torch.cat([fresh[:, None], sizes[:, 1:] > 0], 1)  # [batch, pieces]
        clears = torch.zeros_like(sizes).scatter_add_(1, number, (begins & other).long()) > 0
        clears[:, 0] |= fresh
        parts = self.context.positions.gather(1, self._order).split(self.widths, 1)
        holes = self._empty.split(self.widths, 1)
        self.pieces = [
            Piece(opens=opens[:, i], clears=clears[:, i], padding=hole, positions=part)
            for i, (part, hole) in enumerate(zip(parts, holes, strict=True))
        ]
        last = (count - 1).clamp(min=0)[:, None]
        some = count > 0
        self.reached = Reached(
            read=reached.read | some,
            position=torch.where(some, positions.gather(1, last)[:, 0], reached.position),
            document=torch.where(some, documents.gather(1, last)[:, 0], document) if named else None,
        )

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        """``[batch, ..., time, any]`` to one ``[batch, ..., width, any]`` for each piece; zero at padding."""
        if self._order is not None:
            empty = self._empty.view(self._empty.shape[0], *[1] * (tensor.dim() - 3), self._empty.shape[1], 1)
            tensor = along_time(tensor, self._order).masked_fill(empty, 0)
        return tensor.split(self.widths, -2)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What ``split`` has cut, put together again; zero at padding."""
        whole = torch.cat(list(parts), -2)
        if self._order is None:
            return whole
        padding = self._padding.view(self._padding.shape[0], *[1] * (whole.dim() - 3), self._padding.shape[1], 1)
        return along_time(whole, self._back).masked_fill(padding, 0)


def where(rows: bool | Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` in ``rows`` (see ``Piece.opens``) and ``no`` in the others; both ``[batch, ...]``."""
    if isinstance(rows, bool):
        return yes if rows else no
    return torch.where(rows.view(-1, *[1] * (yes.dim() - 1)), yes, no)
