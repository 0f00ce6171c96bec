"""What tests of encodings share: small tensors, attention under an encoding, and the same by an oracle's rows."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.scoring import attend
from lcbench.position.absolute_learned import AbsoluteLearned
from lcbench.position.absolute_sinusoidal import AbsoluteSinusoidal
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.cope import Cope
from lcbench.position.cope_relative import CopeRelative
from lcbench.position.cope_rope import CopeRope
from lcbench.position.dynamic_ntk import DynamicNtk
from lcbench.position.none import NoPosition
from lcbench.position.ntk import Ntk
from lcbench.position.pi import PositionInterpolation
from lcbench.position.relative import Relative
from lcbench.position.relative_capped import RelativeCapped
from lcbench.position.rope import Rope
from lcbench.position.t5 import T5
from lcbench.position.transformer_xl import TransformerXL
from lcbench.position.yarn import Yarn

SHAPE = LayerShape(d_model=16, n_heads=2)

#: name in conf/, class, options: every encoding, with each of its options set at least once
CASES: list[tuple[str, type[PositionEncoding], dict[str, Any]]] = [
    ("none", NoPosition, {}),
    ("absolute_learned", AbsoluteLearned, {"max_length": 40}),
    ("absolute_sinusoidal", AbsoluteSinusoidal, {}),
    ("relative", Relative, {"context": 5}),
    ("relative_capped", RelativeCapped, {"context": 5}),
    ("transformer_xl", TransformerXL, {}),
    ("transformer_xl", TransformerXL, {"clamp_length": 3}),
    ("t5", T5, {"buckets": 8, "max_distance": 7}),
    ("t5", T5, {"two_sided": True}),
    ("alibi", Alibi, {}),
    ("rope", Rope, {}),
    ("rope", Rope, {"pairing": "halves", "base": 100.0, "channels": 4}),
    ("pi", PositionInterpolation, {"scale": 3.0, "channels": 6}),
    ("ntk", Ntk, {"scale": 3.0, "pairing": "halves"}),
    ("dynamic_ntk", DynamicNtk, {"context": 4}),
    ("dynamic_ntk", DynamicNtk, {"context": 4, "factor": 2.0, "channels": 6, "pairing": "halves"}),
    ("yarn", Yarn, {"context": 64, "scale": 2.0, "base": 20.0}),
    ("yarn", Yarn, {"context": 300, "scale": 2.0, "ramp": "released", "base": 20.0, "pairing": "halves"}),
    ("cope", Cope, {"context": 20}),
    ("cope", Cope, {"p_max": 3, "gates": "separate_keys", "scaled_gates": False}),
    ("cope", Cope, {"p_max": 4, "gates": "values", "scaled_bias": False}),
    ("cope_rope", CopeRope, {"p_max": 4}),
    ("cope_rope", CopeRope, {"p_max": 4, "gates": "separate_keys", "pairing": "halves", "channels": 4}),
    ("cope_relative", CopeRelative, {"context": 5}),
    ("cope_relative", CopeRelative, {"context": 5, "p_max": 3, "gates": "values"}),
    ("cope_relative", CopeRelative, {"context": 5, "every": 2}),
]
IDS = ["-".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, _, options in CASES]


def build(encoding: type[PositionEncoding], options: dict[str, Any], shape: LayerShape = SHAPE) -> Any:
    """The encoding in float64 and in evaluation mode, with every parameter drawn anew: a zero would hide errors."""
    made = encoding(shape, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def draw(time: int, *, batch: int = 2, seed: int = 0, shape: LayerShape = SHAPE) -> tuple[Tensor, ...]:
    """``q, k, v`` ``[batch, heads, time, head_dim]`` and ``x`` ``[batch, time, d_model]``, float64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, shape.n_heads, time, shape.head_dim)
    sizes = [size, size, size, (batch, time, shape.d_model)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in sizes)


def consecutive(time: int, *, batch: int = 2, start: int = 0) -> Context:
    return Context(torch.arange(start, start + time).expand(batch, time))


def attention(
    encoding: PositionEncoding,
    tensors: Sequence[Tensor],
    context: Context,
    *,
    last: int | None = None,
    **options: Any,
) -> Tensor:
    """Outputs ``[batch, heads, time, head_dim]``; of the ``last`` queries alone, if told."""
    q, k, v, x = tensors
    keys = KeyValues.of(k, v, encoding.key_features(x, k, v), context)
    if last is not None:
        q, context = q[:, :, -last:], context.map(lambda tensor: tensor[:, -last:])
    return attend(q, context, keys, encoding, **options)


def by_rows(
    name: str, encoding: PositionEncoding, options: dict[str, Any], tensors: Sequence[Tensor], positions: Tensor
) -> Tensor:
    """The same, from the oracle's definition of a row of scores; ``positions`` ``[batch, time]``."""
    oracle = importlib.import_module(f"tests.oracles.{name}")
    known = inspect.signature(type(encoding)).parameters.items()
    complete = {key: parameter.default for key, parameter in known if key != "shape"} | options
    weights = dict(encoding.named_parameters())
    q, k, v, x = tensors
    outputs = torch.zeros_like(q)
    batch, n_heads, time, _ = q.shape
    for b in range(batch):
        for head in range(n_heads):
            own = (q[b, head], k[b, head], v[b, head], x[b])
            rows = [
                oracle.row(i, *own, positions[b], weights, head=head, n_heads=n_heads, **complete) for i in range(time)
            ]
            o = [scores.softmax(0) @ v[b, head, : i + 1] for i, scores in enumerate(rows)]
            outputs = outputs.index_put((torch.tensor(b), torch.tensor(head)), torch.stack(o))
    return outputs


def unplaced(context: Context) -> Context:
    """The same without the promise that distances follow from places."""
    return replace(context, consecutive=False)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference."""
    return float((a - b).detach().abs().max())
