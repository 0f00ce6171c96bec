"""TRIME: the output distribution chooses among words and among remembered positions, each of which votes for a word.

Zhong, Lei, Chen, "Training Language Models with Memory Augmentation", EMNLP 2022, arXiv 2205.12674. With the same
formula on a plainly trained network (``warmup=1``) it is a continuous cache: Grave, Joulin, Usunier, 2017,
arXiv 1612.04426.

Context c, output state f(c), word embeddings E, key g(c): what the last feed-forward network reads, after its norm. A
memory is a set of pairs of a key and the token that followed, (g(c_j), x_j).

    P(w | c) ~ exp(E_w . f(c)) + sum over j with x_j = w of exp(s_j),      s_j = g(c) . g(c_j) / sqrt(d_model)
    L = -log( e^{E_y . f} + sum_{j: x_j = y} e^{s_j} ) + log( sum_w e^{E_w . f} + sum_j e^{s_j} )

averaged over supervised positions, y their targets. The gradient flows into f, E, g(c) and every g(c_j).

The key at position t stands for the context up to and including token t, so its token is the one at t + 1, and t
itself sees only pairs of earlier positions: its own would be the answer. The first position sees none.

    memory     in training                                              what delivers it
    local      earlier positions of the same row                        any dataset
    long       the same, and all of the document's earlier segments     dataset=segments
    external   the same, and all of other documents                     dataset=packed

Rows of one document are never each other's external memory: what follows a segment is not to be seen. With external
memory the local one is left out of a whole batch with probability p, for it would be all that is learned from.

A prediction uses what was read of the document before, in this call and earlier ones, with s_j / temperature: pairs
are carried from call to call, at most ``capacity`` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcbench.attention.base import Context, Facts, State
from lcbench.attention.cache import Cache
from lcbench.attention.precision import wide, without_autocast
from lcbench.dataset.base import Batch, Dataset
from lcbench.dataset.documents import Arranged
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput, ModelState, last_token, place
from lcbench.objective.base import Objective, Step
from lcbench.objective.geometry import geometry
from lcbench.objective.next_token import next_token_loss
from lcbench.units import Length

#: similarities held at once
BLOCK = 2**22

#: which of the first ``held`` memories queries ``start`` to ``stop - 1`` see: bool ``[groups, stop - start, held]``
Visible = Callable[[int, int, int], Tensor]


@dataclass(frozen=True)
class Places:
    """Where queries or memories stand: each ``[groups, any]``, int32."""

    row: Tensor
    time: Tensor
    document: Tensor
    segment: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Places:
        return Places(function(self.row), function(self.time), function(self.document), function(self.segment))


class MemorySums(torch.autograd.Function):
    """``log sum e^{s_j}`` over the memories a query sees, and over those of them whose token is the query's.

    ``s`` is computed in blocks of queries, in the backward pass once more, so that nothing of the size of all pairs is
    ever held. A query that sees nothing has -inf, and gradient 0.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, wanted: Tensor, labels: Tensor, visible: Visible, in_order: bool
    ) -> tuple[Tensor, Tensor]:
        """``q`` ``[groups, queries, d]``, ``k`` ``[groups, memories, d]``, their tokens ``[groups, any]``.

        ``in_order``: query i sees nothing from memory i on.
        """
        every, alike = (torch.full(q.shape[:2], -torch.inf, dtype=q.dtype, device=q.device) for _ in range(2))
        for start, stop, held in _blocks(q, k, in_order):
            s, same = _scores(q, k[:, :held], wanted, labels[:, :held], visible, start, stop)
            every[:, start:stop] = s.logsumexp(-1)
            alike[:, start:stop] = same.logsumexp(-1)
        ctx.save_for_backward(q, k, wanted, labels, every, alike)
        ctx.visible, ctx.in_order = visible, in_order
        return every, alike

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, every_gradient: Tensor, alike_gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, wanted, labels, every, alike = ctx.saved_tensors
        q_gradient, k_gradient = torch.zeros_like(q), torch.zeros_like(k)
        # of no memory, e^{-inf - 0} = 0
        every, alike = (sums.masked_fill(sums.isinf(), 0.0) for sums in (every, alike))
        for start, stop, held in _blocks(q, k, ctx.in_order):
            known, part = k[:, :held], slice(start, stop)
            s, same = _scores(q, known, wanted, labels[:, :held], ctx.visible, start, stop)
            change = (s - every[:, part, None]).exp_() * every_gradient[:, part, None]
            change += (same - alike[:, part, None]).exp_() * alike_gradient[:, part, None]
            change *= q.shape[-1] ** -0.5  # [groups, block, memories]
            q_gradient[:, part] = change @ known
            k_gradient[:, :held] += change.transpose(1, 2) @ q[:, part]
        return q_gradient, k_gradient, None, None, None, None


