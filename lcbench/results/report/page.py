"""The page: one HTML file that needs nothing else, with the data in it once."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from typing import Any

from lcbench.results.baseline import fits
from lcbench.results.comparison import COSTS, Comparison
from lcbench.results.keys import ABSENT, shown
from lcbench.results.notes import count
from lcbench.results.pictures import altair
from lcbench.results.render import COST_CELLS
from lcbench.results.report.content import AXES, Datum, Section, differences_of, rising_metrics, share_metrics
from lcbench.results.report.figures import Means, theme, units
from lcbench.results.report.maps import maps_of
from lcbench.results.study.definition import typed
from lcbench.results.study.judge import Findings

#: what one unit of a cost's axis is, and its name
UNITS = {"peak_memory_bytes": (2**20, "MiB"), "wall_seconds": (1, "s"), "train_flops": (1, ""), "parameters": (1, "")}


def page(
    title: str,
    comparison: Comparison,
    sections: Sequence[Section],
    studies: Mapping[str, Findings] | None = None,
) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        comparison: what the sections come from.
        sections: one an experiment.
        studies: by name, which is the experiment of a section.

    Raises:
        ConfigurationError: if what draws the figures is not installed.
    """
    alt = altair("report", "report")
    import vl_convert

    maps = [maps_of(section.table.rows) for section in sections]
    unreadable = [*comparison.unreadable, *(each for _, bad in maps for each in bad)]
    data = {
        "about": _about(sections),
        "solved": comparison.solved,
        "costs": [
            {"name": name, "title": COST_CELLS[name][0], "size": size, "unit": unit}
            for name in COSTS
            for size, unit in [UNITS.get(name, (1, ""))]
        ],
        "axes": AXES,
        "units": {name: _compiled(unit.to_dict()) for name, unit in units(Means.of_page(alt)).items()},
        "sections": [
            _section(section, (studies or {}).get(section.table.experiment)) | {"maps": found}
            for section, (found, _) in zip(sections, maps, strict=True)
        ],
        "unreadable": [{"folder": run.folder, "reason": run.reason} for run in unreadable],
    }
    parts: dict[str, str] = {
        "title": html.escape(title),
        "style": _file("page.css"),
        "footer": html.escape(f"lcbench {metadata.version('lcbench')}; this file needs no network"),
        "data": _embedded(data),
        "library": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        "script": _file("page.js"),
    }
    # in one pass: what is put in is not searched again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def _file(name: str) -> str:
    return resources.files("lcbench.results.report").joinpath(name).read_text()


def _embedded(data: Any) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _compiled(spec: dict[str, Any]) -> dict[str, Any]:
    """Vega, which the browser need not compile first; as wide as what it stands in, in the page's colours."""
    import vl_convert

    config = theme("var(--ink)", "var(--soft)", "var(--line)", background=None)
    return vl_convert.vegalite_to_vega({**spec, "width": "container", "config": config})


def _about(sections: Sequence[Section]) -> str:
    runs = [run for section in sections for row in section.table.rows for run in row.runs]
    rows = sum(len(section.table.rows) for section in sections)
    completed = sum(run.completed for run in runs)
    parts = [count(len(runs), "run"), count(rows, "configuration")]
    if len(sections) > 1:
        parts.append(count(len(sections), "experiment"))
    if completed < len(runs):
        parts.append(f"{completed} completed")
    return ", ".join(parts)


def _section(section: Section, study: Findings | None) -> dict[str, Any]:
    table = section.table
    name = table.experiment if table.experiment == table.task else f"{table.experiment} ({table.task})"
    rows = [
        {
            "label": label,
            "keys": {key: shown(row.keys[key]) for key in table.columns if row.keys.get(key, ABSENT) is not ABSENT},
            "n": row.n,
            "incomplete": ", ".join(f"{n} {status}" for status, n in row.incomplete.items()),
            "cost": {name: _number(value) for name, value in row.cost.items()},
            "written": {name: COST_CELLS[name][1](value) for name, value in row.cost.items() if value is not None},
        }
        for row, label in zip(table.rows, section.labels, strict=True)
    ]
    runs = [
        {
            "label": label,
            "seed": run.seed,
            "status": run.status,
            "folder": run.folder,
            "error": run.record.get("error"),
        }
        for row, label in zip(table.rows, section.labels, strict=True)
        for run in row.runs
    ]
    return {
        "title": name,
        "columns": table.columns,
        "rows": rows,
        "metrics": section.metrics,
        "sets": section.sets,
        "shares": share_metrics(section),
        "rising": rising_metrics(section),
        "chance": section.chance,
        "notes": table.notes,
        "scores": columnar(section.scores),
        "seeds": columnar(section.seeds),
        "lengths": columnar(section.lengths),
        "groups": columnar(section.groups),
        "curves": columnar(section.curves),
        "paper": [
            {"row": i, "set": metric.split("/")[0], "metric": metric.split("/")[1], "value": value}
            for each in (study.study.paper.rows if study else ())
            for i, row in enumerate(table.rows)
            if fits(row, typed(each.where))
            for metric, value in each.scores.items()
        ],
        "differences": [{"key": key, "values": values} for key, values in differences_of(table.rows)],
        "runs": runs,
        "study": _study(study) if study else None,
    }


def _study(found: Findings) -> dict[str, Any]:
    return {
        "claim": found.study.claim,
        "source": found.study.source,
        "verdict": found.verdict,
        "because": found.because,
        "judged": [{"says": each.says, "numbers": each.numbers, "verdict": each.verdict} for each in found.judged],
    }


def columnar(data: Sequence[Datum]) -> dict[str, list[Any]]:
    """Lines by column: names are written once."""
    names = list(dict.fromkeys(name for datum in data for name in datum))
    return {name: [_number(datum.get(name)) for datum in data] for name in names}


def _number(value: Any) -> Any:
    """Floats to 5 digits, which no picture shows more of; None for what JSON has no word for."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
