"""The decoder, token by token in float64, from a model's weights by name.

Attention is full, causal and without positions, head by head. Nothing here comes from lcbench.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def logits(
    tokens: Tensor,
    weights: Weights,
    *,
    n_layers: int,
    n_heads: int,
    norm: str,
    norm_position: str,
    activation: str,
) -> Tensor:
    """Logits ``[time, vocabulary]`` of one sequence ``tokens`` ``[time]``."""
    weights = {name: value.double() for name, value in weights.items()}
    stream = [weights["embedding.weight"][int(token)] for token in tokens]
    sees = [list(range(i + 1)) for i in range(len(stream))]
    read = hidden(
        stream,
        weights,
        sees,
        n_layers=n_layers,
        n_heads=n_heads,
        norm=norm,
        norm_position=norm_position,
        activation=activation,
    )
    return torch.stack([weights["output.weight"] @ x for x in read])


def hidden(
    stream: list[Tensor],
    weights: Weights,
    sees: list[list[int]],
    *,
    n_layers: int,
    n_heads: int,
    norm: str,
    norm_position: str,
    activation: str,
) -> list[Tensor]:
    """What the output map reads of every vector of ``stream``; ``sees[i]`` says which ones vector i attends to."""
    for layer in range(n_layers):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        if norm_position == "pre":
            read = [normalise(x, own, "attention_norm", norm) for x in stream]
            stream = [x + y for x, y in zip(stream, attention(read, own, n_heads, sees), strict=True)]
            stream = [x + feed_forward(normalise(x, own, "feed_forward_norm", norm), own, activation) for x in stream]
        else:
            added = attention(stream, own, n_heads, sees)
            stream = [normalise(x + y, own, "attention_norm", norm) for x, y in zip(stream, added, strict=True)]
            stream = [normalise(x + feed_forward(x, own, activation), own, "feed_forward_norm", norm) for x in stream]
    if norm_position == "pre":
        stream = [normalise(x, weights, "final_norm", norm) for x in stream]
    return stream


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """``W x + b``, or ``W x`` where there is no b."""
    y = weights[f"{name}.weight"] @ x
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def attention(stream: list[Tensor], weights: Weights, n_heads: int, sees: list[list[int]]) -> list[Tensor]:
    """What every token takes from those that it sees."""
    outputs = []
    for i, x in enumerate(stream):
        q = linear(x, weights, "attention.q")
        head_dim = len(q) // n_heads
        heads = []
        for head in range(n_heads):
            own = slice(head * head_dim, (head + 1) * head_dim)
            keys = [linear(stream[j], weights, "attention.k")[own] for j in sees[i]]
            values = [linear(stream[j], weights, "attention.v")[own] for j in sees[i]]
            exponentials = [math.exp(float(q[own] @ k) / math.sqrt(head_dim)) for k in keys]
            total = sum(exponentials)
            heads.append(sum((e / total * v for e, v in zip(exponentials, values, strict=True)), torch.zeros(1)))
        outputs.append(linear(torch.cat(heads), weights, "attention.output"))
    return outputs


def feed_forward(x: Tensor, weights: Weights, activation: str) -> Tensor:
    """The feed-forward network of one token, number by number."""
    inner = linear(x, weights, "feed_forward.inner")
    if activation == "relu":
        inner = torch.tensor([max(0.0, float(z)) for z in inner], dtype=torch.float64)
    elif activation == "gelu":
        normal = [0.5 * (1 + math.erf(float(z) / math.sqrt(2))) for z in inner]
        inner = torch.tensor([float(z) * p for z, p in zip(inner, normal, strict=True)], dtype=torch.float64)
    else:
        gate = linear(x, weights, "feed_forward.gate")
        silu = [float(z) / (1 + math.exp(-float(z))) for z in gate]
        inner = torch.tensor([g * float(z) for g, z in zip(silu, inner, strict=True)], dtype=torch.float64)
    return linear(inner, weights, "feed_forward.output")


def normalise(x: Tensor, weights: Weights, name: str, norm: str) -> Tensor:
    """Layer norm or RMS norm of one token."""
    if norm == "layer":
        mean = sum(float(z) for z in x) / len(x)
        variance = sum((float(z) - mean) ** 2 for z in x) / len(x)
        y = (x - mean) / math.sqrt(variance + 1e-5)
    else:
        y = x / math.sqrt(sum(float(z) ** 2 for z in x) / len(x) + 1e-6)
    y = y * weights[f"{name}.weight"]
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y
