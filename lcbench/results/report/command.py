"""``lcbench report PATHS``: the page, and the record of each study that the runs belong to."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lcbench.errors import ConfigurationError
from lcbench.results.command import names, selectors, share, writable
from lcbench.results.record import write_text
from lcbench.results.report.content import sections_of
from lcbench.results.report.page import page
from lcbench.results.runs import Run, read_runs
from lcbench.results.study.definition import studies_of
from lcbench.results.study.judge import Findings, findings
from lcbench.results.study.record import write_record
from lcbench.words import REPORT


def report_command(words: list[str], console: Console) -> int:
    """Write the page of the runs at or below the paths in ``words``; returns the exit code."""
    parsed = REPORT.parse(words)
    paths, options = parsed.plain, parsed.values
    if not paths:
        raise ConfigurationError("report takes folders of runs: lcbench report outputs.")
    file = writable("--output", options.get("--output", REPORT.values["--output"]), REPORT.values["--output"])
    experiments = Path(options.get("--experiments", REPORT.values["--experiments"]))
    runs, unreadable = read_runs(paths)
    studies = studies_of((run.experiment for run in runs), experiments)
    found = {folder: findings(study, _name(folder, experiments), runs) for folder, study in studies.items()}
    comparison, sections = sections_of(
        _by_study(runs, {_name(folder, experiments): each for folder, each in found.items()}),
        unreadable,
        by=names(options.get("--by", "")),
        against=selectors(options["--against"]) if "--against" in options else None,
        solved=share(options.get("--solved", "0.01")),
    )
    on_page = {_name(folder, experiments): each for folder, each in found.items()}
    title = _title([section.table.experiment for section in sections], on_page)
    write_text(file, page(title, comparison, sections, on_page))
    console.print(f"page        {file}", soft_wrap=True)
    for folder, each in found.items():
        if each.table is None:
            console.print(f"study       {folder}: no run is completed; its record stays as it is", soft_wrap=True)
            continue
        written = write_record(folder, _name(folder, experiments), each)
        console.print(f"study       {written[0]}: {each.verdict}", soft_wrap=True)
    if "--wandb" in parsed.flags:
        from lcbench.logger.workspace import update_workspace

        console.print(f"W&B         {update_workspace(sections, Path(paths[0]))}", soft_wrap=True)
    return 0


def _name(folder: Path, experiments: Path) -> str:
    return folder.relative_to(experiments).as_posix()


def _title(names: Sequence[str], studies: Container[str]) -> str:
    """The studies, else all experiments."""
    chosen = list(dict.fromkeys([name for name in names if name in studies] or names))
    return ", ".join(chosen[:4]) + (f" and {len(chosen) - 4} more" if len(chosen) > 4 else "")


def _by_study(runs: Sequence[Run], found: Mapping[str, Findings]) -> list[Run]:
    """The runs with those of a study under its name, and first: its comparison, its search, what it leaves out."""
    places: dict[str, Run] = {}
    for name, each in found.items():
        places |= {run.folder: run for run in each.compared}
        places |= {run.folder: replace(run, experiment=f"{name}, search") for run in each.searched}
    experiments = {experiment for each in found.values() for experiment in each.study.experiments}
    rest = [run for run in runs if run.folder not in places]
    others = [
        replace(run, experiment=f"{run.experiment}, in no study") if run.experiment in experiments else run
        for run in rest
    ]
    return [*places.values(), *others]
