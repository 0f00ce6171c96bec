"""What the runs say of a study: its rows, what was tuned, each statement, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from lcbench.results.baseline import difference_of, fits
from lcbench.results.compare import compare_runs
from lcbench.results.comparison import Difference, Row, Summary, Table
from lcbench.results.keys import key_of, order_of_values, shown, value_of, varying
from lcbench.results.metrics import more_is_better, written
from lcbench.results.notes import count
from lcbench.results.report.names import row_labels
from lcbench.results.runs import Run
from lcbench.results.statistics import welch
from lcbench.results.study.definition import PaperRow, Statement, Study, Where, named, typed

#: of one statement: its interval says yes, says the contrary, or says neither; or there is nothing to judge
Finding = Literal["holds", "contrary", "open", "no runs"]


@dataclass(frozen=True)
class Judged:
    """A statement and what the runs say of it.

    Args:
        says: the statement.
        numbers: what decides it.
        verdict: see ``Finding``.
    """

    says: str
    numbers: str
    verdict: Finding


@dataclass(frozen=True)
class Tuned:
    """The choice of one row's key.

    Args:
        label: the row's name.
        scores: by value tried, in order, the mean of each metric; NaN where there is none.
        best: the value that the search prefers; several that score the same; none without scores.
        used: the values that the comparison's runs have.
    """

    label: str
    scores: dict[str, list[float]]
    best: list[str]
    used: list[str]


@dataclass(frozen=True)
class Findings:
    """All that a record says of the runs.

    Args:
        study: what was asked.
        table: the comparison; None where no run belongs to it.
        labels: a name a row.
        paper: by row, the paper's; and those without a row of ours.
        tuned: the choices, one a row.
        judged: the statements.
        verdict: ``holds``, ``holds partly``, ``does not hold``, or ``undecided``.
        because: a sentence with what does not hold.
        left_out: sentences on runs that were not used.
        compared, searched: the runs of the comparison and of the search.
    """

    study: Study
    table: Table | None
    labels: list[str]
    paper: dict[int, PaperRow]
    paper_only: list[PaperRow]
    tuned: list[Tuned]
    judged: list[Judged]
    verdict: str
    because: str
    left_out: list[str]
    compared: list[Run]
    searched: list[Run]


def findings(study: Study, name: str, runs: Sequence[Run]) -> Findings:
    """Judge the study by those of the runs that belong to it.

    Args:
        name: the study's.
        runs: of any experiments.
    """
    # one table, whatever experiments its rows come from
    ours = [replace(run, experiment=name) for run in runs if run.experiment in study.experiments]
    elsewhere = [run for run in ours if not _belongs(study, run)]
    ours = [run for run in ours if _belongs(study, run)]
    of_search = study.tuning.seeds if study.tuning else []
    searched = [run for run in ours if run.seed in of_search]
    compared = [r for r in ours if r.seed not in of_search and (study.seeds is None or r.seed in study.seeds)]
    left_out = []
    if elsewhere:
        asked = ", ".join(f"{key}={text}" for key, text in typed(study.where).items())
        left_out.append(f"{count(len(elsewhere), 'run')} without {asked}")
    if others := len(ours) - len(searched) - len(compared):
        left_out.append(f"{count(others, 'run')} of other seeds")
    searched, strangers = _searched(study, searched, compared)
    if strangers:
        left_out.append(f"{count(strangers, 'run')} of the search that differ from the comparison's in more than it")
    tuned, compared, unchosen = _tuned(study, searched, compared)
    if unchosen:
        left_out.append(f"{count(unchosen, 'run')} with another value than the search's")
    table = _table(study, compared)
    rows = table.rows if table else ()
    labels = row_labels(rows, table.columns) if table else []
    paper = {i: each for i, row in enumerate(rows) for each in study.paper.rows if fits(row, typed(each.where))}
    judged = [each for statement in study.statements for each in _judged(statement, rows)]
    verdict, because = _verdict(judged)
    return Findings(
        study=study,
        table=table,
        labels=labels,
        paper=paper,
        paper_only=[each for each in study.paper.rows if each not in paper.values()],
        tuned=tuned,
        judged=judged,
        verdict=verdict,
        because=because,
        left_out=left_out,
        compared=compared,
        searched=searched,
    )


def _belongs(study: Study, run: Run) -> bool:
    return all(shown(value_of(run.config, key)) == text for key, text in typed(study.where).items())


def _table(study: Study, runs: Sequence[Run]) -> Table | None:
    completed = {score for run in runs if run.completed for score in run.scores()}
    if not completed:
        return None
    # all scores: the figure also draws what a task splits them by
    comparison = compare_runs(list(runs), metrics=sorted(completed), by=_known(study.rows, runs), solved=study.solved)
    return comparison.tables[0]


def _known(rows: Sequence[str], runs: Sequence[Run]) -> list[str]:
    known = {key for run in runs for key in run.config}
    return [row for row in rows if key_of(row, known)]


def _searched(study: Study, searched: Sequence[Run], compared: Sequence[Run]) -> tuple[list[Run], int]:
    """The search's runs that could have been the comparison's, but for the tuned key and the seed; and how many are
    not. Without a comparison yet all could."""
    if study.tuning is None or not compared:
        return list(searched), 0
    apart = [key for key in varying([run.config for run in (*searched, *compared)]) if key != study.tuning.key]
    known = {_values(run, apart) for run in compared}
    kept = [run for run in searched if _values(run, apart) in known]
    return kept, len(searched) - len(kept)


def _values(run: Run, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(value_of(run.config, key) for key in keys)


def _tuned(study: Study, searched: Sequence[Run], compared: Sequence[Run]) -> tuple[list[Tuned], list[Run], int]:
    """The choices, the comparison's runs without those of another choice in a row that has several, and how many
    those are."""
    if study.tuning is None or not searched:
        return [], list(compared), 0
    tuning = study.tuning
    rows = _known(study.rows, [*searched, *compared])
    table = compare_runs(list(searched), metrics=_scored(tuning.metrics, searched), by=rows).tables[0]
    labels = row_labels(table.rows, table.columns)
    known = {key for run in (*searched, *compared) for key in run.config}
    keys = [key for row in rows if (key := key_of(row, known))]
    kept = list(compared)
    tuned = []
    for row, label in zip(table.rows, labels, strict=True):
        scores = _scores_by_value(row.runs, tuning.key, tuning.metrics)
        ranked = [value for value in scores if not any(math.isnan(score) for score in scores[value])]
        first = min((_rank(scores[value], tuning.metrics) for value in ranked), default=None)
        best = [value for value in ranked if _rank(scores[value], tuning.metrics) == first]
        same = [run for run in kept if _values(run, keys) == _values(row.runs[0], keys)]
        used = sorted({value_of(run.config, tuning.key) for run in same}, key=order_of_values)
        if len(used) > 1 and set(best) & set(map(shown, used)):
            dropped = {run.folder for run in same if shown(value_of(run.config, tuning.key)) not in best}
            kept = [run for run in kept if run.folder not in dropped]
            used = [value for value in used if shown(value) in best]
        tuned.append(Tuned(label, scores, best, [shown(value) for value in used]))
    return tuned, kept, len(compared) - len(kept)


def _scored(metrics: Sequence[str], runs: Sequence[Run]) -> list[str]:
    known = {score for run in runs for score in run.scores()}
    return [metric for metric in metrics if metric in known]


def _scores_by_value(runs: Sequence[Run], key: str, metrics: Sequence[str]) -> dict[str, list[float]]:
    values = sorted({value_of(run.config, key) for run in runs}, key=order_of_values)
    found: dict[str, list[float]] = {}
    for value in values:
        same = [run.record for run in runs if run.completed and value_of(run.config, key) == value]
        columns = [[s for record in same if (s := record.get(f"scores/{metric}")) is not None] for metric in metrics]
        found[shown(value)] = [fmean(scores) if scores else math.nan for scores in columns]
    return found


def _rank(scores: Sequence[float], metrics: Sequence[str]) -> list[float]:
    return [-score if more_is_better(metric) else score for score, metric in zip(scores, metrics, strict=True)]


def _judged(statement: Statement, rows: Sequence[Row]) -> list[Judged]:
    metric, about = statement.metric, named(statement.of)
    ours = _summary(rows, statement.of, metric)
    judged = []
    for word, others in (("below", statement.below), ("above", statement.above)):
        for other in others:
            says = f"{metric}: {about} {word} {named(other)}"
            theirs = _summary(rows, other, metric)
            if ours is None or theirs is None:
                missing = " and ".join(named(w) for w, s in ((statement.of, ours), (other, theirs)) if s is None)
                judged.append(Judged(says, f"no completed run of {missing}", "no runs"))
            else:
                judged.append(_against(says, ours, theirs, metric, below=word == "below"))
    for word, bound in (("at most", statement.at_most), ("at least", statement.at_least)):
        if bound is not None:
            says = f"{metric}: {about} {word} {_written(metric, bound)}"
            judged.append(_bounded(says, ours, metric, bound, word == "at most"))
    return judged


def _summary(rows: Sequence[Row], where: Where, metric: str) -> Summary | None:
    """Of the one row that has these values; None where there is no such row, or more than one."""
    found = [row.scores[metric] for row in rows if fits(row, typed(where)) and metric in row.scores]
    return found[0] if len(found) == 1 else None


def _against(says: str, ours: Summary, theirs: Summary, metric: str, below: bool) -> Judged:
    difference = difference_of(ours, theirs, metric)
    if difference is None:
        low, high = welch(list(ours.values.values()), list(theirs.values.values()))
        difference, how = Difference(ours.mean - theirs.mean, low, high, 0, ""), "Welch"
    else:
        how = f"paired over {count(difference.n, 'seed')}"
    numbers = (
        f"{_written(metric, ours.mean)} against {_written(metric, theirs.mean)}; difference "
        f"{_written(metric, difference.mean, '+')} ({_interval(metric, difference.low, difference.high, '+')}), {how}"
    )
    if math.isnan(difference.low) or difference.n == 1:
        # what one seed says of the two, another may not
        return Judged(says, numbers, "open")
    yes, no = (difference.high < 0, difference.low > 0)[:: 1 if below else -1]
    return Judged(says, numbers, "holds" if yes else "contrary" if no else "open")


def _bounded(says: str, ours: Summary | None, metric: str, bound: float, most: bool) -> Judged:
    if ours is None:
        return Judged(says, "no completed run", "no runs")
    numbers = f"{_written(metric, ours.mean)} ({_interval(metric, ours.low, ours.high)}), {count(ours.n, 'seed')}"
    yes, no = (ours.high <= bound, ours.low > bound) if most else (ours.low >= bound, ours.high < bound)
    return Judged(says, numbers, "holds" if yes else "contrary" if no else "open")


def _written(metric: str, value: float, sign: str = "") -> str:
    text = written(metric.partition("/")[2], value)
    return f"+{text}" if sign and value > 0 else text


def _interval(metric: str, low: float, high: float, sign: str = "") -> str:
    if math.isnan(low) or math.isnan(high):
        return "interval unknown"
    return f"{_written(metric, low, sign).removesuffix(' %')} to {_written(metric, high, sign)}"


def _verdict(judged: Sequence[Judged]) -> tuple[str, str]:
    counts: Mapping[str, int] = {
        finding: sum(each.verdict == finding for each in judged)
        for finding in ("holds", "contrary", "open", "no runs")
    }
    total = len(judged)
    if counts["no runs"]:
        have = "has" if counts["no runs"] == 1 else "have"
        return "undecided", f"{counts['no runs']} of {count(total, 'statement')} {have} no completed runs yet."
    if counts["holds"] == total:
        return "holds", f"{count(total, 'statement')} of {total}."
    failing = "; ".join(f"{each.says} ({each.numbers})" for each in judged if each.verdict == "contrary")
    unsure = "; ".join(f"{each.says} ({each.numbers})" for each in judged if each.verdict == "open")
    parts = [f"{counts['holds']} of {count(total, 'statement')} {'holds' if total == 1 else 'hold'}"]
    parts += [f"The contrary is measured of {failing}"] if failing else []
    parts += [f"Not told apart: {unsure}"] if unsure else []
    return ("holds partly" if counts["holds"] else "does not hold"), f"{'. '.join(parts)}."
