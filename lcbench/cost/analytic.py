"""What a model costs, worked out from shapes: nothing is computed, no weight is allocated.

The model is built and stepped with torch's fake tensors, which have shapes and no values, so this works for any
mechanism that reads no values, a user's own included, and takes the paths that a CPU takes. (On the meta device, fused
attention would fall back to the explicit form and regions without autocast would fail.)

Counted are the multiplications and additions of matrix products, convolutions and fused attention, as a step executes
them: what a backward pass recomputes counts again, elementwise work (norms, activations, CoPE's sums and gathers) does
not. torch counts a fused causal kernel as if it computed all pairs of query and key; kernels skip the blocks after the
diagonal, and the count here leaves out all hidden pairs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper

from lcbench.attention.base import Facts
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model


@dataclass(frozen=True)
class Cost:
    """The cost of one training step on one batch, and of the state that reading it leaves.

    Args:
        examples: sequences in the batch.
        parameters: trainable numbers, shared ones once.
        forward_operations: of the forward pass.
        training_operations: of the forward and the backward pass.
        weight_bytes: parameters and buffers.
        gradient_bytes: one number per parameter.
        optimizer_bytes: the optimizer's states.
        activation_bytes: what the forward pass keeps for the backward pass, each storage once, weights apart.
        state_bytes: the state after the batch.
    """

    examples: int
    parameters: int
    forward_operations: int
    training_operations: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    state_bytes: int

    @property
    def training_bytes(self) -> int:
        """What a training step holds between its forward and its backward pass, gradients included.

        Short-lived buffers inside operations come on top, and so does the process itself.
        """
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    make_model: Callable[[], Model],
    tokens_shape: tuple[int, int],
    *,
    landmarks: bool = False,
    activation_dtype: torch.dtype = torch.float32,
    optimizer_states: int = 2,
) -> Cost:
    """The cost of training a model on batches of one shape.

    A step's work is linear in the batch: it is counted for one example and for two.

    Args:
        make_model: builds the model.
        tokens_shape: batch and time.
        landmarks: whether there are any among the tokens; where, a mechanism that reads them must assume.
        activation_dtype: what autocast lets matrix products compute in, as in mixed precision.
        optimizer_states: numbers the optimizer keeps per parameter; 2 for Adam.

    Raises:
        ConfigurationError: if the model reads the value of a tensor.
    """
    batch, time = tokens_shape
    autocast = torch.autocast("cpu", activation_dtype, enabled=activation_dtype != torch.float32)
    with _shapes_alone(), autocast:
        model = make_model().train()
        one, two = (_step(model, torch.zeros(n, time, dtype=torch.int64), landmarks) for n in (1, 2))
    forward, training, activations = (a + (batch - 1) * (b - a) for a, b in zip(one, two, strict=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    trained_bytes = sum(p.numel() * p.element_size() for p in trained)
    return Cost(
        examples=batch,
        parameters=sum(p.numel() for p in trained),
        forward_operations=forward,
        training_operations=training,
        weight_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        gradient_bytes=trained_bytes,
        optimizer_bytes=optimizer_states * trained_bytes,
        activation_bytes=activations,
        state_bytes=model.state_bytes(batch, time, activation_dtype),
    )


@dataclass(frozen=True)
class Count:
    """What one piece of work takes.

    Args:
        operations: multiplications and additions.
        peak_bytes: the most held at once of what was made on the way: activations, gradients, and buffers between
            operations; not those inside one.
    """

    operations: int
    peak_bytes: int


def count(make: Callable[[], tuple[Callable[[], None], Iterable[Tensor]]]) -> Count:
    """Count some work without doing it.

    Args:
        make: prepares the work; returns what does it, and the tensors that were there before.

    Raises:
        ConfigurationError: if the work reads the value of a tensor.
    """
    with _shapes_alone():
        run, before = make()
        with _Counter(before) as counter:
            run()
    return Count(counter.operations, counter.most)


class _Counter(TorchDispatchMode):
    """Counts what is computed within it, as ``FlopCounterMode`` does but several times faster, and the bytes of the
    storages that are made, each until it is freed.

    Args:
        before: tensors whose bytes do not count.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        # kept, so that none is freed and its number given to another
        self._before = [tensor.untyped_storage() for tensor in before]
        self._known = {storage._cdata for storage in self._before}
        self._formulas = flop_registry | {op: shape_wrapper(formula) for op, formula in _FUSED_OPERATIONS.items()}
        self.operations = self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def saved_bytes(model: Model, run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of ``run`` and the bytes it keeps for a backward pass: each storage once, those of weights apart."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    # The storages are kept, so that none is freed and its number given to another.
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(storage.nbytes() for storage in storages.values())


def _step(model: Model, tokens: Tensor, landmarks: bool) -> tuple[int, int, int]:
    """Operations of the forward pass and of the whole step on ``tokens`` ``[batch, time]``, and bytes kept between."""

    facts = Facts(landmarks=torch.zeros_like(tokens, dtype=torch.bool)) if landmarks else None

    def loss() -> Tensor:
        output = model(tokens, facts)
        cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), tokens.flatten())
        return cross_entropy + sum(output.losses.values())

    counter = FlopCounterMode(display=False, custom_mapping=_FUSED_OPERATIONS)
    with counter:
        total, activations = saved_bytes(model, loss)
        forward = counter.get_total_flops()
        total.backward()
    return forward, counter.get_total_flops(), activations


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Within, tensors have shapes and no values.

    Raises:
        ConfigurationError: where a value is read.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _KnownSeeds():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise ConfigurationError(
            f"cost: the model reads values ({error}), so that its cost cannot be told from shapes."
        ) from error


