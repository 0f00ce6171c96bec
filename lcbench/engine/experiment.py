"""A run before it starts: its parts, and whether they fit together."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lcbench.attention.base import Attention
from lcbench.cost.analytic import Cost, estimate
from lcbench.dataset.base import Dataset
from lcbench.engine.machine import device_bytes
from lcbench.engine.reading import feeding_of
from lcbench.engine.settings import Evaluation, Trainer
from lcbench.errors import ConfigurationError
from lcbench.logger.base import RunLogger
from lcbench.model.base import Model
from lcbench.objective.base import Objective
from lcbench.optimizer.base import OptimizerRecipe
from lcbench.position.base import PositionEncoding
from lcbench.results.record import RunFolder
from lcbench.results.runs import dotted
from lcbench.results.sizes import human_bytes
from lcbench.task.base import TRAIN, Task


@dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Args:
        config: resolved and plain.
        name: the experiment the run belongs to; its folder's parent.
        seed: of initialisation, data and dropout.
        folder_name: unique to what is computed.
        identity: 8 hex digits of what is computed.
        outputs: where runs are kept.
        rerun: start over although the run exists.
        retry: in a sweep, run again what failed.
        task, dataset, make_model, objective, optimizer, trainer, evaluation, logger: the parts.
    """

    config: dict[str, Any]
    name: str
    seed: int
    folder_name: str
    identity: str
    outputs: Path
    rerun: bool
    retry: bool
    task: Task
    dataset: Dataset
    make_model: Callable[[], Model]
    objective: Objective
    optimizer: OptimizerRecipe
    trainer: Trainer
    evaluation: Evaluation
    logger: RunLogger

    def evaluation_sets(self) -> list[str]:
        """Names of the sets the run is scored on, in order, each once: sets of one kind are one set at one length."""
        sets = list(self.evaluation.sets or self.task.evaluation_sets)
        at_lengths = [self.task.at(name, length) for length in self.evaluation.lengths for name in sets]
        return list(dict.fromkeys(sets + at_lengths))

    def checked(self, trained: bool = False) -> Experiment:
        """Itself, if its parts fit together. Builds the network without memory or data.

        Args:
            trained: the network has its weights already: only what it is scored on can still change.

        Raises:
            ConfigurationError: if they do not.
        """
        lengths = {name: self._token_length(name) for name in self.evaluation_sets()}
        for name in self.evaluation_sets():
            if self.evaluation.segment is not None and self.task.spoken(name):
                raise ConfigurationError(
                    f"evaluation.segment={self.evaluation.segment}: evaluation set {name} is answered after the whole "
                    "prompt, not read in segments; the closest that works is evaluation.segment=null."
                )
        with torch.device("meta"):
            model = self.make_model()
        feeding_of(self.trainer, model)
        if self.dataset.insertion is None and any(
            isinstance(module, Attention) and module.needs_landmarks for module in model.modules()
        ):
            attention, dataset = (self.config[key]["_target_"].split(".")[-2] for key in ("attention", "dataset"))
            raise ConfigurationError(
                f"attention={attention} is full attention without landmarks, and dataset={dataset} has none; "
                "take dataset=landmark."
            )
        self.objective.check(model, self.dataset)
        encodings = _encodings(model)
        if any(encoding.max_length is not None for encoding in encodings):
            # only here, since it may need the data
            lengths = {TRAIN: self.dataset.reach + 1, **lengths}
        for encoding in encodings:
            self._check_encoding(encoding, lengths, trained)
        if not trained:
            read = lengths.get(TRAIN, self.dataset.longest + 1) - 1
            self._check_state(model, "training", read, "trainer.batch_size", self.trainer.batch_size)
        at_once = min(self.evaluation.batch_size, self.evaluation.examples)
        for name in self.evaluation_sets():
            where = f"evaluation set {name}"
            self._check_state(model, where, lengths[name] - 1, "evaluation.batch_size", at_once)
        return self

    def _check_state(self, model: Model, where: str, length: int, key: str, rows: int) -> None:
        """Refuse a state of ``rows`` rows of ``length`` tokens that is larger than the memory of the device."""
        room = device_bytes(self.trainer.device)
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32

        def needs(rows: int, length: int) -> int:
            return model.state_bytes(rows, length, dtype)

        if room is None or needs(rows, length) <= room:
            return
        if needs(1, length) <= room:
            remedy = f"the largest that fits is {key}={bisect(range(1, rows), room, key=lambda n: needs(n, length))}"
        else:
            most = bisect(range(1, length), room, key=lambda n: needs(1, n))
            remedy = f"one row of at most {most:,} tokens fits, and so does a mechanism with a smaller state"
        raise ConfigurationError(
            f"{key}={rows}: {where} has {length:,} tokens, after which the state takes "
            f"{human_bytes(needs(rows, length))}, and this machine has {human_bytes(room)}; {remedy}."
        )

    def _token_length(self, name: str) -> int:
        """Tokens of the longest sequence of a set that the network reads, the one it only predicts included."""
        length = self.task.token_length(name)
        return length if self.evaluation.segment is None else min(length, self.evaluation.segment + 1)

    def _check_encoding(self, encoding: PositionEncoding, lengths: dict[str, int], trained: bool) -> None:
        name = self.config["position"]["_target_"].split(".")[-2]
        for evaluation_set, length in lengths.items():
            limit = encoding.max_length
            # the last token of an example is only ever predicted, so a table of L rows serves strings of L + 1 tokens
            if limit is not None and length - 1 > limit:
                short = [s for s, n in lengths.items() if n - 1 <= limit and s != TRAIN]
                where = "training" if evaluation_set == TRAIN else f"evaluation set {evaluation_set}"
                remedy = f"set position.max_length={length - 1}"
                if evaluation_set != TRAIN and short:
                    remedy += f" or evaluation.sets=[{','.join(short)}]"
                if trained:
                    remedy = "a trained network gets no more of them; score it on sets of at most "
                    remedy += f"{limit + 1} tokens"
                raise ConfigurationError(
                    f"position={name} has position.max_length={limit} places, but {where} needs {length - 1}: "
                    f"{remedy}."
                )
        rows = getattr(encoding, "p_max", None)
        if rows is not None and rows < self.task.positions_needed and not getattr(encoding, "undersized", False):
            task = self.config["task"]["_target_"].split(".")[-2]
            raise ConfigurationError(
                f"position.p_max={rows} is too small for task={task}: a solution counts up to "
                f"{self.task.positions_needed - 1}; the smallest that can hold it is "
                f"position.p_max={self.task.positions_needed} (position.undersized=true to study the failure)."
            )


