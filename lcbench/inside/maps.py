"""``lcbench show RUN --maps``: what each layer and head looks at in one example, and what CoPE counts.

Left in the run's folder:

    maps.json              for pages: the example's tokens and, of some of its queries, the numbers (below)
    maps/<set>-<n>.npz     every number: weights, gates, positions [layers, heads, queries, keys], tokens [queries]
    maps/<set>-<n>.svg     the same as a figure, and as .png

maps.json is that of the example shown last::

    {"run": ..., "step": ..., "set": ..., "example": 0, "figure": "maps/sparse-0.svg", "tokens": ["w", "0", ...],
     "scored": [false, true, ...], "queries": [14, 30],
     "layers": [[{"weights": [[...], [...]], "gates": ..., "positions": ...}, ...heads], ...layers]}

``queries`` are the places of the queries it has, scored ones where there are any; of each, the numbers for the keys up
to itself, in three digits. ``gates`` and ``positions`` are there where the encoding counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lcbench.attention.base import Attention, Context, Looks
from lcbench.engine.tally import autocast, facts_of
from lcbench.errors import ConfigurationError
from lcbench.inside.figure import figure, marked
from lcbench.inside.reading import Example
from lcbench.logger.base import RunFacts
from lcbench.model.base import Model
from lcbench.model.decoder import Decoder
from lcbench.results.record import write_text, written_whole

#: tokens of the longest example whose maps are made
LONGEST = 1024
#: numbers in maps.json, about
SMALL = 40_000


@dataclass(frozen=True)
class Maps:
    """What layers look at in one example.

    Args:
        tokens: the example's, as they are written.
        scored: where an answer is asked for.
        kinds: ``weights`` and, where the encoding counts, ``gates`` and ``positions``: each ``[layers, heads, time,
            time]``, float32; of layers that count nothing, gates and positions are 0.
    """

    tokens: list[str]
    scored: list[bool]
    kinds: dict[str, NDArray[np.float32]]


def looks_of(model: Model, example: Example) -> list[Looks]:
    """What every layer looks at while the network reads the example whole.

    Raises:
        ConfigurationError: if the network or a layer has no such map, or the example is too long for one.
    """
    if not isinstance(model, Decoder):
        raise ConfigurationError(
            f"--maps: a {type(model).__name__} has no layers of attention that read an example at once; the closest "
            "that has is model=decoder."
        )
    time = example.batch.tokens.shape[1]
    if time > LONGEST:
        raise ConfigurationError(
            f"--maps: example {example.number} of {example.evaluation_set} has {time:,} tokens, and maps are made of "
            f"at most {LONGEST:,}; the closest is a shorter set, with --set."
        )
    read: list[tuple[torch.Tensor, Context]] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        read.append(arguments[:2])

    device = example.experiment.trainer.device
    batch = example.batch.to(device)
    handles = [attention.register_forward_pre_hook(note) for attention in model.attentions]
    with torch.inference_mode(), autocast(device, example.experiment.trainer.precision):
        try:
            model(batch.tokens, facts_of(batch))
        finally:
            for handle in handles:
                handle.remove()
        return [_looks(attention, *seen) for attention, seen in zip(model.attentions, read, strict=True)]


def _looks(attention: Attention, x: torch.Tensor, context: Context) -> Looks:
    try:
        return attention.looks(x, context)
    except ConfigurationError as error:
        raise ConfigurationError(f"--maps: {error}") from None


def maps_of(example: Example) -> Maps:
    """The maps of an example; see ``looks_of`` for what has none."""
    model = example.trained.model.to(example.experiment.trainer.device)
    found = looks_of(model, example)
    kinds = {"weights": np.stack([looks.weights[0].float().cpu().numpy() for looks in found])}
    if any(looks.counts is not None for looks in found):
        for name in ("gates", "positions"):
            kinds[name] = np.stack(
                [
                    np.zeros_like(kinds["weights"][0])
                    if looks.counts is None
                    else getattr(looks.counts, name)[0].float().cpu().numpy()
                    for looks in found
                ]
            )
    vocabulary, batch = example.experiment.task.vocabulary, example.batch
    tokens = [vocabulary[token] for token in batch.tokens[0].tolist()]
    return Maps(tokens, batch.scored[0].tolist(), kinds)


def write_maps(example: Example) -> tuple[list[Path], str | None]:
    """Write the maps of an example into its run's folder, and hand the figure to the run's logger.

    Returns:
        The files, and what there is to say beside.
    """
    maps = maps_of(example)
    folder = example.folder.path / "maps"
    arrays = folder / f"{example.name}.npz"
    with written_whole(arrays) as file:
        np.savez_compressed(file, tokens=np.array(maps.tokens), **maps.kinds)  # type: ignore[arg-type]
    pictures = [folder / f"{example.name}.{kind}" for kind in ("svg", "png")]
    run = example.folder.path.resolve().name
    said = None
    try:
        subtitle = f"{example.evaluation_set}, example {example.number}; after {example.trained.step:,} updates"
        subtitle += "; grey is hidden" + (
            "; red marks queries whose next token is scored" if marked(maps.scored) else ""
        )
        figure(maps.tokens, maps.scored, maps.kinds, subtitle, pictures)
    except ConfigurationError as error:
        pictures, said = [], str(error)
    record = {
        "run": run,
        "step": example.trained.step,
        "set": example.evaluation_set,
        "example": example.number,
        "figure": f"maps/{pictures[0].name}" if pictures else None,
        **summary(maps),
    }
    data = example.folder.path / "maps.json"
    write_text(data, json.dumps(record, separators=(",", ":")) + "\n")
    if pictures:
        config = example.experiment.config
        name = f"{run} maps {example.name}"
        facts = RunFacts(
            folder, config, example.experiment.name, name, list(config["tags"]), "maps", example.folder.path
        )
        said = example.experiment.logger.log_figures(facts, {f"maps/{example.name}": pictures[0]})
    return [*pictures, arrays, data], said


def summary(maps: Maps) -> dict[str, Any]:
    """What pages show of maps: some queries."""
    time = len(maps.tokens)
    asked = [place for place, scored in enumerate(maps.scored) if scored] or list(range(time))
    layers, heads = maps.kinds["weights"].shape[:2]
    most = max(1, SMALL // (layers * heads * len(maps.kinds) * time))
    # evenly, the last included
    chosen = (
        sorted({asked[-1 - len(asked) * number // most] for number in range(most)}) if most < len(asked) else asked
    )

    def rows(values: NDArray[np.float32]) -> list[list[float]]:
        return [[_short(value) for value in values[query, : query + 1].tolist()] for query in chosen]

    found = [
        [{kind: rows(values[layer, head]) for kind, values in maps.kinds.items()} for head in range(heads)]
        for layer in range(layers)
    ]
    return {"tokens": maps.tokens, "scored": maps.scored, "queries": chosen, "layers": found}


def _short(value: float) -> float:
    rounded = float(f"{value:.3g}") if value >= 0.001 else round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
