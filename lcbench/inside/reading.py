"""One example of a run's task, as its network reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lcbench.attention.precision import wide
from lcbench.dataset.base import Batch
from lcbench.engine.data import data_of, refuse_other_data
from lcbench.engine.evaluation import read
from lcbench.engine.experiment import Experiment
from lcbench.engine.progress import Progress
from lcbench.engine.streaming import read_in_pieces
from lcbench.engine.tally import autocast
from lcbench.errors import ConfigurationError
from lcbench.results.record import RunFolder
from lcbench.trained import Trained, load_scored


@dataclass(frozen=True)
class Example:
    """An example of an evaluation set.

    Args:
        folder: the run's.
        trained: its network.
        evaluation_set: the set's name.
        number: which of its examples, from 0.
        batch: the example, one row.
    """

    folder: RunFolder
    trained: Trained
    evaluation_set: str
    number: int
    batch: Batch

    @property
    def experiment(self) -> Experiment:
        return self.trained.experiment

    @property
    def name(self) -> str:
        """Part of a file's name."""
        return f"{self.evaluation_set}-{self.number}"


def example_of(
    path: Path,
    evaluation_set: str | None,
    number: int,
    progress: Progress,
    trust: bool,
    *,
    document: bool,
) -> Example:
    """Example ``number`` of a set, or of the first one that the run is scored on, with the run's network.

    Args:
        document: of a text, a whole document, and not the windows of it that the set is scored on.

    Raises:
        ConfigurationError: if there is no such run, set or example, or the text has changed since the training.
    """
    option = "--document" if document else "--example"
    if number < 0:
        raise ConfigurationError(f"{option} {number}: they are counted from 0; the closest is 0.")
    trained, folder = load_scored(path, trust), RunFolder(path)
    experiment = trained.experiment
    data = data_of(experiment, progress, lambda: None)
    before = folder.read_result() if folder.result.exists() else {}
    refuse_other_data(before, data, "train another network on what is there now")
    name = evaluation_set or experiment.evaluation_sets()[0]
    # a name that there is not is refused here
    experiment.task.token_length(name)
    evaluation = experiment.evaluation
    if document:
        batch = experiment.task.example(name, number, evaluation.seed)
    else:
        rows = experiment.task.rows(name, max(number + 1, evaluation.examples), evaluation.seed)
        if number >= len(rows):
            raise ConfigurationError(
                f"{option} {number}: {name} has {len(rows)}, counted from 0; the closest is {len(rows) - 1}."
            )
        batch = rows.take(number, number + 1)
    return Example(folder, trained, name, number, batch)


def surprise(scores: Tensor, targets: Tensor) -> Tensor:
    """``-log2 p(target)``, in bits, from scores ``[batch, time, vocabulary]``: ``[batch, time]``."""
    nats = cross_entropy(wide(scores).flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view(targets.shape) / torch.log(torch.tensor(2.0))


def bits_of(example: Example, tick: Callable[[int], None]) -> Tensor:
    """What each scored token costs the network, in bits ``[time]``; 0 where nothing is scored.

    The example is read as an evaluation that streams reads it: in order, the state carried, all of the past that the
    network keeps. Where the run was scored in segments by themselves, so is this.
    """
    experiment, batch = example.experiment, example.batch
    evaluation, device = experiment.evaluation, experiment.trainer.device
    model = example.trained.model.to(device)
    with torch.inference_mode(), autocast(device, experiment.trainer.precision):
        if evaluation.segment is not None:
            values = read(model, experiment.objective, batch.to(device), surprise, evaluation.segment)
            values = values.cpu().masked_fill(~batch.scored, 0)
        else:
            values, _ = read_in_pieces(model, experiment.objective, batch, surprise, evaluation.chunk, device, tick)
    return values[0].double()
