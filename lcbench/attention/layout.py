"""The tokens of a call laid out by position: segments of equal width, so that all of them are read at once.

A row's segments stand side by side, ``length`` places each, a token at its position modulo ``length``; what calls
before have left stands before them. Places without a token stay empty: the end of a document, padding, positions that
were jumped over. Rows need not reach the same segment. A mechanism then takes all segments as a batch, and the past of
a segment lies at fixed places before it. As soon as a segment is full the next one is there, empty, so that what
follows from a full segment belongs to the call that filled it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lcbench.attention.base import Context
from lcbench.attention.cache import along_time
from lcbench.attention.segments import Reached


class Layout:
    """Where the tokens of ``context`` stand.

    Args:
        context: describes the tokens.
        length: places in a segment.
        past: segments that calls before have left before the unfinished one.
        farthest: a document that jumps over more segments has nothing before it.
        reached: what the calls before read; None starts a sequence.

    Attributes:
        segments: of the widest row, the unfinished one that it goes on with included.
        occupied: how many of them, from the first, can hold a token.
        alike: whether all rows hold the same places, without documents or padding.
        first: places of the first segment before the first token, where rows are alike.
        last: a row's last segment, int64 ``[batch]``; None where rows are alike.
        documents: of every segment, those of the past included, ``[batch, past + segments]``; None if there are none.
        reached: the last token of each row.
    """

    def __init__(self, context: Context, length: int, past: int, farthest: int, reached: Reached | None) -> None:
        self.length, self.past, self.first = length, past, 0
        self.time = context.positions.shape[1]
        start = context.start
        self.last: Tensor | None = None
        self.documents: Tensor | None = None
        self.alike = start is not None and (reached is None or reached.document is None)
        if start is not None and self.alike:
            self.first = start % length
            self.segments = (self.first + self.time) // length + 1
            self.occupied = max(1, -(-(self.first + self.time) // length))
            last = context.positions[:, -1]
            self.reached = Reached(torch.ones_like(last, dtype=torch.bool), last)
        else:
            self._apart(context, farthest, reached)

    def _apart(self, context: Context, farthest: int, reached: Reached | None) -> None:
        positions = context.positions
        batch, time = positions.shape
        padding = torch.zeros_like(positions, dtype=torch.bool) if context.padding is None else context.padding
        documents = torch.zeros_like(positions) if context.documents is None else context.documents
        named = context.documents is not None or (reached is not None and reached.document is not None)
        if reached is None:
            reached = Reached(padding.new_zeros(batch), positions.new_zeros(batch))
        document = torch.zeros_like(reached.position) if reached.document is None else reached.document

        # index, in [reached, *tokens], of the last token up to each place: at 0 what was reached before
        index = torch.where(padding, 0, torch.arange(1, time + 1, device=positions.device)).cummax(1).values
        index = torch.cat([torch.zeros_like(index[:, :1]), index], 1)  # [batch, 1 + time]
        at = torch.cat([reached.position[:, None], positions], 1).gather(1, index)
        of = torch.cat([document[:, None], documents], 1).gather(1, index)
        read = (index > 0) | reached.read[:, None]

        number = at // self.length
        # what calls before filled, they have followed by an empty segment
        previous = torch.cat([(at[:, :1] + 1) // self.length, number[:, 1:-1]], 1)
        previous = torch.where(index[:, :-1] > 0, previous, previous[:, :1])
        steps = (number[:, 1:] - previous).clamp(0, farthest)
        steps = torch.where(of[:, 1:] != of[:, :-1], 1, steps).masked_fill(padding | ~read[:, :-1], 0)
        segment = steps.cumsum(1)  # [batch, time], from the unfinished one
        full = (index[:, -1] > 0) & ((at[:, -1] + 1) % self.length == 0)
        self.last = segment[:, -1] + full
        self.segments = self.occupied = int(self.last.max()) + 1
        outside = self.segments * self.length
        place = (segment * self.length + positions % self.length).masked_fill(padding, outside)
        self._place, self._padding = place, padding
        if named:
            self.documents = document[:, None].repeat(1, self.past + self.segments + 1)
            self.documents.scatter_(1, self.past + place // self.length, documents)
            self.documents = self.documents[:, :-1].scatter(1, self.past + self.last[:, None], of[:, -1:])
        self.reached = Reached(read[:, -1], at[:, -1], of[:, -1] if named else None)

    def lay(self, x: Tensor, before: Tensor) -> Tensor:
        """``x`` ``[batch, time, any]`` behind ``before`` ``[batch, (past + 1) * length, any]``, what ``carry`` has
        left: ``[batch, (past + segments) * length, any]``, zero where there is no token."""
        if self.alike:
            before = before[:, : self.past * self.length + self.first]
            rest = (self.past + self.segments) * self.length - before.shape[1] - self.time
            return torch.cat([before, x, x.new_zeros(len(x), rest, x.shape[2])], 1)
        line = pad(before, (0, 0, 0, (self.segments - 1) * self.length + 1))
        place = (self._place + self.past * self.length)[:, :, None].expand_as(x)
        return line.scatter(1, place, x)[:, :-1]

    def lift(self, o: Tensor) -> Tensor:
        """The tokens' places of ``o`` ``[batch, heads, segments * length, any]``: ``[batch, heads, time, any]``."""
        if self.alike:
            return o[:, :, self.first : self.first + self.time]
        return along_time(o, self._place.masked_fill(self._padding, 0)).masked_fill(self._padding[:, None, :, None], 0)

    def carry(self, line: Tensor, width: int, step: int) -> Tensor:
        """What each row's last segment has before and in it: ``width`` places of ``line`` ``[batch, places, any]``,
        where a segment is ``step`` places further than the one before."""
        if self.last is None:
            first = (self.segments - 1) * step
            return line[:, first : first + width].clone()
        index = self.last[:, None] * step + torch.arange(width, device=line.device)
        return line.gather(1, index[:, :, None].expand(-1, -1, line.shape[2]))
