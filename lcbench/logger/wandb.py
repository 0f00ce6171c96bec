"""Weights & Biases: online where a key is configured, otherwise offline. Never asks, never waits for a network.

A run's id is kept in wandb/id of its folder, so a resumed run keeps its page. Metrics are logged against the
trainer's step, because W&B's own step counter drops what a resumed run repeats.
"""

from __future__ import annotations

import netrc
import os
import secrets
import urllib.parse
from pathlib import Path
from typing import Any, Literal, cast

from lcbench.logger.base import RunFacts, RunLogger
from lcbench.results.record import scores_of, write_text

#: left behind in a sweep agent's environment, these would make a child process write into the agent's own run
AGENT_VARIABLES = ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")

#: the service's address, old and new
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")

STEP = "trainer/global_step"


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

    def start(self, facts: RunFacts) -> str | None:
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE") or ("online" if configured_key() else "offline")
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

    def _open(self, facts: RunFacts, mode: str) -> Any:
        import wandb

        for name in AGENT_VARIABLES:
            os.environ.pop(name, None)
        id_file = facts.folder / "wandb" / "id"
        if not id_file.exists():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(id_file, secrets.token_hex(4))
        return wandb.init(
            project=self.project,
            entity=self.entity,
            group=facts.experiment,
            name=facts.name,
            tags=facts.tags,
            job_type=facts.job,
            id=id_file.read_text(),
            resume="allow" if mode == "online" else None,
            config=facts.config | _evaluated(facts),
            dir=str(facts.folder),
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


def _evaluated(facts: RunFacts) -> dict[str, Any]:
    """Which run an evaluation scores: its folder's name, and its W&B id where it has one."""
    if facts.evaluated is None:
        return {}
    id_file = facts.evaluated / "wandb" / "id"
    known = {"wandb_id": id_file.read_text()} if id_file.exists() else {}
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
