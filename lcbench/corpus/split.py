"""Training, validation and test: parts of a corpus that share no document, or no stretch of one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.base import PARTS, TEST, TRAIN, VALIDATION, Corpus
from lcbench.errors import ConfigurationError

if TYPE_CHECKING:
    from lcbench.corpus.documents import Documents


def split_up(documents: Documents, corpus: Corpus) -> Documents:
    """The documents, a token a byte, that parts are made of: as they are, or each cut into three stretches.

    Raises:
        ConfigurationError: for stretches of documents whose source has parts of its own.
    """
    published = [part for part in (TRAIN, VALIDATION, TEST) if (documents.parts == PARTS.index(part)).any()]
    few = len(np.unique(documents.digests[:1000])) < 3
    if published:
        if corpus.split == "stretches":
            raise ConfigurationError(
                f"corpus.split=stretches: {corpus.name} brings its own {' and '.join(published)}; the closest that "
                "works is corpus.split=documents."
            )
        return replace(documents, about=documents.about | {"split": f"published {' and '.join(published)}"})
    if corpus.split == "documents" or (corpus.split == "auto" and not few):
        return replace(documents, about=documents.about | {"split": "documents"})
    return _stretched(documents, corpus.validation, corpus.test)


def _stretched(documents: Documents, validation: float, test: float) -> Documents:
    """Every document as three: its beginning for training, then validation, its end for the test.

    A stretch begins where a character does. One without a byte, of a very short document, is left out.
    """
    starts, text = documents.ends - documents.lengths, documents.tokens
    shares = (1 - validation - test, 1 - test)
    cuts = np.stack([starts + np.rint(share * documents.lengths).astype(np.int64) for share in shares])
    while (within := (cuts < documents.ends) & ((text[np.minimum(cuts, len(text) - 1)] & 0xC0) == 0x80)).any():
        cuts += within
    ends = np.stack([*cuts, documents.ends], 1)  # [documents, 3]
    there = np.diff(ends, axis=1, prepend=starts[:, None]) > 0
    place = np.broadcast_to(np.arange(3), ends.shape)[there]
    source = np.broadcast_to(np.arange(len(documents))[:, None], ends.shape)[there]
    content = f"{documents.about['content']} {validation} {test}"
    about: dict[str, Any] = documents.about | {
        "content": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
        "documents": len(source),
        "split": "stretches",
    }
    return replace(
        documents,
        ends=ends[there],
        # another number for every stretch, the same for those of copies
        digests=documents.digests[source] * np.uint64(0x9E3779B97F4A7C15) + place.astype(np.uint64),
        parts=np.array([PARTS.index(part) for part in (TRAIN, VALIDATION, TEST)], np.uint8)[place],
        about=about,
        sources=source,
    )


def parts_of(documents: Documents, corpus: Corpus) -> dict[str, NDArray[np.int64]]:
    """The documents of each part, in the order of their hashes: a random one, the same everywhere.

    Parts that the source brings are as they come; what is missing is cut out of the other documents, those with the
    same text together.

    Raises:
        ConfigurationError: if there are too few documents for three parts.
    """
    order = np.argsort(documents.digests, kind="stable")
    given = documents.parts[order]
    found = {part: order[given == PARTS.index(part)] for part in (TEST, VALIDATION, TRAIN)}
    free = order[given == 0]
    missing = [part for part in (TEST, VALIDATION) if not len(found[part])]
    _, place = np.unique(documents.digests[free], return_inverse=True)  # of each text among the different ones
    different = int(place[-1]) + 1 if len(place) else 0
    wanted = len(missing) + (not len(found[TRAIN]))
    if different < wanted:
        lacking = ", ".join([*missing, *([] if len(found[TRAIN]) else [TRAIN])])
        remedy = "" if documents.parts.any() else "; the closest that works is corpus.split=stretches"
        raise ConfigurationError(
            f"corpus: {corpus.name} has too few different documents, {different}, for {lacking}: the least is "
            f"{wanted}{remedy}."
        )
    shares = {TEST: corpus.test, VALIDATION: corpus.validation}
    counts = {part: max(1, round(shares[part] * different)) for part in missing}
    if sum(counts.values()) >= different:
        counts = dict.fromkeys(missing, 1)
    first = 0
    for part, count in counts.items():
        found[part] = free[(place >= first) & (place < first + count)]
        first += count
    rest = free[place >= first]
    found[TRAIN] = np.concatenate([found[TRAIN], rest]) if len(found[TRAIN]) else rest
    return found