class _KnownSeeds(TorchFunctionMode):
    """Makes single random integers known: a mechanism may draw a seed and read it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randint and () in (*args, kwargs.get("size")):
            return torch.tensor(0)
        return func(*args, **kwargs)


def _pairs(q_shape: torch.Size, k_shape: torch.Size, is_causal: bool) -> int:
    """Pairs of query and key that a fused kernel computes: ``[batch, heads, q_time, _]``, ``[.., k_time, _]``."""
    batch, heads, q_time, _ = q_shape
    k_time = k_shape[2]
    if not is_causal:
        return batch * heads * q_time * k_time
    # Causal kernels align the first query with the first key: query t sees min(t + 1, k_time) keys.
    seen = min(q_time, k_time)
    return batch * heads * (seen * (seen + 1) // 2 + (q_time - seen) * k_time)


def _fused_forward(q: Any, k: Any, v: Any, dropout_p: float = 0.0, is_causal: bool = False, **_: Any) -> int:
    """Scores and mixture: two products."""
    return 2 * 2 * _pairs(q, k, is_causal) * q[3]


def _fused_backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, logsumexp: Any, dropout_p: float, is_causal: bool, **_: Any
) -> int:
    """Scores again, and the gradients of mixture, values, queries and keys: five products."""
    return 5 * 2 * _pairs(q, k, is_causal) * q[3]


def _lstm_forward(x: Any, input_weight: Any, state_weight: Any, *_: Any, **__: Any) -> int:
    """One layer: ``x`` ``[time, batch, width]``, weights ``[4 * hidden, width]`` and ``[4 * hidden, hidden]``."""
    return 2 * x[0] * x[1] * input_weight[0] * (input_weight[1] + state_weight[1])


def _lstm_backward(x: Any, input_weight: Any, state_weight: Any, *_: Any, **__: Any) -> int:
    """Two products for each one."""
    return 2 * _lstm_forward(x, input_weight, state_weight)


_FUSED_OPERATIONS = {
    torch.ops.aten.mkldnn_rnn_layer: _lstm_forward,
    torch.ops.aten.mkldnn_rnn_layer_backward: _lstm_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}
