"""The figure of maps: a panel for each layer, head and kind of number, queries downwards and keys to the right."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcbench.inside.document import visible
from lcbench.results.pictures import altair, save

#: from 0 to the most, in equal steps; what a query does not see is grey
COLOURS = {
    "weights": ((255, 255, 255), (107, 174, 214), (8, 48, 107)),
    "gates": ((255, 255, 255), (116, 196, 118), (0, 68, 27)),
    "positions": ((255, 255, 255), (253, 141, 60), (127, 39, 4)),
}
HIDDEN = (228, 229, 232)
WORDS = {"weights": "attention", "gates": "gates", "positions": "contextual positions"}
#: tokens up to which their names stand at the axes
NAMED = 32
MARK = "#D62728"


def figure(
    tokens: Sequence[str],
    scored: Sequence[bool],
    kinds: Mapping[str, NDArray[np.float32]],
    subtitle: str,
    paths: Sequence[Path],
) -> None:
    """Write the figure, as SVG or PNG by each path's ending.

    Args:
        tokens: of the example.
        scored: queries that get a mark, where an answer is asked for.
        kinds: arrays ``[layers, heads, time, time]``, a row of panels for each of a layer's.
        subtitle: what it is of.
        paths: where to.

    Raises:
        ConfigurationError: if the packages that draw it are not installed.
    """
    alt = altair("figure")
    layers, heads = kinds["weights"].shape[:2]
    size = 240 if heads <= 4 else 150
    rows = []
    for layer in range(layers):
        for kind, values in kinds.items():
            if kind != "weights" and not values[layer].any():
                continue
            most = 1.0 if kind == "gates" else float(values[layer].max()) or 1.0
            panels = [
                _panel(
                    alt, values[layer, head], kind, most, f"layer {layer + 1}, head {head + 1}", tokens, scored, size
                )
                for head in range(heads)
            ]
            rows.append(alt.hconcat(*panels, _scale(alt, kind, most, size), spacing=16))
    chart = (
        alt.vconcat(*rows, spacing=20)
        .properties(title=alt.TitleParams("What each head looks at", subtitle=subtitle, anchor="start", fontSize=16))
        .configure(background="white")
        .configure_axis(labelFontSize=9, titleFontSize=11, grid=False)
        .configure_title(fontSize=12)
    )
    save(chart, paths)


def marked(scored: Sequence[bool]) -> list[int]:
    """The queries that get a mark: the scored ones; none where all are, since marks would say nothing."""
    return [] if all(scored) else [place for place, is_scored in enumerate(scored) if is_scored]


def _panel(
    alt: Any,
    values: NDArray[np.float32],
    kind: str,
    most: float,
    title: str,
    tokens: Sequence[str],
    scored: Sequence[bool],
    size: int,
) -> Any:
    """One head's ``[time, time]``."""
    time = len(values)
    hidden = np.arange(time)[None] > np.arange(time)[:, None]
    picture = _picture(alt, _coloured(values / most, kind, hidden), size, size)
    axis = _axis(alt, tokens)
    x = alt.X("key:Q", scale=alt.Scale(domain=[0, time], nice=False), title="key", axis=axis)
    y = alt.Y("query:Q", scale=alt.Scale(domain=[time, 0], nice=False), title="query", axis=axis)
    marks = [{"key": time, "query": place + 0.5} for place in marked(scored)]
    points = alt.Chart(alt.Data(values=marks or [{"key": 0, "query": 0}])).mark_point(
        shape="triangle-left", size=24, filled=True, color=MARK, opacity=1.0 if marks else 0.0, xOffset=6
    )
    return (picture + points.encode(x=x, y=y)).properties(
        width=size, height=size, title=f"{title}: {WORDS[kind]}" if kind != "weights" else title
    )


def _scale(alt: Any, kind: str, most: float, size: int) -> Any:
    """What colours stand for."""
    steps = np.linspace(1, 0, 64, dtype=np.float32)[:, None]
    picture = _picture(alt, _coloured(steps, kind, np.zeros_like(steps, bool)), 12, size)
    y = alt.Y(
        "value:Q", scale=alt.Scale(domain=[0, most], nice=False), title=WORDS[kind], axis=alt.Axis(orient="right")
    )
    points = alt.Chart(alt.Data(values=[{"value": 0}])).mark_point(opacity=0).encode(y=y)
    return (picture + points).properties(width=12, height=size)


def _axis(alt: Any, tokens: Sequence[str]) -> Any:
    if len(tokens) > NAMED:
        return alt.Axis(tickCount=6)
    names = json.dumps([visible(token).strip()[:6] or "\N{OPEN BOX}" for token in tokens])
    places = [place + 0.5 for place in range(len(tokens))]
    return alt.Axis(
        values=places, labelExpr=f"{names}[floor(datum.value)]", ticks=False, labelOverlap=False, labelFontSize=8
    )


def _picture(alt: Any, colours: NDArray[np.uint8], width: int, height: int) -> Any:
    """An image that fills a panel."""
    # pixels would be smoothed where the image is stretched much
    times = max(1, -(-2 * max(width, height) // max(colours.shape[:2])))
    address = "data:image/png;base64," + base64.b64encode(png(colours.repeat(times, 0).repeat(times, 1))).decode()
    return (
        alt.Chart(alt.Data(values=[{"url": address}]))
        .mark_image(aspect=False, width=width, height=height, align="left", baseline="top")
        .encode(url="url:N", x=alt.XValue(0), y=alt.YValue(0))
    )


def _coloured(share: NDArray[np.float32], kind: str, hidden: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """RGB ``[rows, columns, 3]`` of shares of the most ``[rows, columns]``."""
    stops = np.array(COLOURS[kind], float)
    at = np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(share, at, stops[:, channel]) for channel in range(3)], -1)
    return np.where(hidden[..., None], HIDDEN, colours).round().astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of ``[rows, columns, 3]``: no filter, one block (PNG specification, third edition, 2025)."""
    rows, columns, _ = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], 1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
