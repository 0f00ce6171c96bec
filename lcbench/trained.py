"""A trained network back from its run's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lcbench.engine.callbacks import load_checkpoint
from lcbench.engine.experiment import Experiment
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model
from lcbench.results.record import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run's network with its last weights, in evaluation mode, and what it was trained on."""

    model: Model
    experiment: Experiment


def experiment_of(path: Path, trust: bool = False) -> Experiment:
    """The parts of the run in folder ``path``, from its own config.

    Raises:
        ConfigurationError: if ``path`` is no run, or its config names code outside lcbench, torch and lightning and
            ``trust`` is False.
    """
    from lcbench.composition import build, from_config

    folder = RunFolder(path)
    record = folder.read_result()
    config: dict[str, Any] = yaml.safe_load(folder.config.read_text())
    experiment = build(from_config(config, trust))
    name = record["experiment"]
    return replace(experiment, name=name, outputs=path.resolve().parents[name.count("/") + 1])


def load(run: str | Path, checkpoint: str = "last", trust: bool = False) -> Trained:
    """The trained network of a run.

    Args:
        run: the run's folder.
        checkpoint: last or best.
        trust: see ``experiment_of``.

    Raises:
        ConfigurationError: if there is no such run or checkpoint.
    """
    experiment = experiment_of(Path(run), trust)
    path = RunFolder(Path(run)).checkpoints / f"{checkpoint}.ckpt"
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: the run has not got that far.")
    model = experiment.make_model()
    weights = load_checkpoint(path)["state_dict"]
    # beside the network's stand those of the objective's head
    own = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    model.load_state_dict(own)
    return Trained(model.eval(), experiment)