def cost_of(experiment: Experiment) -> Cost:
    """What one batch of the longest training rows costs, from shapes alone."""
    settings = experiment.trainer
    return estimate(
        experiment.make_model,
        (settings.batch_size, experiment.dataset.longest),
        landmarks=experiment.dataset.insertion is not None,
        activation_dtype=torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32,
    )


def folder_of(experiment: Experiment, parent: Path | None = None) -> RunFolder:
    """The run's folder in ``parent``: the one that already holds what is computed here, or a new name.

    Raises:
        ConfigurationError: if the experiment's name, perhaps from somebody else's config, leaves the outputs.
    """
    if parent is None:
        parent = experiment.outputs / experiment.name
        if not parent.resolve().is_relative_to(experiment.outputs.resolve()):
            raise ConfigurationError(
                f"experiment={experiment.name} is a path out of outputs={experiment.outputs}; the closest name within "
                f"it is experiment={Path(experiment.name).name}."
            )
    same = sorted(parent.glob(f"*-{experiment.identity}"))
    return RunFolder(same[0] if same else parent / experiment.folder_name)


def described(experiment: Experiment) -> dict[str, Any]:
    """What a record says of a run before it has begun."""
    task = experiment.task
    return {
        "seed": experiment.seed,
        "experiment": experiment.name,
        "task/headline": task.headline,
        **{f"chance/{metric}": value for metric, value in task.chance.items()},
        # thousands of records are compared by their configs, and config.yaml takes ten times as long to read
        **{f"config/{key}": value for key, value in dotted(experiment.config).items()},
    }


def _encodings(model: nn.Module) -> list[PositionEncoding]:
    return [module for module in model.modules() if isinstance(module, PositionEncoding)]
