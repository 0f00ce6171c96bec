"""The backward pass of attention in blocks is linear in length."""

from collections import Counter

import pytest
import torch

import lcbench
from lcbench.attention.base import Context


@pytest.mark.parametrize(("name", "options"), [("sliding_window", {"window": 256}), ("infini", {"segment": 256})])
def test_no_block_is_a_slice_whose_backward_fills_the_whole_length(name, options):
    layer = lcbench.build_attention(name, d_model=8, n_heads=2, position="rope", **options)
    x = torch.randn(1, 1536, 8, requires_grad=True)
    waiting, seen, kinds = [layer(x, Context(torch.arange(1536)[None])).y.grad_fn], set(), Counter()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            kinds[node.name()] += 1
            waiting += [before for before, _ in node.next_functions]
    assert kinds["ScaledDotProductFlashAttentionForCpuBackward0"] == 6
    assert kinds["SliceBackward0"] < 6, kinds
