"""The backward pass of attention in blocks is linear in length."""

from collections import Counter

import pytest
import torch

import lcbench
from lcbench.attention.base import Context


@pytest.mark.parametrize(
    ("name", "options", "node", "count"),
    [
        ("sliding_window", {"window": 256}, "_WindowsBackward", 1),
        ("infini", {"segment": 256}, "ScaledDotProductFlashAttentionForCpuBackward0", 6),
    ],
)
def test_no_block_is_a_slice_whose_backward_fills_the_whole_length(name, options, node, count):
    layer = lcbench.build_attention(name, d_model=8, n_heads=2, position="rope", **options)
    x = torch.randn(1, 1536, 8, requires_grad=True)
    waiting, seen, kinds = [layer(x, Context(torch.arange(1536)[None])).y.grad_fn], set(), Counter()
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.add(one)
            kinds[one.name()] += 1
            waiting += [before for before, _ in one.next_functions]
    assert kinds[node] == count
    assert kinds["SliceBackward0"] < 6, kinds
