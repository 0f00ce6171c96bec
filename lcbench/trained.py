"""A trained network back from its run's folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lcbench.engine.callbacks import load_checkpoint, network_weights
from lcbench.engine.evaluate import checkpoint_of
from lcbench.engine.experiment import Experiment
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model
from lcbench.results.record import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run's network, in evaluation mode, and what it was trained on; ``step``: updates of its weights."""

    model: Model
    experiment: Experiment
    step: int


def experiment_of(path: Path, trust: bool = False) -> Experiment:
    """The parts of the run in folder ``path``, from its own config.

    Raises:
        ConfigurationError: if ``path`` is no run, or its config names code outside lcbench, torch and lightning and
            ``trust`` is False.
    """
    from lcbench.composition import build, from_config

    config = config_of(RunFolder(path))
    experiment = build(from_config(config, trust))
    name = experiment.name
    # a folder that was moved may lie less deep
    above = path.resolve().parents
    return replace(experiment, outputs=above[min(name.count("/") + 1, len(above) - 1)])


def config_of(folder: RunFolder) -> dict[str, Any]:
    """A run's own resolved config.

    Raises:
        ConfigurationError: if the folder is no run's, or its config cannot be read.
    """
    try:
        config = yaml.safe_load(folder.config.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise folder.no_run("config.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{folder.config} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(config, dict) or "experiment" not in config:
        raise ConfigurationError(f"{folder.config} is no run's config: it names no experiment.")
    # the wish to start over was that command's, not the run's
    return config | {"rerun": False}


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
    return _trained(experiment, load_checkpoint(path))


def load_scored(run: Path, trust: bool = False) -> Trained:
    """The network of a run as the run itself was scored, from the newest checkpoint that can be read.

    Raises:
        ConfigurationError: if there is no such run, or none of its checkpoints can be read.
    """
    experiment = experiment_of(run, trust)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    return _trained(experiment, checkpoint_of(RunFolder(run), experiment.evaluation.checkpoint, say))


def _trained(experiment: Experiment, content: dict[str, Any]) -> Trained:
    model = experiment.make_model()
    model.load_state_dict(network_weights(content))
    return Trained(model.eval(), experiment, content["global_step"])
