import pytest
import torch

from lcbench.task.cell import Cell, parse_cell
from lcbench.task.place import by_place


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("in_distribution", Cell("", None, None)),
        ("length_1k", Cell("", 1000, None)),
        ("length_1M_depth_100", Cell("", 1_000_000, 100)),
        ("length_4x_depth_0", Cell("", 256, 0)),
        ("in_distribution_length_128", Cell("", 128, None)),
        ("depth_50", Cell("", None, 50)),
        ("noise", Cell("noise", None, None)),
        ("noise_depth_7", Cell("noise", None, 7)),
        ("niah_multikey_2_length_4k_depth_25", Cell("niah_multikey_2", 4000, 25)),
        ("landmark_filler_5k_depth_50", Cell("landmark_filler_5k", None, 50)),
    ],
)
def test_names_and_cells(name: str, cell: Cell) -> None:
    assert parse_cell(name, 64) == cell
    assert parse_cell(cell.name, 64) == cell


def test_names_that_are_no_cells() -> None:
    assert parse_cell("length_4x_depth_0") is None, "nobody said what it multiplies"
    assert parse_cell("depth_101", 64) is None
    assert parse_cell("length-4", 64) is None


def test_errors_by_place() -> None:
    errors = torch.tensor([True, False, True, True, False])
    depth = torch.tensor([0.0, 19.9, 20.0, 100.0, 80.0])
    distance = torch.tensor([0, 1, 3, 4, 1_000_000])
    split = {name: part.tolist() for name, part in by_place(errors, depth, distance).items()}
    assert split == {
        "error/depth_0_19": [True, False],
        "error/depth_20_39": [True],
        "error/depth_80_100": [True, False],
        "error/distance_0": [True],
        "error/distance_1": [False],
        "error/distance_2_3": [True],
        "error/distance_4_7": [True],
        "error/distance_524288_1048575": [False],
    }
