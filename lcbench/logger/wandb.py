"""Weights & Biases: online where a key is configured, otherwise offline. Never asks, never waits for a network.

A run's id, group, name and job type are kept in wandb/page.json of its folder, so a resumed run keeps its page.
Metrics are logged against the trainer's step, because W&B's own step counter drops what a resumed run repeats.

A run that a W&B sweep's agent starts is the agent's: it has the id that the agent gave it, and belongs to its sweep.
The agent's parameters would overwrite what they share a name with (``position``, the whole section) and are logged as
they are only where they do not: ``optimizer.lr`` beside the ``optimizer`` section.
"""

from __future__ import annotations

import hashlib
import json
import logging
import netrc
import os
import secrets
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from lcbench.logger.base import RunFacts, RunLogger, SweepFacts
from lcbench.results.comparison import Comparison
from lcbench.results.export import as_lines
from lcbench.results.keys import TARGET, label_of, value_of
from lcbench.results.record import scores_of, write_text

#: what a sweep's agent tells the run it starts; a run that it did not start would write into the one that it did
AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")

#: the service's address, old and new
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")

STEP = "trainer/global_step"

#: groups whose choices become tags
FILTERED = ("task", "model", "attention", "position")
#: W&B's limits
LONGEST_TAG, LONGEST_NAME = 64, 128


class WandB(RunLogger):
    """Logs to Weights & Biases.

    Args:
        project: W&B project.
        entity: W&B user or team; null for the account's default.
        mode: null decides by whether a key is configured (and obeys WANDB_MODE); online or offline insist.
        timeout: seconds to wait for the server before the run goes offline.
    """

    def __init__(
        self,
        *,
        project: str = "lcbench",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        timeout: float = 20.0,
    ) -> None:
        self.project, self.entity, self.mode, self.timeout = project, entity, mode, timeout
        self.run: Any = None
        self.agent: _Agent | None = None

    def start(self, facts: RunFacts) -> str | None:
        import wandb

        # on a full disk W&B's own debug.log would fill the screen with tracebacks
        logging.raiseExceptions = False
        mode = self._mode()
        self.agent = _Agent.here()
        try:
            self.run = self._open(facts, mode)
            reason = "" if mode == "online" or self.mode else ", as no key is configured"
        except (wandb.errors.Error, OSError) as error:
            if mode != "online":
                raise
            wandb.teardown()
            mode, reason = "offline", f", as the server did not take the run ({' '.join(str(error).split())[:120]})"
            self.run = self._open(facts, mode)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        if mode == "online":
            return f"W&B: {self.run.url}"
        if mode == "offline":
            self.folder = Path(self.run.settings.sync_dir)
            return f"W&B: offline{reason}; to upload later: wandb sync {_relative(self.folder)}"
        return f"W&B: {mode}"

    def _mode(self) -> str:
        return self.mode or os.environ.get("WANDB_MODE") or ("online" if configured_key() else "offline")

    def _open(self, facts: RunFacts, mode: str) -> Any:
        page = _page_of(facts)
        for name in AGENT_VARIABLES:
            os.environ.pop(name, None)
        if self.agent is not None:
            # in a sweep, wandb takes the id from the environment and from nowhere else
            os.environ |= {"WANDB_SWEEP_ID": self.agent.sweep, "WANDB_RUN_ID": page["id"]}
        config = {**(self.agent.parameters if self.agent is not None else {}), **facts.config, **_evaluated(facts)}
        return self._init(page, [*facts.tags, *_tags_of(facts.config)], config, facts.folder, mode)

    def _init(self, page: dict[str, str], tags: list[str], config: dict[str, Any], folder: Path, mode: str) -> Any:
        import wandb

        named = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=page["id"],
            group=page["group"],
            name=page["name"],
            job_type=page["job_type"],
            tags=[tag[:LONGEST_TAG] for tag in dict.fromkeys([*tags, *named])],
            resume="allow" if mode == "online" else None,
            config=config,
            dir=str(folder),
            mode=cast("Literal['online', 'offline']", mode),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=self.timeout, login_timeout=self.timeout, disable_git=True
            ),
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.run is not None:
            self.run.log({**metrics, STEP: step})

    def finish(self, result: dict[str, Any], exit_code: int) -> str | None:
        if self.run is None:
            return None
        import wandb

        rows = [[s.evaluation_set, s.metric, s.value, s.low, s.high, s.n] for s in scores_of(result)]
        try:
            if rows:
                columns: list[str | int] = ["evaluation_set", "metric", "value", "low", "high", "n"]
                self.run.log({"scores": wandb.Table(columns=columns, data=rows)})
            # W&B has the config as such
            summary = {k: v for k, v in result.items() if v is not None and not k.startswith("config/")}
            self.run.summary.update(summary)
        finally:
            self.run.finish(exit_code=exit_code)
            self.run = None
        return None

    def finished_before(self, facts: RunFacts, result: dict[str, Any]) -> str | None:
        """An agent that proposes what is computed already gets its result, on a page of its own."""
        if _Agent.here() is None:
            return None
        line = self.start(facts)
        self.finish(result, exit_code=0)
        return line

    def log_figures(self, facts: RunFacts, figures: Mapping[str, Path]) -> str | None:
        """Figures have a page in their run's group: what an offline run has written already takes no more."""
        import wandb

        line = self.start(facts)
        try:
            # as pages, since pictures would need another package
            self.run.log({name: wandb.Html(path.read_text(), inject=False) for name, path in figures.items()})
        finally:
            self.finish({}, exit_code=0)
        return line

    def finish_sweep(self, facts: SweepFacts, comparison: Comparison) -> str | None:
        """One run in the sweep's group holds the table, and the same one after the sweep has been run again."""
        mode = self._mode()
        return self.log_comparison(facts, comparison, mode) if mode == "online" else None

    def log_comparison(self, facts: SweepFacts, comparison: Comparison, mode: str) -> str:
        """Log the comparison as a table, one line per configuration."""
        import wandb

        for name in AGENT_VARIABLES:
            os.environ.pop(name, None)
        page = {
            "id": f"compare-{hashlib.sha256(facts.group.encode()).hexdigest()[:8]}",
            "group": facts.group,
            "name": f"comparison of {facts.group}"[:LONGEST_NAME],
            "job_type": "compare",
        }
        names, lines = as_lines(comparison)
        run = self._init(page, facts.tags, {}, facts.folder, mode)
        exit_code = 1
        try:
            run.log({"comparison": wandb.Table(columns=list(names), data=lines, allow_mixed_types=True)})
            exit_code = 0
        finally:
            run.finish(exit_code=exit_code)
        return f"W&B: the comparison is at {run.url}"


