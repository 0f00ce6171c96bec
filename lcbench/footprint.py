"""`lcbench cost --memory`: what every mechanism carries from one call to the next, by formula and measured.

The table is that of Munkhdalai, Faruqui, Gopal 2024 (arXiv 2404.07143, table 1) for the mechanisms here, one layer and
one sequence: the formula counts numbers, the bytes beside it are those of the formula that the layer itself gives
(``state_bytes``, positions and facts included), and those of a real state after reading so many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from lcbench.attention.base import Attention, Context, State
from lcbench.composition import compose
from lcbench.configs import choices_of, config_directory
from lcbench.construction import construct
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.results.table import human_bytes

#: tokens fed in one call
CHUNK = 1024
#: lengths that a state is measured at
LENGTHS = (1_000, 10_000)


@dataclass(frozen=True)
class Footprint:
    """One layer's state.

    Args:
        attention: the mechanism's config name.
        formula: numbers carried, in the paper's symbols.
        formula_bytes: by length, what ``state_bytes`` says.
        measured_bytes: by length, what the state holds.
    """

    attention: str
    formula: str
    formula_bytes: dict[int, int]
    measured_bytes: dict[int, int]


def footprints(words: Sequence[str], overlays: Sequence[Path] = ()) -> list[Footprint]:
    """The footprint of every mechanism, or of those that an override ``attention=a,b`` names.

    Args:
        words: overrides; options of mechanisms go to those that have them.
        overlays: folders of the user's config files.

    Raises:
        ConfigurationError: for a mistake in the overrides.
    """
    named = [word.partition("=")[2].split(",") for word in words if word.startswith("attention=")]
    rest = [word for word in words if not word.startswith("attention=")]
    if any(word.startswith("attention.") for word in rest) and (not named or len(named[-1]) != 1):
        raise ConfigurationError("attention.*: name the one mechanism whose option that is, such as attention=infini.")
    names = named[-1] if named else list(choices_of("attention", [config_directory(), *overlays]))
    return [_footprint(name, rest, overlays) for name in names]


def _footprint(name: str, words: Sequence[str], overlays: Sequence[Path]) -> Footprint:
    if not any(word.startswith("position=") for word in words):
        words = ["position=none", *words]
    config = compose([f"attention={name}", *words], overlays).config
    model = config["model"]
    # a mechanism that remembers in one layer only remembers in the only one
    shape = LayerShape(model["d_model"], model["n_heads"])
    layer: Attention = construct(config["attention"], shape, construct(config["position"], shape)).eval()
    lengths = LENGTHS
    return Footprint(
        attention=name,
        formula=layer.footprint,
        formula_bytes={length: layer.state_bytes(1, length, torch.float32) for length in lengths},
        measured_bytes=dict(zip(lengths, measured(layer, lengths), strict=True)),
    )


@torch.no_grad()
def measured(layer: Attention, lengths: Sequence[int]) -> list[int]:
    """Bytes of the state after each of ``lengths`` tokens, in ascending order."""
    found: list[int] = []
    state: State | None = None
    read = 0
    for length in lengths:
        while read < length:
            size = min(CHUNK, length - read)
            positions = torch.arange(read, read + size)[None]
            x = torch.randn(1, size, layer.shape.d_model)
            state = layer(x, Context(positions=positions), state).state
            read += size
        found.append(0 if state is None else state.nbytes)
    return found


def footprint_table(found: Sequence[Footprint]) -> Table:
    """A row a mechanism."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("attention", no_wrap=True)
    table.add_column("numbers carried by a layer")
    for length in LENGTHS:
        table.add_column(f"formula, {length:,} tokens", justify="right")
        table.add_column("measured", justify="right")
    for row in found:
        cells = []
        for length in LENGTHS:
            cells += [human_bytes(row.formula_bytes[length]), human_bytes(row.measured_bytes[length])]
        table.add_row(row.attention, row.formula, *cells)
    return table
