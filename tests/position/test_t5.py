from __future__ import annotations

import pytest
import torch

from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.position.t5 import T5

SHAPE = LayerShape(64, 4)


def test_wide_buckets_begin_where_the_paper_says() -> None:
    found = T5(SHAPE).bucket(torch.arange(200)).tolist()
    assert found[:16] == list(range(16))
    assert [found.index(bucket) for bucket in range(16, 32)] == [
        *(16, 19, 21, 24, 27, 31, 35, 40),
        *(46, 52, 59, 67, 77, 87, 99, 113),
    ]
    assert found == sorted(found)
    assert set(found[113:]) == {31}


def test_two_sided_buckets_are_halved_and_mirrored() -> None:
    made = T5(SHAPE, two_sided=True)
    past, future = made.bucket(torch.arange(1, 200)), made.bucket(-torch.arange(1, 200))
    assert past[:7].tolist() == list(range(1, 8))
    assert int(past.max()) == 15
    assert torch.equal(future, past + 16)
    assert int(made.bucket(torch.tensor(0))) == 0


def test_the_table_has_the_stated_deviation() -> None:
    torch.manual_seed(0)
    made = T5(LayerShape(256, 64))
    assert made.table.shape == (64, 32)
    assert float(made.table.detach().std()) == pytest.approx(1 / 16, rel=0.05)


def test_layers_may_have_tables_of_their_own() -> None:
    first, second = T5(SHAPE, shared=False), T5(SHAPE, shared=False)
    second.share(first)
    assert second.table is not first.table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 9}, "position.buckets=9 is no multiple of 2; the closest is 8"),
        ({"buckets": 30, "two_sided": True}, "position.buckets=30 is no multiple of 4; the closest is (28|32)"),
        ({"max_distance": 16}, "position.max_distance=16 .* 17"),
    ],
)
def test_mistakes(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        T5(SHAPE, **options)  # type: ignore[arg-type]