def _scores(
    q: Tensor, k: Tensor, wanted: Tensor, labels: Tensor, visible: Visible, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """``s`` of a block of queries, -inf where not visible; the same, -inf where the tokens differ as well."""
    s = q[:, start:stop] @ k.transpose(1, 2) * q.shape[-1] ** -0.5  # [groups, block, memories]
    s = s.masked_fill_(~visible(start, stop, k.shape[1]), -torch.inf)
    return s, s.masked_fill(wanted[:, start:stop, None] != labels[:, None], -torch.inf)


def _blocks(q: Tensor, k: Tensor, in_order: bool) -> list[tuple[int, int, int]]:
    """First and last query of each block, and how many memories it may see."""
    (groups, queries, _), memories = q.shape, k.shape[1]
    size = max(1, BLOCK // max(1, groups * memories))
    ends = [(start, min(start + size, queries)) for start in range(0, queries, size)]
    return [(start, stop, min(stop, memories) if in_order else memories) for start, stop in ends] if memories else []


@dataclass(frozen=True)
class Pairs(Cache):
    """A key with the token that followed, at that token's position; ``padding`` where there is no pair.

    Args:
        keys: ``[batch, time, d_model]``.
        followed: int64 ``[batch, time, 1]``.
    """

    keys: Tensor
    followed: Tensor


@dataclass(frozen=True)
class Memory(State):
    """What a prediction carries to the next call.

    Args:
        pairs: of the document so far.
        last: ``[batch, d_model]``, the key of the last token, whose follower is not read yet.
        reached: the last token read.
    """

    pairs: Pairs
    last: Tensor
    reached: ModelState


class Trime(Objective):
    """Cross-entropy, in nats, of words and memories together.

    Args:
        memory: what is remembered in training: local, long or external.
        detach_memory: no gradient into the remembered keys (an ablation; the loss is the same).
        drop_local: p, how often external memory stands alone.
        warmup: share of the run's updates, at its beginning, with the plain next-token loss.
        temperature: that divides the scores of memories in predictions; in training it is 1.
        capacity: latest pairs that a prediction sees; None: all of the document.

    Raises:
        ConfigurationError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        memory: Literal["local", "long", "external"] = "local",
        detach_memory: bool = False,
        drop_local: float = 0.9,
        warmup: float = 0.05,
        temperature: float = 1.0,
        capacity: Length | None = None,
    ) -> None:
        for name, share in {"drop_local": drop_local, "warmup": warmup}.items():
            if not 0 <= share <= 1:
                raise ConfigurationError(
                    f"objective.{name}={share} is no share; the closest is {0.0 if share < 0 else 1.0}."
                )
        if not temperature > 0:
            raise ConfigurationError(f"objective.temperature={temperature}: must be positive; 1.0 is the usual.")
        if capacity is not None and capacity < 1:
            raise ConfigurationError(f"objective.capacity={capacity} holds nothing; the closest is 1.")
        self.memory, self.detach_memory, self.drop_local = memory, detach_memory, drop_local
        self.warmup, self.temperature, self.capacity = warmup, temperature, capacity

    def check(self, model: Model, dataset: Dataset) -> None:
        if isinstance(dataset, Arranged):
            raise ConfigurationError(
                "objective=trime takes all that comes before in a row as memory, and this dataset has several "
                "documents in one; the closest with one is dataset=synthetic."
            )
        if self.memory == "external" and dataset.overlapping:
            raise ConfigurationError(
                "objective.memory=external: rows are stretches of a text that may overlap, and a row would find its "
                "answers in another; the closest that works is objective.memory=local."
            )
        needed = {"local": (), "long": ("document", "segment"), "external": ("document",)}[self.memory]
        if not set(needed) <= set(dataset.facts):
            closest = "segments" if self.memory == "long" else "packed"
            raise ConfigurationError(
                f"objective.memory={self.memory}: the dataset does not say which rows belong together; the closest "
                f"that does is dataset={closest}."
            )

    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        if step.progress < self.warmup:
            return {"next_token": next_token_loss(output, batch), **output.losses}
        drop = self.memory == "external" and bool(torch.rand(()) < self.drop_local)
        with without_autocast(output.logits.device):
            every, alike = self._memories(output.keys, batch, drop)  # [supervised]
            logits = wide(output.logits[batch.supervised])  # [supervised, vocabulary]
            targets = batch.targets[batch.supervised]
            right = logits.gather(1, targets[:, None])[:, 0].logaddexp(alike)
            loss = (logits.logsumexp(1).logaddexp(every) - right).sum() / max(1, len(targets))
        return {"trime": loss, **output.losses}

    def _memories(self, keys: Tensor, batch: Batch, drop_local: bool) -> tuple[Tensor, Tensor]:
        """``log sum e^{s_j}`` over all memories and over those of the target, ``[supervised]`` each."""
        tokens, known = _followers(batch)
        places = _places(batch)
        in_order = self.memory != "external"
        if in_order:
            # a document is a group, its segments one after the other; for local memory every row is one
            table = _rows_of_documents(batch, apart=self.memory == "local")  # [groups, rows]

            def grouped(tensor: Tensor) -> Tensor:
                return tensor[table.clamp_min(0)].flatten(1, 2)  # [groups, rows * time, ...]

            queries, wanted, asked = wide(grouped(keys)), grouped(batch.targets), places.map(grouped)
            remembered, labels, held = queries, grouped(tokens), asked
            there = grouped(known) & (table >= 0).repeat_interleave(batch.tokens.shape[1], 1)
        else:
            # all rows are one group, of supervised queries and known pairs
            queries, wanted, asked = (
                wide(keys[batch.supervised][None]),
                batch.targets[batch.supervised][None],
                places.map(lambda tensor: tensor[batch.supervised][None]),
            )
            remembered, labels, held = (
                wide(keys[known][None]),
                tokens[known][None],
                places.map(lambda tensor: tensor[known][None]),
            )
        if self.detach_memory:
            remembered = remembered.detach()

        def visible(start: int, stop: int, count: int) -> Tensor:
            query, memory = asked.map(lambda t: t[:, start:stop, None]), held.map(lambda t: t[:, None, :count])
            others = memory.segment < query.segment if in_order else memory.document != query.document
            if self.memory == "external" and drop_local:
                return others
            seen = others | ((query.row == memory.row) & (memory.time < query.time))
            return seen & there[:, None, :count] if in_order else seen

        every, alike = MemorySums.apply(queries, remembered, wanted, labels, visible, in_order)
        if not in_order:
            return every[0], alike[0]

        def scattered(sums: Tensor) -> Tensor:
            rows = sums.unflatten(1, (table.shape[1], -1))[table >= 0]  # [batch, time], by document
            return rows[table[table >= 0].argsort()][batch.supervised]

        return scattered(every), scattered(alike)

    def predict(
        self, output: ModelOutput, tokens: Tensor, facts: Facts, memory: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Logarithms of P, ``[batch, time, vocabulary]``, from the tokens alone."""
        assert memory is None or isinstance(memory, Memory)
        placement = place(tokens, facts, memory.reached if memory else None)
        context = placement.context
        with without_autocast(tokens.device):
            keys, logits = wide(output.keys), wide(output.logits)
            last = keys.new_zeros(keys.shape[0], keys.shape[2]) if memory is None else memory.last
            before, last = _previous(keys, context.padding, last)
            # the first token of a document follows nothing
            absent = context.positions == 0 if context.padding is None else context.padding | (context.positions == 0)
            pairs = Pairs(
                before,
                tokens[..., None],
                positions=context.positions,
                documents=context.documents,
                padding=absent,
            )
            held = pairs if memory is None else memory.pairs.append(pairs)
            scores = torch.empty_like(logits)
            size = max(1, BLOCK // (len(tokens) * (held.length + logits.shape[-1])))
            for start in range(0, tokens.shape[1], size):
                part = slice(start, start + size)
                s = keys[:, part] @ held.keys.transpose(1, 2) * (keys.shape[-1] ** -0.5 / self.temperature)
                s = s.masked_fill_(~self._seen(context, held, part), -torch.inf)  # [batch, block, pairs]
                scores[:, part] = logits[:, part].logaddexp(_votes(s, held.followed[..., 0], logits.shape[-1]))
        kept = held if self.capacity is None else held.recent(self.capacity)
        return scores.log_softmax(-1), Memory(kept, last, placement.reached)

    def _seen(self, context: Context, held: Pairs, part: slice) -> Tensor:
        """Which pairs the positions ``part`` see, bool ``[batch, block, pairs]``."""
        position, at = context.positions[:, part, None], held.positions[:, None]
        seen = at <= position
        if self.capacity is not None:
            seen &= position - at < self.capacity
        if held.padding is not None:
            seen &= ~held.padding[:, None]
        if held.documents is not None:
            own = torch.zeros_like(position) if context.documents is None else context.documents[:, part, None]
            seen &= own == held.documents[:, None]
        return seen

    def measures(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        return geometry(output.keys, batch.padding, "keys")


def _places(batch: Batch) -> Places:
    """Of all positions of a batch, ``[batch, time]`` each."""
    rows, times = batch.tokens.shape
    row = torch.arange(rows, dtype=torch.int32, device=batch.tokens.device)

    def fact(name: str) -> Tensor:
        # the numbers of documents may be large: which are the same is all that counts
        numbers = batch.facts[name].unique(return_inverse=True)[1].int() if name in batch.facts else row
        return numbers[:, None].expand(rows, times)

    time = torch.arange(times, dtype=torch.int32, device=row.device).expand(rows, times)
    return Places(row[:, None].expand(rows, times), time, fact("document"), fact("segment"))


def _rows_of_documents(batch: Batch, apart: bool) -> Tensor:
    """The rows of each document in the order of their segments, -1 where others have more: ``[documents, rows]``.

    ``apart``: every row is a document of its own.
    """
    rows = torch.arange(len(batch), device=batch.tokens.device)
    if apart:
        return rows[:, None]
    documents, which = batch.facts["document"].unique(return_inverse=True)
    order = batch.facts["segment"].argsort(stable=True)
    order = order[which[order].argsort(stable=True)]
    which = which[order]
    counts = which.bincount(minlength=len(documents))
    place = rows - (counts.cumsum(0) - counts)[which]
    table = rows.new_full((len(documents), int(counts.max())), -1)
    table[which, place] = order
    return table


def _followers(batch: Batch) -> tuple[Tensor, Tensor]:
    """The token that follows each position, int64, and whether there is one, bool; both ``[batch, time]``.

    What follows the last token of a row is the first of its document's next segment if that is in the batch, else the
    target if there is one.
    """
    tokens, supervised = batch.tokens, batch.supervised
    real = torch.ones_like(supervised) if batch.padding is None else ~batch.padding
    inside = torch.zeros_like(real)
    inside[:, :-1] = real[:, 1:]
    followers = torch.where(inside, tokens.roll(-1, 1), batch.targets)
    known = real & (inside | supervised)
    if "segment" in batch.facts:
        document, segment = batch.facts["document"], batch.facts["segment"]
        # continues[r, n]: row n goes on where row r ends
        continues = (document[:, None] == document) & (segment[:, None] + 1 == segment) & real[:, 0]
        first = tokens[continues.int().argmax(1), 0]  # [batch]
        ends = real & ~inside & continues.any(1, keepdim=True)
        followers, known = torch.where(ends, first[:, None], followers), known | ends
    return followers, known


def _previous(keys: Tensor, padding: Tensor | None, last: Tensor) -> tuple[Tensor, Tensor]:
    """The key of the token before each place, ``[batch, time, d_model]``, and of the last, ``[batch, d_model]``.

    ``last`` ``[batch, d_model]`` is that of the last token of the call before; padding is passed over.
    """
    known = torch.cat([last[:, None], keys], 1)
    if padding is None:
        return known[:, :-1], keys[:, -1]
    # place 0 of ``known`` is the call before
    latest = torch.where((~padding).cumsum(1) > 0, last_token(padding) + 1, 0)  # [batch, time]
    before = torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], 1)
    rows = torch.arange(len(keys), device=keys.device)
    return known[rows[:, None], before], known[rows, latest[:, -1]]


def _votes(s: Tensor, followed: Tensor, vocabulary: int) -> Tensor:
    """``log sum of e^{s_j}`` over the pairs of each word: ``[batch, block, vocabulary]``, -inf without any.

    ``s`` ``[batch, block, pairs]``, -inf where not seen; ``followed`` ``[batch, pairs]``.
    """
    if not s.shape[2]:
        return s.new_full((*s.shape[:2], vocabulary), -torch.inf)
    top = s.amax(-1, keepdim=True)
    top = top.masked_fill(top.isinf(), 0.0)
    mass = s.new_zeros(*s.shape[:2], vocabulary)
    mass.scatter_add_(2, followed[:, None].expand_as(s), (s - top).exp_())
    return mass.log_() + top
