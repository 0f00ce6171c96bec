"""Sparse Transformer: two sets of keys a query, that together reach the whole past in two steps.

Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers", 2019, arXiv 1904.10509. With
``attend(S)_i = softmax(c q_i K[S_i]^T + what the encoding adds) V[S_i]``, a stride l, and sets of which only j <= i
count:

    strided:  A1_i = {i - l, ..., i}                   A2_i = {j : (i - j) mod l = 0}
    fixed:    A1_i = {j : j // l = i // l}             A2_i = {j : j mod l in the last c of 0 .. l - 1}

Strided is for data with a period (rows of an image), fixed for text: summaries, the last c positions of every block of
l, carry what was read in the block to all later ones. A1_i holds l + 1 keys as printed (the released code's holds l).
The paper prints the residues of A2 as l - c ... l; there is no residue l. Two ways are left open by the paper's
definition and taken here: a query that reads A2 of the fixed pattern alone also reads itself, because the first
queries of a document have no summary before them; and A1 comes before A2, so that what lies near is gathered first.

How the sets are put together:

- merged: one softmax over A1_i and A2_i together, no key twice (the paper's choice for text);
- interleaved: layer r has A1 where r is even, A2 where it is odd;
- multi_head: of the heads of a layer, every other one has A1 and the rest A2.

Heads that read summaries read different ones: the n-th of them has c positions of its own in the block, n mod (l // c)
times c before its end. So there are l // c kinds of heads, and more heads than that repeat them.

A layer costs n (l + n / l) pairs of query and key (fixed: n (l + c n / l)), least where l is about sqrt(n). With the
fixed pattern the state of a head is the last l - 1 keys and values, and c for every block; the strided pattern must
keep all, because every residue is wanted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.multi_head import HeadGroups, MultiHead
from lcbench.attention.parts import InOrder, Part, attend_parts
from lcbench.attention.ranges import Chosen, Slots, compact
from lcbench.attention.reach import Reach, Segment, Window
from lcbench.attention.residues import Residues
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class SparseState(State):
    """
    Args:
        near: of each group of heads, the last keys and values, or all of them; None where a group reads none.
        summaries: of each group of heads, the summaries of all blocks; None where a group reads none.
    """

    near: tuple[KeyValues | None, ...]
    summaries: tuple[KeyValues | None, ...]


@dataclass(frozen=True)
class _Group:
    """Heads that read alike.

    Args:
        heads: their numbers.
        near: whether they read A1.
        far: whether they read A2.
        summaries: which positions those of A2 are, in the fixed pattern.
    """

    heads: list[int]
    near: bool
    far: bool
    summaries: Slots | None


class SparseTransformer(MultiHead):
    """A strided or a fixed pattern in two sets.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        pattern: strided for data with a period l, fixed for text.
        stride: l; 128 in the paper.
        summaries: c, positions at the end of a block that carry what is in it; 8 to 32 in the paper, where 1 was too
            few. Of the fixed pattern only.
        integration: how the two sets are put together.

    Raises:
        ConfigurationError: for a stride below 1, no summaries or more than the block has positions, one head where two
            are needed, or an encoding that counts what lies between a query and a key.
    """

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        pattern: Literal["strided", "fixed"] = "fixed",
        stride: Length = 128,
        summaries: int = 32,
        integration: Literal["merged", "interleaved", "multi_head"] = "merged",
    ) -> None:
        super().__init__(shape, position)
        if stride < 1:
            raise ConfigurationError(f"attention.stride={stride} holds nothing; the least is attention.stride=1.")
        if pattern == "fixed" and not 1 <= summaries <= stride:
            raise ConfigurationError(
                f"attention.summaries={summaries} are no part of the {stride} positions of a block; the closest "
                f"choice is attention.summaries={min(max(1, summaries), stride)}."
            )
        if integration == "multi_head" and shape.n_heads < 2:
            raise ConfigurationError(
                "attention.integration=multi_head gives each set of keys to other heads, and model.n_heads=1 is one "
                "head; the closest choices are attention.integration=merged and model.n_heads=2."
            )
        heads = list(range(shape.n_heads))
        near, far, both = {"merged": ([], [], heads), "multi_head": (heads[::2], heads[1::2], [])}.get(
            integration, ([], heads, []) if shape.layer % 2 else (heads, [], [])
        )
        if position.reads_between and (far or both):
            raise ConfigurationError(
                f"position {type(position).__name__} counts every token between a query and a key, of which "
                "attention=sparse_transformer does not read some; the closest choice is position=rope."
            )
        self.stride, self.fixed = stride, pattern == "fixed"
        self.segment = stride if self.fixed else None
        self.near: Reach = Segment(stride) if self.fixed else Window(stride + 1)
        self.readers = [_Group(near, True, False, None)] if near else []
        kinds = stride // summaries if self.fixed else 1
        for kind in range(kinds):
            slots = Slots(stride, stride - summaries * (kind + 1), stride - summaries * kind) if self.fixed else None
            for some, reads_near in ((far, False), (both, True)):
                if some[kind::kinds]:
                    self.readers.append(_Group(some[kind::kinds], reads_near, True, slots))
        self.heads = HeadGroups([group.heads for group in self.readers])
        self.footprint = "H (dk + dv) (l - 1 + c T / l)" if self.fixed else "H (dk + dv) T"

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``SparseState``."""
        before, back = state if isinstance(state, SparseState) else None, None
        if context.padding is not None:
            order = context.padding.long().argsort(dim=1, stable=True)  # [batch, time], tokens first
            x, back = along_time(x, order), order.argsort(dim=1)
            context = context.map(lambda tensor: tensor.gather(1, order))
        q, new = self.project(x, context)
        outputs, near, summaries = [], [], []
        groups = zip(self.readers, self.heads.split(q), self.heads.split_keys(new), strict=True)
        for n, (group, of_q, of_new) in enumerate(groups):
            held = (None, None) if before is None else (before.near[n], before.summaries[n])
            parts, kept = self._parts(group, context, of_new, *held)
            outputs.append(attend_parts(of_q, context, parts, self.position, heads=group.heads, dropout=self.dropped))
            near.append(kept[0])
            summaries.append(kept[1])
        y = self.merge(self.heads.join(outputs))
        y = y if back is None else along_time(y, back)
        return AttentionOutput(y, SparseState(tuple(near), tuple(summaries)))

    def _parts(
        self,
        group: _Group,
        context: Context,
        new: KeyValues,
        near: KeyValues | None,
        summaries: KeyValues | None,
    ) -> tuple[list[Part], tuple[KeyValues | None, KeyValues | None]]:
        """What the heads of a group read, and what they keep of it: the last keys, and summaries."""
        keys = new if near is None else near.append(new)
        if not group.far:
            return [Part.near(context, keys, self.near)], (self._kept(keys, self.near.places - 1), None)
        if group.summaries is None:
            residues = Residues(context, keys, self.stride)
            kept = self._kept(keys, keys.length), None
            if not group.near:
                return [Part(keys, residues.past(None), residues)], kept
            parts = [Part.near(context, keys, self.near), Part(keys, residues.past(self.near), residues)]
            return parts, kept
        # alone, summaries leave a query itself to read
        reach = self.near if group.near else Window(1)
        chosen = Chosen(context, group.summaries)
        fresh = chosen.keys(new)
        far = fresh if summaries is None else summaries.append(fresh)
        parts = [Part.near(context, keys, reach), Part(far, chosen.pairs(far, reach), InOrder())]
        return parts, (self._kept(keys, reach.places - 1) if group.near else None, compact(far))

    def _kept(self, keys: KeyValues, count: int) -> KeyValues:
        kept = keys.recent(count)
        return kept if len(self.readers) == 1 else kept.map(Tensor.clone)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values, features and positions of what each group of heads keeps."""
        of_head = (self.key_bytes(dtype.itemsize) - 8) // self.shape.n_heads
        total = 0
        for group in self.readers:
            tokens = 0
            if group.summaries is not None:
                tokens = int(group.summaries.below(np.array(length)))
            if group.far and group.summaries is None:
                tokens = length
            elif group.near:
                tokens += min(length, self.near.places - 1)
            total += tokens * (len(group.heads) * of_head + 8)
        return batch * total
