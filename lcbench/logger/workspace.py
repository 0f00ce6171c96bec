"""A workspace of Weights & Biases with the panels of the page: made once, and the same one after a report again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcbench.errors import ConfigurationError
from lcbench.logger.wandb import configured_key
from lcbench.results.keys import TARGET
from lcbench.results.record import write_text
from lcbench.results.report.content import Section
from lcbench.results.runs import Run

#: where a workspace's address is kept, in the first folder that was reported
FILE = ".workspace.json"
PROJECT = "lcbench"


def update_workspace(sections: Sequence[Section], folder: Path) -> str:
    """Create the workspace, or update that of an earlier report of ``folder``; returns a sentence for the user.

    Args:
        sections: of the page.
        folder: the first that was reported.

    Raises:
        ConfigurationError: if wandb-workspaces is not installed, or no run logs to W&B.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if configured_key() else "offline")
    if mode != "online":
        reason = f"WANDB_MODE is {mode}" if "WANDB_MODE" in os.environ else "no key is configured"
        return f"no workspace is made, as {reason}; with one (wandb login), the same command makes it"
    library = _library()
    import wandb

    place = folder / FILE
    try:
        entity, project = _project(_runs(sections))
        workspace = workspace_of(library, sections, entity or wandb.Api().default_entity or "", project)
        known = json.loads(place.read_text())["url"] if place.exists() else None
        if known is not None:
            kept = library.Workspace.from_url(known)
            kept.sections, kept.runset_settings = workspace.sections, workspace.runset_settings
            workspace = kept
        workspace.save()
    except (wandb.errors.Error, OSError, ValueError) as error:
        return f"no workspace is made, as the server did not take it ({' '.join(str(error).split())[:160]})"
    write_text(place, json.dumps({"url": workspace.url}, indent=1) + "\n")
    return f"the workspace is at {workspace.url}"


def _library() -> Any:
    try:
        import wandb_workspaces.workspaces as library
    except ImportError:
        raise ConfigurationError(
            "--wandb: no workspace without wandb-workspaces; pip install 'lcbench[report]'."
        ) from None
    return library


def _runs(sections: Sequence[Section]) -> list[Run]:
    return [run for section in sections for row in section.table.rows for run in row.runs]


def _project(runs: Sequence[Run]) -> tuple[str | None, str]:
    """Where the runs log: of the first that says so."""
    for run in runs:
        if run.config.get("logger.project"):
            return run.config.get("logger.entity"), run.config["logger.project"]
    return None, PROJECT


def workspace_of(library: Any, sections: Sequence[Section], entity: str, project: str) -> Any:
    """The workspace, which nobody has been told of yet: a section of panels an experiment."""
    import wandb_workspaces.reports.v2 as panels

    parts = []
    keys: dict[str, None] = {}
    for section in sections:
        columns = _choices(section)
        keys |= dict.fromkeys(columns)
        groupby = panels.Config(_config_key(columns[0])) if columns else None
        common: dict[str, Any] = {"groupby": groupby, "groupby_aggfunc": "mean" if groupby else None}
        bars = [
            panels.BarPlot(title=metric, metrics=[f"scores/{metric}"], groupby_rangefunc="minmax", **common)
            for metric in section.shown
        ]
        curves = [
            panels.LinePlot(title=name, x="trainer/global_step", y=[name], groupby_rangefunc="minmax", **common)
            for name in ("train/loss", f"evaluation/{section.headline}")
        ]
        costs = [
            panels.ScatterPlot(
                title=f"{metric} against time",
                x=panels.SummaryMetric("cost/wall_seconds"),
                y=panels.SummaryMetric(f"scores/{metric}"),
            )
            for metric in section.shown[:1]
        ]
        name = section.table.experiment
        parts.append(library.Section(name=name, is_open=True, panels=[*bars, *curves, *costs]))
    parts.append(library.Section(name="configurations", panels=[panels.RunComparer(diff_only="split")]))
    title = ", ".join(dict.fromkeys(section.table.experiment for section in sections))
    experiments = sorted({run.config["experiment"] for run in _runs(sections) if "experiment" in run.config})
    settings = library.RunsetSettings(
        filters=[library.Config("experiment").isin(experiments)],
        groupby=[library.Config(_config_key(key)) for key in keys],
    )
    return library.Workspace(
        entity=entity,
        project=project,
        name=f"report of {title}"[:120],
        sections=parts,
        runset_settings=settings,
    )


def _choices(section: Section) -> list[str]:
    """The columns that runs are grouped by: choices of groups, that with the most different ones first."""
    columns = section.table.columns
    chosen = [column for column in columns if "." not in column] or columns
    return sorted(chosen, key=lambda column: -len({repr(row.keys.get(column)) for row in section.table.rows}))


def _config_key(column: str) -> str:
    return column if "." in column else f"{column}{TARGET}"
