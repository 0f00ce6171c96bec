"""Run folders as a run leaves them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

#: nested, as in config.yaml; what a test does not mention stays as it is
CONFIG: dict[str, Any] = {
    "experiment": "flip_flop",
    "outputs": "outputs",
    "rerun": False,
    "seed": 0,
    "tags": [],
    "task": {"_target_": "lcbench.task.flip_flop.FlipFlop", "length": 64, "p_ignore": 0.8},
    "model": {"_target_": "lcbench.model.decoder.Decoder", "d_model": 64, "n_layers": 2},
    "attention": {"_target_": "lcbench.attention.full.Full"},
    "position": {"_target_": "lcbench.position.cope.Cope", "context": 64, "p_max": None},
    "optimizer": {"_target_": "lcbench.optimizer.adamw.AdamW", "lr": 0.001, "betas": [0.9, 0.999]},
    "trainer": {"_target_": "lcbench.engine.settings.Trainer", "max_steps": 600, "progress": True},
    "logger": {"_target_": "lcbench.logger.none.Nothing"},
}

ROPE = {"_target_": "lcbench.position.rope.Rope", "base": 10000.0}
COPE = CONFIG["position"]


def config_with(**changes: Any) -> dict[str, Any]:
    """CONFIG with whole groups replaced (``position=ROPE``) or keys set (``model__d_model=32``)."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    return config


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """By dotted key, for two levels."""
    found = {}
    for key, value in config.items():
        found |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def write_run(folder: Path, errors: dict[str, float], *, status: str = "completed", old: bool = False, **changes: Any):
    """A run's folder.

    Args:
        errors: by ``evaluation set/metric``; intervals are 0.05 to either side.
        old: as written before records held their config.
        changes: see ``config_with``; ``cost`` and ``record`` change the record.
    """
    cost, record = changes.pop("cost", {}), changes.pop("record", {})
    config = config_with(**changes)
    result: dict[str, Any] = {"status": status, "error": None, "seed": config["seed"]}
    result |= {"experiment": config["experiment"], "task/headline": "error"}
    result |= {} if old else {f"config/{key}": value for key, value in flat(config).items()}
    for score, value in errors.items():
        ends = {"": value, "_low": value - 0.05, "_high": value + 0.05, "_n": 1000}
        result |= {f"scores/{score}{end}": number for end, number in ends.items()}
    if status == "completed":
        result |= {"cost/parameters": 1000, "cost/tokens_per_second": 2000.0, "cost/peak_memory_bytes": 3 * 2**20}
        result |= {"cost/wall_seconds": 4.0, "cost/train_flops": 5_000_000_000}
    result |= {f"cost/{key}": value for key, value in cost.items()} | record
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.log").write_text("")
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_seeds(parent: Path, name: str, errors: list[float], score: str = "sparse/error", **changes: Any) -> None:
    """A run for every error, with seeds 0, 1, ..."""
    for seed, error in enumerate(errors):
        write_run(parent / f"{name}-{seed}", {score: error}, seed=seed, **changes)
