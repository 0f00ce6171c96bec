"""What a reader of a table must know beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from lcbench.results.comparison import Row
from lcbench.results.keys import label_of
from lcbench.results.metrics import kinds_of
from lcbench.results.runs import Run


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def notes_on(
    runs: Sequence[Run], metrics: Sequence[str], mixed: Sequence[str], rows: Sequence[Row]
) -> tuple[str, ...]:
    """Sentences on what was left out, and on what the numbers do not say."""
    notes = []
    if mixed:
        differ = ", ".join(map(label_of, mixed))
        notes.append(f"a row mixes configurations that differ in {differ}; each counts beside the seeds")
    statuses = {status for row in rows for status in row.incomplete}
    counts = [f"{sum(row.incomplete.get(status, 0) for row in rows)} {status}" for status in sorted(statuses)]
    if counts:
        notes.append(f"not completed, and in no average: {', '.join(counts)}")
    completed = [run for run in runs if run.completed]
    for metric in metrics:
        without = sum(run.record.get(f"scores/{metric}") is None for run in completed)
        if without:
            notes.append(f"without {metric}: {without} of {len(completed)} completed runs")
    for metric in metrics:
        later = sum(metric.split("/")[0] in run.evaluated for run in completed)
        if later:
            notes.append(f"{metric} comes from later evaluations in {later} of {len(completed)} completed runs")
    headline = runs[0].record["task/headline"]
    kinds = kinds_of(runs)
    sets = dict.fromkeys(s for kind in kinds for s in kind if s.partition("/")[2] == headline)
    partly = [s for s in sets if s not in metrics and any(s not in kind for kind in kinds)]
    if partly:
        notes.append(f"scored in some runs only, so left out (--metric shows it): {', '.join(partly)}")
    repeated = sum(row.n < sum(run.completed for run in row.runs) for row in rows)
    if repeated:
        notes.append(f"several runs of one seed, in {count(repeated, 'row')}, count once, by their mean")
    if any(row.n == 1 for row in rows):
        notes.append("one seed: the interval says only how much was scored; another seed may turn the order")
    devices = ("machine/processor", "machine/accelerator", "machine/threads")
    machines = {tuple(run.record.get(key) for key in devices) for run in completed}
    if len(machines) > 1:
        notes.append(f"time and memory come from {len(machines)} kinds of machine, counting threads")
    versions = {(run.record.get("versions/lcbench"), run.record.get("git/commit")) for run in completed}
    if len(versions) > 1:
        notes.append(f"the runs come from {len(versions)} versions of lcbench's code")
    return tuple(notes)
