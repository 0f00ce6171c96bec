"""A study's record: README.md, results.csv and figure.svg, written from its findings."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from lcbench.results.comparison import Row, Summary
from lcbench.results.keys import ABSENT, shown
from lcbench.results.metrics import is_share, written
from lcbench.results.notes import count
from lcbench.results.record import write_text
from lcbench.results.report.content import AXES, Datum, Section, section_of
from lcbench.results.report.figures import COLOURS, Panel, svg
from lcbench.results.runs import Run
from lcbench.results.study.definition import PaperRow, named
from lcbench.results.study.judge import Findings

FILES = ("README.md", "results.csv", "figure.svg")


def write_record(folder: Path, name: str, found: Findings) -> list[Path]:
    """Write the record; returns its files.

    Raises:
        ConfigurationError: if what draws the figure is not installed.
    """
    texts = {"README.md": readme(name, found), "results.csv": results(found)}
    if found.table is not None:
        texts["figure.svg"] = figure(name, found)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def readme(name: str, found: Findings) -> str:
    """The record's text, in Markdown."""
    study = found.study
    parts = [f"# {name}", f"**Claim.** {_plain(study.claim)} ({_plain(study.source)})"]
    parts.append(f"**Verdict: {found.verdict}.** {_plain(found.because)}")
    if found.table is not None:
        parts.append("![Scores of every seed, and errors by what they are split by](figure.svg)")
    parts += ["## Scores", *_scores(found), "## What decides"]
    parts.append(
        _table(["statement", "measured", ""], [[j.says, j.numbers, f"**{j.verdict}**"] for j in found.judged])
    )
    parts.append(
        "A statement holds if the 95 % interval says so: of the difference, paired by seed (without common seeds, "
        "Welch's), or of the mean. It is open where the interval allows both."
    )
    if study.tuning and found.tuned:
        parts += [f"## {_plain(study.tuning.key)}", *_search(found)]
    parts += ["## Command", "\n".join(f"    {command}" for command in study.commands)]
    parts.append(
        "`lcbench report` on these runs writes this page, results.csv and figure.svg; what they are judged by is "
        "in [study.yaml](study.yaml)."
    )
    if study.differs:
        parts += ["## What differs from the paper", "\n".join(f"- {_plain(each)}" for each in study.differs)]
    parts += ["## What it took", _cost([*found.compared, *found.searched], found.left_out)]
    return "\n\n".join(parts) + "\n"


def _scores(found: Findings) -> list[str]:
    study = found.study
    reported = {metric for row in study.paper.rows for metric in row.scores}
    header = ["", "seeds"]
    for metric in study.metrics:
        header += [metric, "paper"] if metric in reported else [metric]
    lines = []
    rows: list[tuple[str, Row | None, PaperRow | None]] = []
    for i, row in enumerate(found.table.rows if found.table else ()):
        rows.append((found.labels[i], row, found.paper.get(i)))
    rows += [(each.name, None, each) for each in found.paper_only]
    for label, ours, paper in rows:
        line = [label, _seeds(ours)]
        for metric in study.metrics:
            line.append(_cell(metric, ours.scores.get(metric) if ours else None))
            if metric in reported:
                line.append(_reported(metric, paper))
        lines.append(line)
    text = [_table(header, lines, numbers=True)]
    text.append(
        "Mean over seeds, 95 % interval (Student's t; the runs' own where all seeds score the same or there is one), "
        f"seeds that solved it (an error of at most {written('error', study.solved)})."
        + (f" {_plain(study.paper.note)}" if study.paper.note else "")
    )
    return text


def _seeds(row: Row | None) -> str:
    if row is None:
        return "not run"
    left = ", ".join(f"{n} {status}" for status, n in row.incomplete.items())
    return f"{row.n} ({left})" if left else str(row.n)


