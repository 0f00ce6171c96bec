"""Going on with texts: a prompt of any length is read a piece at a time, then one token after another is drawn.

What a mechanism answers does not depend on the pieces, and where its state is constant, so is the memory. A landmark
is put in after every block of tokens, as it was in training, and never drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lcbench.attention.base import Facts, State
from lcbench.cost.memory import give_back_memory
from lcbench.dataset.base import Batch
from lcbench.dataset.insertion import Insertion
from lcbench.model.base import MOST_LOGITS, Model, ModelState
from lcbench.objective.base import Objective
from lcbench.position.base import PositionEncoding
from lcbench.task.base import NOT_SAID, Spoken

#: tokens of a prompt that are read at a time unless told otherwise
CHUNK = 4096

#: makes ids ``[batch]``, int64, of scores ``[batch, vocabulary]``
Choose = Callable[[Tensor], Tensor]


class Reader:
    """A network in the middle of texts, a row each.

    Args:
        model: in evaluation mode.
        objective: what it was trained on: makes predictions of its outputs.
        insertion: how landmarks are put in; None: there are none.
        device: where to read.
        chunk: tokens that are read at a time.
    """

    def __init__(
        self, model: Model, objective: Objective, insertion: Insertion | None, device: str, chunk: int = CHUNK
    ) -> None:
        self.model, self.objective, self.insertion = model, objective, insertion
        self.device, self.chunk = device, chunk
        self.state: ModelState | None = None
        self._memory: State | None = None
        #: tokens that each row has read, landmarks left out, int64 ``[batch]``
        self.count: Tensor | None = None

    def read(self, tokens: Tensor, padding: Tensor | None, tick: Callable[[int], None] = lambda done: None) -> Tensor:
        """Go on with ``tokens`` ``[batch, time]``, of which those where ``padding`` (bool, or None) are none, all on
        the right; ``tick`` is told how many have been read.

        Returns:
            Scores of what comes after each row's last token, ``[batch, vocabulary]``; zero for a row that has read
            nothing in this call. A landmark has -inf.
        """
        scores: Tensor | None = None
        for start in range(0, tokens.shape[1], self.chunk):
            # ids may be kept in fewer bytes
            piece = tokens[:, start : start + self.chunk].to(self.device).long()
            hidden = None if padding is None else padding[:, start : start + self.chunk].to(self.device)
            scores = self._read(piece, hidden, scores)
            if tokens.shape[1] > self.chunk:
                give_back_memory()
            tick(piece.numel() if hidden is None else int((~hidden).sum()))
        assert scores is not None
        return scores

    def _read(self, tokens: Tensor, padding: Tensor | None, scores: Tensor | None) -> Tensor:
        before = tokens.new_zeros(len(tokens)) if self.count is None else self.count
        there = torch.ones_like(tokens, dtype=torch.bool) if padding is None else ~padding
        count = before[:, None] + there.cumsum(1)  # [batch, time]
        self.count = count[:, -1]
        landmarks = None
        asked = there
        if self.insertion is not None:
            closes = there & (count % self.insertion.block == 0)
            both = torch.stack([there, closes], 2).flatten(1)  # [batch, 2 time]
            used = both.any(0)
            marks = torch.stack([torch.zeros_like(closes), closes], 2).flatten(1)
            ids = torch.stack([tokens, torch.full_like(tokens, self.insertion.token)], 2).flatten(1)
            # a landmark that is predicted takes over the question of what comes next
            moved = closes & self.insertion.predicted
            questions = torch.stack([there & ~moved, moved], 2).flatten(1)
            tokens, landmarks, asked, there = (each[:, used] for each in (ids, marks, questions, both))
            padding = None if bool(there.all()) else ~there
        facts = Facts(padding=padding, landmarks=landmarks)
        output = self.model(tokens, facts, self.state)
        self.state = output.state
        rows, time = tokens.shape
        steps = torch.arange(time, device=tokens.device)
        last = torch.where(asked, steps, -1).amax(1)  # [batch], -1 where nothing was read
        size = max(1, MOST_LOGITS // (rows * output.vocabulary_size))
        for start in range(0, time, size):
            part = slice(start, start + size)
            own = facts.map(lambda tensor, part=part: tensor[:, part])  # type: ignore[misc]
            made, self._memory = self.objective.predict(
                output.times(start, start + size), tokens[:, part], own, self._memory
            )
            if scores is None:
                scores = made.new_zeros(rows, made.shape[-1])
            here = (last >= start) & (last < start + size)
            found = made[torch.arange(rows, device=tokens.device), (last - start).clamp(0, made.shape[1] - 1)]
            scores = torch.where(here[:, None], found, scores)
        assert scores is not None
        if self.insertion is not None:
            scores[:, self.insertion.token] = -torch.inf
        return scores

    def full(self) -> Tensor | None:
        """Whether a table of positions has no place for one more token of each row, bool ``[batch]``; None: there is
        no such table."""
        limit = longest_text(self.model)
        if limit is None or self.count is None:
            return None
        return self.positions(self.count + 1) > limit

    def positions(self, tokens: Tensor) -> Tensor:
        """Of so many tokens, landmarks included."""
        return tokens if self.insertion is None else tokens + tokens // self.insertion.block


def longest_text(model: Model) -> int | None:
    """Positions that the network's encodings can tell, or None: any number."""
    limits = [module.max_length for module in model.modules() if isinstance(module, PositionEncoding)]
    return min((limit for limit in limits if limit is not None), default=None)


def prompts_of(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """What comes before the answer of each row, ``[batch, time]``, and where there is nothing of it, bool; None: all
    are of one length.

    A row's answer begins after the first token that is scored.
    """
    last = batch.scored.long().argmax(1)  # [batch]
    longest = int(last.max()) + 1
    padding = torch.arange(longest, device=last.device) > last[:, None]
    return batch.tokens[:, :longest], padding if bool(padding.any()) else None


def without_landmarks(batch: Batch, insertion: Insertion | None) -> Batch:
    """``batch`` as the task itself knows it: a reader puts landmarks in as it goes."""
    return batch if insertion is None else insertion.remove(batch)


def speak(reader: Reader, scores: Tensor, spoken: Spoken) -> Tensor:
    """What each row says greedily after what it has read: ids ``[batch, at most spoken.tokens]``, int64; ``NOT_SAID``
    behind what settles its score, and where a table of positions ends.

    Args:
        reader: has read the prompts.
        scores: of the next token, ``[batch, vocabulary]``.
        spoken: how much is to be said.
    """
    said: list[Tensor] = []
    settled = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    while True:
        token = scores.argmax(-1)
        said.append(token.masked_fill(settled, NOT_SAID))
        ids = torch.stack(said, 1)
        settled = settled | spoken.settled(ids)
        full = reader.full()
        if full is not None:
            settled = settled | full
        if len(said) == spoken.tokens or bool(settled.all()):
            return ids
        # rows that are done go on with any token, unless there is no place for it: padding would slow all others down
        scores = reader.read(token[:, None], full[:, None] if full is not None and bool(full.any()) else None)
