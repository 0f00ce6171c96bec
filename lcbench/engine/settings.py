"""How a run is trained and scored: the options of conf/trainer and conf/evaluation."""

from __future__ import annotations

from typing import Literal

import torch

from lcbench.errors import ConfigurationError
from lcbench.units import Length


def _positive(group: str, **values: int | float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigurationError(f"{group}.{name}={value}: must be positive.")


class Trainer:
    """How long, how large and how precise.

    Args:
        max_steps: updates of the weights.
        batch_size: examples in one batch.
        accumulate: batches whose gradients are averaged into one update.
        precision: numbers of the forward pass; weights and optimizer stay in 32 bits.
        device: auto takes an accelerator if there is one.
        threads: CPU threads of this run; null leaves torch's choice.
        compile: torch.compile the network (worth its minute on an accelerator, not on a CPU).
        bptt_segments: segments of the mechanism through which gradients flow back; all: through the whole example. The
            state is cut off from its past after every so many segments.
        recompute_segments: keep the activations of one segment at a time, and compute the others again in the backward
            pass: memory for time.
        deterministic: refuse operations whose result varies from run to run.
        log_every: steps between two rows of metrics.csv.
        evaluate_every: steps between two light evaluations on the way; 0 for none.
        checkpoint_every: steps between two checkpoints; one is always written at the end.
        stop_at_error: stop early once two light evaluations in a row have a headline error at or below this.
        progress: show progress live.

    Raises:
        ConfigurationError: for a value outside its range, or a device this machine lacks.
    """

    def __init__(
        self,
        *,
        max_steps: int = 600,
        batch_size: int = 64,
        accumulate: int = 1,
        precision: Literal["32", "bf16-mixed"] = "32",
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        threads: int | None = None,
        compile: bool = False,
        bptt_segments: int | Literal["all"] = "all",
        recompute_segments: bool = False,
        deterministic: bool = False,
        log_every: int = 10,
        evaluate_every: int = 100,
        checkpoint_every: int = 500,
        stop_at_error: float | None = None,
        progress: bool = True,
    ) -> None:
        _positive(
            "trainer",
            max_steps=max_steps,
            batch_size=batch_size,
            accumulate=accumulate,
            threads=threads,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
        )
        if isinstance(bptt_segments, int) and bptt_segments < 1:
            raise ConfigurationError(f"trainer.bptt_segments={bptt_segments}: must be positive, or all.")
        if evaluate_every < 0:
            raise ConfigurationError(f"trainer.evaluate_every={evaluate_every}: must be 0 (never) or positive.")
        if stop_at_error is not None and not (0 <= stop_at_error < 1 and evaluate_every):
            raise ConfigurationError(
                f"trainer.stop_at_error={stop_at_error}: must be from 0 to 1, with trainer.evaluate_every above 0."
            )
        self.max_steps, self.batch_size, self.accumulate = max_steps, batch_size, accumulate
        self.precision, self.threads = precision, threads
        self.device = _available(device)
        self.compile, self.deterministic = compile, deterministic
        self.bptt_segments, self.recompute_segments = bptt_segments, recompute_segments
        self.log_every, self.evaluate_every, self.checkpoint_every = log_every, evaluate_every, checkpoint_every
        self.stop_at_error, self.progress = stop_at_error, progress

    def evaluates_light(self, step: int) -> bool:
        """Whether there is a light evaluation after update ``step``, from 1."""
        return bool(self.evaluate_every) and (step % self.evaluate_every == 0 or step >= self.max_steps)

    def writes_row(self, step: int) -> bool:
        """Whether the curves get a row after update ``step``, from 1."""
        return self.evaluates_light(step) or step % self.log_every == 0 or step >= self.max_steps


def _available(device: str) -> str:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if not present[device]:
        there = [name for name, here in present.items() if here]
        raise ConfigurationError(f"trainer.device={device}: this machine has none; it has {', '.join(there)}.")
    return device


class Evaluation:
    """What a model is scored on.

    Args:
        sets: names of evaluation sets; null takes the task's own list.
        lengths: further lengths, in tokens, at which every set is scored as well.
        examples: examples of each set.
        light_examples: examples of the first set in a light evaluation while training.
        batch_size: examples scored at once; results do not depend on it.
        streaming: feed examples a piece at a time and hand the state on: any length at the memory of the mechanism's
            state. Scores are the same.
        chunk: tokens of a row that are fed at a time when streaming.
        segment: tokens that the network reads at once, each segment by itself; only the memory of the objective goes
            from one to the next. For a network that was trained on such segments. Null: whole examples.
        seed: of the evaluation sets; the same for every training seed, so that runs are scored on the same examples.
        checkpoint: the weights that are scored: last, or best (lowest error in a light evaluation).

    Raises:
        ConfigurationError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        sets: list[str] | None = None,
        lengths: list[Length] = [],  # noqa: B006 the signature is the schema
        examples: Length = 1000,
        light_examples: Length = 256,
        batch_size: int = 64,
        streaming: bool = False,
        chunk: Length = 4096,
        segment: Length | None = None,
        seed: int = 0,
        checkpoint: Literal["last", "best"] = "last",
    ) -> None:
        _positive(
            "evaluation",
            examples=examples,
            light_examples=light_examples,
            batch_size=batch_size,
            chunk=chunk,
            segment=segment,
        )
        if sets == []:
            raise ConfigurationError("evaluation.sets=[]: name at least one set, or null for the task's own list.")
        self.sets, self.lengths, self.examples = sets, lengths, examples
        self.light_examples, self.batch_size, self.seed = light_examples, batch_size, seed
        self.streaming, self.chunk, self.checkpoint = streaming, chunk, checkpoint
        self.segment = segment