def _cell(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return "not run"
    _, _, name = metric.partition("/")
    if math.isnan(summary.low):
        interval = "interval unknown"
    else:
        interval = f"{written(name, summary.low).removesuffix(' %')} to {written(name, summary.high)}"
    solved = "" if summary.solved is None else f", {round(summary.solved * summary.n)}/{summary.n} solved"
    return f"**{written(name, summary.mean)}** ({interval}{solved})"


def _reported(metric: str, paper: PaperRow | None) -> str:
    if paper is None or metric not in paper.scores:
        return "not reported"
    return written(metric.partition("/")[2], paper.scores[metric])


def _search(found: Findings) -> list[str]:
    tuning = found.study.tuning
    assert tuning is not None
    values = list(dict.fromkeys(value for row in found.tuned for value in row.scores))
    values.sort(key=float if all(_is_number(value) for value in values) else str)
    lines = []
    for row in found.tuned:
        cells = []
        for value in values:
            scores = row.scores.get(value, [])
            words = [
                "unknown" if math.isnan(score) else written(metric.partition("/")[2], score)
                for metric, score in zip(tuning.metrics, scores, strict=False)
            ]
            text = ", ".join(words)
            cells.append(f"**{text}**" if value in row.best else text)
        used = ", ".join(row.used) or "not run"
        warning = " (not the best of the search)" if row.best and not set(row.used) <= set(row.best) else ""
        lines.append([row.label, *cells, f"{used}{warning}"])
    seeds = ", ".join(map(str, tuning.seeds))
    return [
        f"Searched for each row by itself on seed {seeds}, which is not in the comparison; the best by "
        f"{', then '.join(f'`{metric}`' for metric in tuning.metrics)} is bold.",
        _table(["", *values, "used"], lines, numbers=True),
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def core_hours(runs: Sequence[Run]) -> float:
    """Wall time by threads of all runs that say how long they took."""
    seconds = 0.0
    for run in runs:
        threads = run.record.get("machine/threads") or 1
        seconds += (run.record.get("cost/wall_seconds") or 0.0) * threads
    return seconds / 3600


def _cost(runs: Sequence[Run], left_out: Sequence[str]) -> str:
    lines = [f"{core_hours(runs):.1f} core-hours ({count(len(runs), 'run')}, with their scoring and the search)."]
    unfinished = sum(not run.completed for run in runs)
    if unfinished:
        lines.append(f"Not completed: {count(unfinished, 'run')}.")
    if left_out:
        lines.append(f"Left out: {', '.join(left_out)}.")
    processors = sorted({str(name) for run in runs if (name := run.record.get("machine/processor"))})
    versions = sorted({f"lcbench {v}" for run in runs if (v := run.record.get("versions/lcbench"))})
    versions += sorted({f"torch {v}" for run in runs if (v := run.record.get("versions/torch"))})
    commits = sorted({str(commit)[:10] for run in runs if (commit := run.record.get("git/commit"))})
    where = [*processors, *versions, *(f"commit {commit}" for commit in commits)]
    return " ".join([*lines, f"On {', '.join(where)}." if where else ""]).strip()


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], numbers: bool = False) -> str:
    rule = ["---", *("---:" if numbers else "---" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(_cell_text(cell) for cell in line)} |" for line in (header, rule, *lines))


def _cell_text(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line without HTML: names of configs are the user's."""
    return re.sub(r"\s+", " ", text).strip().replace("&", "&amp;").replace("<", "&lt;")


def results(found: Findings) -> str:
    """One line a row and metric, the paper's beside ours; empty cells are unknown."""
    study = found.study
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["seeds", "mean", "low", "high", "median", "solved", "paper", "values"]
    writer.writerow(["configuration", *study.rows, "metric", *numbers])
    for i, row in enumerate(found.table.rows if found.table else ()):
        keys = ["" if (value := row.keys.get(key, ABSENT)) is ABSENT else shown(value) for key in study.rows]
        paper = found.paper.get(i)
        for metric in study.metrics:
            summary = row.scores.get(metric)
            ours: list[object] = [0, "", "", "", "", ""]
            values = ""
            if summary is not None:
                solved = "" if summary.solved is None else summary.solved
                ours = [summary.n, summary.mean, summary.low, summary.high, summary.median, solved]
                values = " ".join(f"{unit[-1]}:{value:.6g}" for unit, value in summary.values.items())
            cells = ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in ours]
            writer.writerow([found.labels[i], *keys, metric, *cells, _paper_cell(paper, metric), values])
    for paper in found.paper_only:
        known = {key: shown(value) for key, value in paper.where.items()}
        for metric in study.metrics:
            keys = [known.get(key, "") for key in study.rows]
            writer.writerow([named(paper.where), *keys, metric, 0, *[""] * 5, _paper_cell(paper, metric), ""])
    return text.getvalue()


def _paper_cell(paper: PaperRow | None, metric: str) -> str:
    return "" if paper is None or metric not in paper.scores else f"{paper.scores[metric]:g}"


def figure(name: str, found: Findings) -> str:
    """Every seed of every row on every metric, then what tasks split their errors by."""
    assert found.table is not None
    section = section_of(found.table)
    metrics = [metric for metric in found.study.metrics if metric in found.table.metrics]
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(section.labels)}
    panels = [_of_scores(metric, section, found) for metric in metrics]
    axes = dict.fromkeys(datum["axis"] for datum in section.groups)
    panels += [
        panel for metric in metrics for axis in axes if (panel := _of_groups(metric, axis, section)) is not None
    ]
    subtitle = "points: seeds; tick: mean; bar: 95 % interval" + ("; cross: the paper" if found.paper else "")
    return svg(panels, colours, all(map(is_share, metrics)), name, subtitle)


def _of_scores(metric: str, section: Section, found: Findings) -> Panel:
    evaluation_set, _, name = metric.partition("/")

    def of(frame: Sequence[Datum]) -> list[Datum]:
        same = [datum for datum in frame if (datum["set"], datum["metric"]) == (evaluation_set, name)]
        return [{**datum, "label": section.labels[datum["row"]]} for datum in same]

    summary = [datum for datum in of(section.scores) if math.isfinite(datum["mean"])]
    for datum in summary:
        # an interval that is not known is not drawn
        datum |= {end: None for end in ("low", "high") if not math.isfinite(datum[end])}
    paper = [
        {"row": i, "label": section.labels[i], "value": each.scores[metric]}
        for i, each in found.paper.items()
        if metric in each.scores
    ]
    return Panel("scores", metric.replace("/", ": "), {"summary": summary, "seeds": of(section.seeds), "paper": paper})


def _of_groups(metric: str, axis: str, section: Section) -> Panel | None:
    wanted = (*metric.split("/", 1), axis)
    lines = [
        {**datum, "label": section.labels[datum["row"]]}
        for datum in section.groups
        if (datum["set"], datum["metric"], datum["axis"]) == wanted and math.isfinite(datum["mean"])
    ]
    title = f"{metric.replace('/', ': ')} by {AXES.get(axis, axis.replace('_', ' '))}"
    return Panel("groups", title, {"lines": lines}) if lines else None
