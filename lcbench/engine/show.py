"""`lcbench show`: the resolved config and what the run would take, worked out from shapes alone."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from lcbench.engine.experiment import Experiment, cost_of, folder_of
from lcbench.results.table import human_bytes
from lcbench.task.base import TRAIN


def show(console: Console, experiment: Experiment) -> None:
    """Print the config, then parameters, tokens, operations and memory."""
    console.print(yaml.safe_dump(experiment.config, sort_keys=False), markup=False, soft_wrap=True)
    settings, task = experiment.trainer, experiment.task
    cost = cost_of(experiment)
    time = task.token_length(TRAIN) - 1
    steps = settings.max_steps
    tokens = steps * settings.accumulate * settings.batch_size * time
    rows = {
        "parameters": f"{cost.parameters:,}",
        "training tokens": f"{'up to ' if settings.stop_at_error is not None else ''}{tokens:,}"
        f" ({steps:,} steps x {settings.accumulate * settings.batch_size} examples x {time})",
        "training operations": f"{steps * settings.accumulate * cost.training_operations:.3g} FLOP",
        "memory of a training step": f"{human_bytes(cost.training_bytes)} = "
        f"{human_bytes(cost.weight_bytes + cost.gradient_bytes + cost.optimizer_bytes)} weights, gradients, optimizer"
        f" + {human_bytes(cost.activation_bytes)} activations",
        "state after an example": human_bytes(cost.state_bytes // cost.examples),
        "evaluation sets": ", ".join(experiment.evaluation_sets()),
        "run folder": str(folder_of(experiment).path),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for words, value in rows.items():
        table.add_row(words, value)
    console.print(table)
