"""``lcbench generate RUN``: a trained network goes on with a text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lcbench.engine.data import refuse_other_data
from lcbench.engine.experiment import Experiment
from lcbench.engine.generation import CHUNK, Reader, longest_text
from lcbench.engine.tally import autocast
from lcbench.errors import ConfigurationError
from lcbench.inside.sampling import Sampler
from lcbench.results.record import RunFolder
from lcbench.trained import Trained, load_scored

#: tokens that are written unless told otherwise
TOKENS = 200


def generate(
    run: str | Path | Trained,
    prompt: str,
    *,
    tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    chunk: int = CHUNK,
    trust: bool = False,
) -> Iterator[str]:
    """What the network of a run writes after ``prompt``, in pieces as they are drawn, of whole characters.

    The prompt is read ``chunk`` tokens at a time with the state carried on, so that where the state is constant, so is
    the memory. The same seed gives the same text, whatever the pieces.

    Args:
        run: a run's folder, or what ``lcbench.load`` gave.
        prompt: text for the task's tokenizer; symbols of its vocabulary, parted by spaces, where it has none.
        tokens: how many are written; None: 200, or as many as a table of positions has places for.
        temperature: 0 writes the likeliest token.
        top_p: draw from the smallest set of tokens that has this probability.
        seed: of what is drawn.
        chunk: tokens of the prompt that are read at a time.
        trust: see ``lcbench.load``.

    Raises:
        ConfigurationError: at once, for anything that cannot be: no run, no weights, a symbol that there is not, a
            prompt without tokens or longer than a table of positions, an option outside its range.
    """
    sampler = Sampler(temperature, top_p, seed)
    if tokens is not None and tokens < 1:
        raise ConfigurationError(f"--tokens {tokens}: must be positive; the closest is 1.")
    trained = run if isinstance(run, Trained) else load_scored(Path(run), trust)
    experiment = trained.experiment
    if not isinstance(run, Trained):
        folder = RunFolder(Path(run))
        # a tokenizer that has learned from other text since would write another language; the text itself is not read
        known = (folder.read_result() if folder.result.exists() else {}).get("data/tokenizer")
        if known is not None:
            now = {"data/tokenizer": getattr(experiment.task.spelling, "identity", None)}
            refuse_other_data({"data/tokenizer": known}, now, "train another network")
    ids = experiment.task.spelling.encode(prompt)
    if not len(ids):
        raise ConfigurationError("the prompt has no token; the shortest prompt is one.")
    device = experiment.trainer.device
    reader = Reader(trained.model.to(device), experiment.objective, experiment.task.insertion, device, chunk)
    return _continued(reader, experiment, ids, _room(reader, len(ids), tokens), sampler)


def _continued(
    reader: Reader, experiment: Experiment, ids: np.ndarray, tokens: int, sampler: Sampler
) -> Iterator[str]:
    spelling = experiment.task.spelling
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    piece = torch.from_numpy(ids)[None]
    for number in range(tokens):
        # not around the yield: what the caller does meanwhile is none of this
        with torch.inference_mode(), autocast(reader.device, experiment.trainer.precision):
            token = sampler.draw(reader.read(piece, None)[0])
        text = decoder.decode(spelling.to_bytes(np.array([token])), final=number == tokens - 1)
        if text:
            yield text
        piece = torch.tensor([[token]])


def _room(reader: Reader, prompt: int, tokens: int | None) -> int:
    """How many tokens are written after a prompt of so many.

    Raises:
        ConfigurationError: if a table of positions has no places for them.
    """
    limit = longest_text(reader.model)
    wanted = TOKENS if tokens is None else tokens
    if limit is None:
        return wanted

    def needed(written: int) -> int:
        # the last token written is not read
        return int(reader.positions(torch.tensor(prompt + written - 1)))

    if needed(1) > limit:
        raise ConfigurationError(
            f"the prompt takes {needed(1):,} positions, and the network's table has position.max_length={limit:,}; "
            "the closest that works is its end alone, or a network with position=rope, alibi or cope."
        )
    most = next(written for written in range(wanted, 0, -1) if needed(written) <= limit)
    if tokens is not None and most < tokens:
        raise ConfigurationError(
            f"--tokens {tokens}: after a prompt of {prompt:,} tokens the network's table of position.max_length="
            f"{limit:,} has places for fewer; the closest is --tokens {most}."
        )
    return most
