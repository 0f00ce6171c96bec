"""TensorBoard and CSV, read back and compared with the record."""

from __future__ import annotations

import csv
import sys

import pytest

from lcbench.cli import main
from lcbench.results.record import scores_of


def test_csv_holds_every_score(run_here):
    result, folder, _ = run_here("logger=csv")
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    found = {(row["evaluation_set"], row["metric"]): row for row in rows}
    assert len(found) == len(scores_of(result))
    for score in scores_of(result):
        row = found[score.evaluation_set, score.metric]
        assert [float(row[name]) for name in ("value", "low", "high")] == [score.value, score.low, score.high]
        assert int(row["n"]) == score.n


def test_tensorboard_holds_curves_and_scores(run_here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, folder, screen = run_here("logger=tensorboard")
    assert "tensorboard --logdir" in screen
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows})
    for score in scores_of(result):
        (event,) = events.Scalars(f"scores/{score.evaluation_set}/{score.metric}")
        assert event.value == pytest.approx(score.value)


def test_tensorboard_that_is_not_installed_is_refused_in_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["logger=tensorboard"]) == 2
    assert "lcbench[tensorboard]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
