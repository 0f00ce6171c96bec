"""Which metrics a table shows, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lcbench.errors import ConfigurationError, closest

if TYPE_CHECKING:
    from lcbench.results.runs import Run

#: words in the names of metrics that are shares, and more of it is better
SHARES = {"error": False, "accuracy": True, "exact_match": True, "recall": True, "f1": True}


def is_share(metric: str) -> bool:
    """Whether the metric counts outcomes out of all: an error, an accuracy."""
    return _kind(metric) is not None


def more_is_better(metric: str) -> bool:
    """Whether a higher value is better; errors, losses and perplexities are better when low."""
    return bool(_kind(metric))


def written(name: str, value: float) -> str:
    """A metric's value as people write it: a share in percent. ``name`` is without its evaluation set."""
    return f"{100 * value:.2f} %" if _of(name) is not None else f"{value:.4g}"


def _kind(metric: str) -> bool | None:
    return _of(metric.split("/")[1])


def _of(name: str) -> bool | None:
    return next((better for word, better in SHARES.items() if word in name), None)


def kinds_of(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The different lists of scores that completed runs have: few, however many the runs."""
    return list(dict.fromkeys(run.scores() for run in runs if run.completed))


def metrics_of(
    words: Sequence[str], groups: Mapping[tuple[str, str], Sequence[Run]]
) -> dict[tuple[str, str], list[str]]:
    """The scores to show of each group of runs.

    Args:
        words: scores, evaluation sets or metrics, as asked for; none asks for the headline metric on every set that a
            group's runs share, or, where they share none, on every set.
        groups: runs by what they belong to.

    Raises:
        ConfigurationError: for a word that says nothing in any group.
    """
    found: dict[tuple[str, str], list[str]] = {}
    known: set[str] = set()
    answered: set[str] = set()
    for name, runs in groups.items():
        headline = runs[0].record["task/headline"]
        kinds = kinds_of(runs)
        every = list(dict.fromkeys(score for kind in kinds for score in kind))
        common = [score for score in every if all(score in kind for kind in kinds)]
        meanings = {score: [score] for score in every}
        for score in every:
            evaluation_set, _, metric = score.partition("/")
            if metric == headline:
                meanings.setdefault(evaluation_set, [score])
            if score in common:
                meanings.setdefault(metric, []).append(score)
        found[name] = [score for word in words for score in meanings.get(word, [])]
        if not words:
            found[name] = meanings.get(headline) or [score for score in every if score.partition("/")[2] == headline]
        known |= set(every)
        answered |= set(meanings)
    for word in words:
        if word not in answered:
            raise ConfigurationError(f"--metric {word}: no run has it; {closest(word, known)}")
    return {name: list(dict.fromkeys(scores)) for name, scores in found.items()}
