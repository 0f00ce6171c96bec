"""The k keys of largest inner product for each query: exact, or with an approximate index (faiss).

A search never holds more than a bounded number of scores. It finds indices; no gradient passes through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ConfigurationError

#: scores held at a time: 4 MiB, what stays in a CPU's cache
_PAIRS = 2**20
#: keys of which one maximum is taken before the best are looked for
_GROUP = 8


class Search(ABC):
    """Looks for keys in one buffer of them.

    Args:
        k: all keys, detached, ``[batch, heads, time, head_dim]``.
        hidden: which keys nobody may find, bool ``[batch, time]``, or None.
        count: how many to find for each query.
    """

    def __init__(self, k: Tensor, hidden: Tensor | None, count: int) -> None:
        self.k = k
        self.hidden = hidden
        self.count = count

    @abstractmethod
    def __call__(self, q: Tensor, columns: slice, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best keys for ``q`` ``[batch, heads, q_time, head_dim]``, detached, among ``columns`` of the buffer.

        ``seen``: which of those each batch row sees, bool ``[batch, columns]``; None: all.

        Returns their inner products with the query, -inf where fewer than ``count`` are seen, and their indices in
        the buffer; both ``[batch, heads, q_time, count]``, in no order.
        """


class Exact(Search):
    """All inner products, a block of queries and heads at a time."""

    def __call__(self, q: Tensor, columns: slice, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, heads, q_time, _ = q.shape
        k = self.k[:, :, columns]
        k_time = k.shape[2]
        best = q.new_full((batch, heads, q_time, self.count), -torch.inf)
        index = torch.zeros(best.shape, dtype=torch.int64, device=q.device)
        rows = max(1, min(q_time, _PAIRS // k_time))
        together = max(1, min(heads, _PAIRS // (rows * k_time)))
        for b in range(batch):
            hidden = None if seen is None else ~seen[b]
            for h in range(0, heads, together):
                some = slice(h, h + together)
                turned = k[b, some].transpose(-1, -2)  # [together, head_dim, k_time]
                for start in range(0, q_time, rows):
                    block = (b, some, slice(start, start + rows))
                    scores = torch.matmul(q[block], turned)  # [together, rows, k_time]
                    if hidden is not None:
                        scores.masked_fill_(hidden, -torch.inf)
                    found = largest(scores, min(self.count, k_time))
                    best[block][..., :k_time], index[block][..., :k_time] = found
        return best, index + columns.start


class Approximate(Search):
    """Inner products with the keys of the most promising lists only (faiss, IVF: Jegou, Douze, Schmid 2011).

    Keys are sorted into lists by the nearest of ``2 sqrt(time)`` centres, found by k-means among the keys; a query
    looks through one list in sixteen. Of keys that lie in clusters it finds nearly all of the best, of keys without
    structure under half. An index is made anew for each call, one for each row and head, so what is found depends a
    little on where calls are cut, and a call must have thousands of queries to earn it. Few keys are searched exactly.
    """

    #: keys below which an index is not worth making
    least = 4096

    def __init__(self, k: Tensor, hidden: Tensor | None, count: int) -> None:
        super().__init__(k, hidden, count)
        self.exact = Exact(k, hidden, count)
        self.indices: dict[tuple[int, int], Any] = {}

    def __call__(self, q: Tensor, columns: slice, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        if columns.stop - columns.start < self.least:
            return self.exact(q, columns, seen)
        faiss = load_faiss()
        batch, heads, q_time, _ = q.shape
        best = torch.full((batch, heads, q_time, self.count), -torch.inf)
        index = torch.zeros(best.shape, dtype=torch.int64)
        queries = q.cpu().float()
        for b in range(batch):
            first, last = columns.start, columns.stop - 1
            if seen is not None:
                places = seen[b].nonzero()[:, 0]
                if not len(places):
                    continue
                # between the first and the last there are only keys of the same document, and hidden ones
                first, last = columns.start + int(places[0]), columns.start + int(places[-1])
            inside = faiss.IDSelectorRange(first, last + 1)
            for h in range(heads):
                ivf = self._index(b, h)
                chosen = faiss.SearchParametersIVF(sel=inside, nprobe=max(1, ivf.nlist // 16))
                scores, found = ivf.search(queries[b, h].numpy(), self.count, params=chosen)
                found = torch.from_numpy(found)
                best[b, h] = torch.from_numpy(scores).masked_fill(found < 0, -torch.inf)
                index[b, h] = found.clamp(min=0)
        return best.to(q), index.to(q.device)

    def _index(self, b: int, h: int) -> Any:
        """The index of one row and head; a key's id is its place in the buffer."""
        if (b, h) not in self.indices:
            faiss = load_faiss()
            keys = self.k[b, h].cpu().float()
            places = torch.arange(len(keys))
            if self.hidden is not None:
                places = (~self.hidden[b]).cpu().nonzero()[:, 0]
            vectors, ids = keys[places].numpy(), places.numpy()
            lists = max(1, min(int(2 * len(ids) ** 0.5), len(ids) // 39))
            ivf = faiss.IndexIVFFlat(
                faiss.IndexFlatIP(keys.shape[1]), keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT
            )
            ivf.cp.spherical, ivf.cp.niter, ivf.cp.max_points_per_centroid = True, 8, 64
            ivf.train(vectors)
            ivf.add_with_ids(vectors, ids)
            self.indices[b, h] = ivf
        return self.indices[b, h]


def load_faiss() -> Any:
    """The package faiss.

    Raises:
        ConfigurationError: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigurationError(
            "attention.search=faiss needs a package that is not installed (pip install 'lcbench[faiss]'); "
            "the closest choice without it is attention.search=exact."
        ) from error
    return faiss


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of the last axis, in no order, and their indices; both ``[..., count]``.

    The same as ``topk``, sooner: among the largest ``count`` of groups of keys, by their maxima, lie all the largest
    keys, and maxima are cheaper than sorting.
    """
    width = scores.shape[-1] // _GROUP
    if width < 2 * count:
        return scores.topk(count, -1, sorted=False)
    grouped = scores[..., : _GROUP * width].unflatten(-1, (_GROUP, width))  # key g + width * n is the n-th of group g
    groups = grouped.amax(-2).topk(count, -1, sorted=False).indices
    members = torch.arange(0, _GROUP * width, width, device=scores.device)
    candidates = (groups[..., None] + members).flatten(-2)
    rest = torch.arange(_GROUP * width, scores.shape[-1], device=scores.device)
    candidates = torch.cat([candidates, rest.expand(*candidates.shape[:-1], -1)], -1)
    best, which = scores.gather(-1, candidates).topk(count, -1, sorted=False)
    return best, candidates.gather(-1, which)