def _page_of(facts: RunFacts) -> dict[str, str]:
    """Id, group, name and job type: W&B's own variables (a sweep sets them for its jobs), else as before, else new."""
    file = facts.folder / "wandb" / "page.json"
    page = {
        "id": secrets.token_hex(4),
        "group": facts.experiment,
        "name": facts.name,
        "job_type": facts.job,
    }
    if file.exists():
        page |= json.loads(file.read_text())
    variables = {"group": "WANDB_RUN_GROUP", "name": "WANDB_NAME", "job_type": "WANDB_JOB_TYPE"}
    if os.environ.get("WANDB_SWEEP_ID"):
        variables["id"] = "WANDB_RUN_ID"
    page |= {key: value for key, name in variables.items() if (value := os.environ.get(name))}
    page = {key: value[:LONGEST_NAME] for key, value in page.items()}
    write_text(file, json.dumps(page, indent=1) + "\n")
    return page


@dataclass(frozen=True)
class _Agent:
    """The W&B agent that started this process: its sweep, and what it chose for this run, by key."""

    sweep: str
    parameters: dict[str, Any]

    @classmethod
    def here(cls) -> _Agent | None:
        """None if no agent did."""
        sweep, path = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_SWEEP_PARAM_PATH")
        if not sweep:
            return None
        written: dict[str, Any] = (yaml.safe_load(Path(path).read_text()) if path else None) or {}
        chosen = {key: node["value"] for key, node in written.items() if isinstance(node, dict) and "value" in node}
        return cls(sweep, chosen)


def _tags_of(config: dict[str, Any]) -> list[str]:
    """What runs are looked for by: the choices of the groups that a comparison is about."""
    targets = {f"{key}{TARGET}": config[key]["_target_"] for key in FILTERED if key in config}
    return [f"{label_of(key)}={value_of(targets, key)}" for key in targets]


def _evaluated(facts: RunFacts) -> dict[str, Any]:
    """Which run an evaluation scores: its folder's name, and its W&B id where it has one."""
    if facts.evaluated is None:
        return {}
    page = facts.evaluated / "wandb" / "page.json"
    known = {"wandb_id": json.loads(page.read_text())["id"]} if page.exists() else {}
    return {"evaluated": {"run": facts.evaluated.resolve().name, **known}}


def configured_key() -> bool:
    """Whether an API key for the server stands in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urllib.parse.urlsplit(server).netloc] if server else HOSTS
    candidates = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in candidates if name):
        try:
            known = netrc.netrc(str(path)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(host in known for host in hosts):
            return True
    return False


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
