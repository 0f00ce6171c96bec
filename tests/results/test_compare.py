"""One row per configuration: its numbers by hand, and nothing claimed that the seeds do not show."""

from __future__ import annotations

import math

import pytest

from lcbench.errors import ConfigurationError
from lcbench.results import compare
from tests.results.synthetic import COPE, ROPE, write_run, write_seeds

SCORE = "sparse/error"


def only_table(path, **options):
    (table,) = compare([path], **options).tables
    return table


def rows_of(table, column="position"):
    return {row.keys[column]: row for row in table.rows}


def test_seeds_are_one_row_with_a_t_interval(tmp_path):
    write_seeds(tmp_path, "cope", [0.1, 0.2, 0.6])
    table = only_table(tmp_path)
    (row,) = table.rows
    score = row.scores[SCORE]
    # the standard deviation of 0.1, 0.2, 0.6 is the root of 0.07; t of two degrees of freedom is 4.30265
    half = 4.30265 * math.sqrt(0.07) / math.sqrt(3)
    assert (table.columns, row.n, score.n) == ((), 3, 3)
    assert (score.mean, score.median) == (pytest.approx(0.3), 0.2)
    # a share is between 0 and 1
    assert (score.low, score.high) == (0.0, pytest.approx(0.3 + half, abs=1e-6))
    assert score.mark == ""
    assert row.cost == {
        "parameters": 1000,
        "tokens_per_second": 2000,
        "peak_memory_bytes": 3 * 2**20,
        "wall_seconds": 4,
        "train_flops": 5e9,
    }


def test_one_seed_has_the_runs_own_interval_and_says_so(tmp_path):
    write_seeds(tmp_path, "cope", [0.3])
    table = only_table(tmp_path)
    score = table.rows[0].scores[SCORE]
    assert (score.low, score.high) == (0.25, 0.35)
    assert any("one seed" in note for note in table.notes)


def test_seeds_without_spread_do_not_claim_certainty(tmp_path):
    write_seeds(tmp_path, "cope", [0.3, 0.3, 0.3])
    score = only_table(tmp_path).rows[0].scores[SCORE]
    assert (score.low, score.high) == (pytest.approx(0.25), pytest.approx(0.35))


def test_the_share_of_seeds_that_solved_it(tmp_path):
    write_seeds(tmp_path, "cope", [0.0, 0.01, 0.011, 0.5])
    assert only_table(tmp_path).rows[0].scores[SCORE].solved == 0.5
    assert only_table(tmp_path, solved=0.0).rows[0].scores[SCORE].solved == 0.25
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        compare([tmp_path], solved=1.5)


def test_an_accuracy_is_solved_near_one_and_a_perplexity_never(tmp_path):
    scores = {"sparse/error": 0.0, "sparse/accuracy": 0.995, "sparse/perplexity": 7.0}
    write_run(tmp_path / "a", scores)
    write_run(tmp_path / "b", scores | {"sparse/accuracy": 0.9}, seed=1)
    (row,) = only_table(tmp_path, metrics=["sparse/accuracy", "sparse/perplexity"]).rows
    assert row.scores["sparse/accuracy"].solved == 0.5
    assert row.scores["sparse/perplexity"].solved is None
    assert row.scores["sparse/perplexity"].high == pytest.approx(7.05)


def test_runs_of_one_seed_count_once(tmp_path):
    for place, error in {"here": 0.1, "there": 0.3}.items():
        write_run(tmp_path / place, {SCORE: error}, outputs=place)
    write_run(tmp_path / "other", {SCORE: 0.6}, seed=1)
    table = only_table(tmp_path)
    (row,) = table.rows
    assert (row.n, len(row.runs), row.scores[SCORE].mean) == (2, 3, pytest.approx(0.4))
    assert "several runs of one seed, in 1 row, count once, by their mean" in table.notes


def test_what_is_not_completed_is_counted_and_never_averaged(tmp_path):
    write_seeds(tmp_path, "cope", [0.1, 0.1])
    # scores and cost that must not be used
    for seed, status in enumerate(["failed", "failed", "running", "interrupted"], start=2):
        write_run(tmp_path / f"bad-{seed}", {SCORE: 0.9}, status=status, seed=seed, cost={"parameters": 5})
    write_run(tmp_path / "rope", {}, status="failed", position=ROPE)
    table = only_table(tmp_path)
    rows = rows_of(table)
    assert rows["cope"].incomplete == {"failed": 2, "interrupted": 1, "running": 1}
    assert (rows["cope"].n, rows["cope"].scores[SCORE].mean, rows["cope"].cost["parameters"]) == (2, 0.1, 1000)
    assert (rows["rope"].n, rows["rope"].scores, rows["rope"].cost["parameters"]) == (0, {}, None)
    assert "not completed, and in no average: 3 failed, 1 interrupted, 1 running" in table.notes


def test_experiments_and_tasks_have_tables_of_their_own(tmp_path):
    counting = {"_target_": "lcbench.task.counting.Counting", "length": 64}
    write_run(tmp_path / "a", {SCORE: 0.1})
    write_run(tmp_path / "b", {SCORE: 0.2}, experiment="cope/flip_flop")
    write_run(tmp_path / "c", {"in_distribution/error": 0.3}, experiment="counting", task=counting)
    found = [(table.experiment, table.task, table.metrics) for table in compare([tmp_path]).tables]
    assert found == [
        ("flip_flop", "flip_flop", (SCORE,)),
        ("cope/flip_flop", "flip_flop", (SCORE,)),
        ("counting", "counting", ("in_distribution/error",)),
    ]


def test_only_clear_winners_are_marked_best(tmp_path):
    write_seeds(tmp_path, "cope", [0.10, 0.11, 0.12])
    write_seeds(tmp_path, "rope", [0.50, 0.51, 0.52], position=ROPE)
    assert {name: row.scores[SCORE].mark for name, row in rows_of(only_table(tmp_path)).items()} == {
        "cope": "*",
        "rope": "",
    }
    none = {"_target_": "lcbench.position.none.NoPosition"}
    write_seeds(tmp_path, "none", [0.05, 0.15, 0.25], position=none)
    # none overlaps cope, the lowest mean; its interval reaches as far down, but rope is clear of both
    assert {name: row.scores[SCORE].mark for name, row in rows_of(only_table(tmp_path)).items()} == {
        "cope": "~",
        "none": "~",
        "rope": "",
    }


def test_ties_are_not_claimed_as_better(tmp_path):
    for name, position in {"cope": COPE, "rope": ROPE}.items():
        write_seeds(tmp_path, name, [0.0, 0.0], position=position)
    assert [row.scores[SCORE].mark for row in only_table(tmp_path).rows] == ["~", "~"]


def test_high_accuracies_and_low_perplexities_are_best(tmp_path):
    write_run(tmp_path / "a", {"s/error": 0.5, "s/accuracy": 0.2, "s/perplexity": 9.0})
    write_run(tmp_path / "b", {"s/error": 0.5, "s/accuracy": 0.8, "s/perplexity": 3.0}, position=ROPE)
    rows = rows_of(only_table(tmp_path, metrics=["s/accuracy", "s/perplexity"]))
    assert [rows["rope"].scores[f"s/{metric}"].mark for metric in ("accuracy", "perplexity")] == ["*", "*"]


def test_metrics_by_default_are_the_headline_on_shared_sets(tmp_path):
    write_run(tmp_path / "a", {"in_distribution/error": 0.1, "sparse/error": 0.2, "sparse/sequence_error": 0.3})
    write_run(tmp_path / "b", {"in_distribution/error": 0.1, "dense/error": 0.2}, position=ROPE)
    table = only_table(tmp_path)
    assert table.metrics == ("in_distribution/error",)
    assert any("sparse/error, dense/error" in note for note in table.notes)
    asked = only_table(tmp_path, metrics=["sparse", "sparse/sequence_error"])
    assert asked.metrics == ("sparse/error", "sparse/sequence_error")
    assert set(rows_of(asked)["cope"].scores) == {"sparse/error", "sparse/sequence_error"}
    assert rows_of(asked)["rope"].scores == {}
    assert "without sparse/error: 1 of 2 completed runs" in asked.notes


def test_a_metric_alone_means_it_on_every_shared_set(tmp_path):
    write_run(tmp_path / "a", {f"{s}/{m}": 0.1 for s in ("dense", "sparse") for m in ("error", "sequence_error")})
    assert only_table(tmp_path, metrics=["sequence_error"]).metrics == (
        "dense/sequence_error",
        "sparse/sequence_error",
    )


def test_an_unknown_metric_names_the_closest(tmp_path):
    write_seeds(tmp_path, "cope", [0.1])
    with pytest.raises(ConfigurationError, match=r"--metric spars/eror: no run has it; the closest is sparse/error\."):
        compare([tmp_path], metrics=["spars/eror"])


def test_by_leaves_keys_out_and_says_what_a_row_mixes(tmp_path):
    for lr in (0.1, 0.2):
        optimizer = {"_target_": "lcbench.optimizer.adamw.AdamW", "lr": lr}
        write_seeds(tmp_path, f"cope{lr}", [lr, lr + 0.1], optimizer=optimizer)
        write_seeds(tmp_path, f"rope{lr}", [lr, lr], optimizer=optimizer, position=ROPE)
    table = only_table(tmp_path, by=["position"])
    assert (table.columns, table.mixed) == (("position",), ("optimizer.lr",))
    assert rows_of(table)["cope"].n == 4
    assert rows_of(table)["cope"].scores[SCORE].mean == pytest.approx(0.2)
    assert any("differ in optimizer.lr" in note for note in table.notes)
    # pairs are runs of the same learning rate and seed
    paired = rows_of(only_table(tmp_path, by=["position"], against={"position": "rope"}))["cope"].differences[SCORE]
    assert (paired.n, paired.mean) == (4, pytest.approx(0.05))
    with pytest.raises(ConfigurationError, match=r"positoin: no such key in these runs; the closest is position\."):
        compare([tmp_path], by=["positoin"])


def test_rows_by_seed(tmp_path):
    write_seeds(tmp_path, "cope", [0.1, 0.2])
    table = only_table(tmp_path, by=["seed"])
    assert [(row.keys["seed"], row.scores[SCORE].mean) for row in table.rows] == [(0, 0.1), (1, 0.2)]


def test_rows_are_sorted(tmp_path):
    for d_model, error in {128: 0.2, 9: 0.3, 64: 0.1}.items():
        model = {"_target_": "lcbench.model.decoder.Decoder", "d_model": d_model, "n_layers": 2}
        write_run(tmp_path / str(d_model), {SCORE: error}, model=model, cost={"wall_seconds": 1 / d_model})

    def order(sort=None):
        return [row.keys["model.d_model"] for row in only_table(tmp_path, sort=sort).rows]

    # numbers by size, not by their first digit
    assert order() == [9, 64, 128]
    assert order(SCORE) == order("sparse") == [64, 128, 9]
    assert order("-sparse") == [9, 128, 64]
    assert order("wall_seconds") == [128, 64, 9]
    # what has no score stands last, whichever way
    write_run(tmp_path / "bad", {}, status="failed", model={**model, "d_model": 1})
    assert order("sparse")[-1] == order("-sparse")[-1] == 1
    with pytest.raises(ConfigurationError, match=r"--sort wall: no such column; the closest is wall_seconds\."):
        compare([tmp_path], sort="wall")


def test_the_best_accuracy_stands_first(tmp_path):
    for d_model, accuracy in {32: 0.2, 64: 0.9}.items():
        model = {"_target_": "lcbench.model.decoder.Decoder", "d_model": d_model, "n_layers": 2}
        write_run(tmp_path / str(d_model), {"s/accuracy": accuracy}, model=model)
    for sort, first in {"s/accuracy": 64, "-s/accuracy": 32}.items():
        assert only_table(tmp_path, metrics=["s/accuracy"], sort=sort).rows[0].keys["model.d_model"] == first


def test_a_paired_difference_sees_what_intervals_hide(tmp_path):
    write_seeds(tmp_path, "rope", [0.10, 0.30, 0.50], position=ROPE)
    write_seeds(tmp_path, "cope", [0.08, 0.27, 0.48])
    rows = rows_of(only_table(tmp_path, against={"position": "rope"}))
    assert [row.scores[SCORE].mark for row in rows.values()] == ["~", "~"]
    found = rows["cope"].differences[SCORE]
    # differences -0.02, -0.03, -0.02: standard deviation 0.01 / sqrt(3)
    half = 4.30265 * 0.01 / 3
    assert (found.mean, found.n) == (pytest.approx(-0.07 / 3), 3)
    assert (found.low, found.high) == pytest.approx((-0.07 / 3 - half, -0.07 / 3 + half), abs=1e-6)
    assert found.verdict == "better"
    assert rows_of(only_table(tmp_path, against={"position": "cope"}))["rope"].differences[SCORE].verdict == "worse"


def test_a_difference_whose_interval_holds_zero_has_no_verdict(tmp_path):
    write_seeds(tmp_path, "rope", [0.10, 0.30, 0.50], position=ROPE)
    write_seeds(tmp_path, "cope", [0.08, 0.29, 0.40])
    found = rows_of(only_table(tmp_path, against={"position": "rope"}))["cope"].differences[SCORE]
    assert found.mean < 0 < found.high
    assert found.verdict == ""


def test_equal_differences_do_not_claim_certainty(tmp_path):
    # 0.3 - 0.4 and 0.4 - 0.5 are not the same number to the last bit
    write_seeds(tmp_path, "rope", [0.40, 0.50], position=ROPE)
    write_seeds(tmp_path, "cope", [0.30, 0.40])
    found = rows_of(only_table(tmp_path, against={"position": "rope"}))["cope"].differences[SCORE]
    assert (found.low, found.high) == pytest.approx((-0.2, 0.0))


def test_only_common_seeds_are_paired(tmp_path):
    for seed, (rope, cope) in {0: (0.5, None), 1: (0.4, 0.3), 2: (0.4, 0.2), 7: (None, 0.9)}.items():
        if rope is not None:
            write_run(tmp_path / f"rope-{seed}", {SCORE: rope}, seed=seed, position=ROPE)
        if cope is not None:
            write_run(tmp_path / f"cope-{seed}", {SCORE: cope}, seed=seed)
    found = rows_of(only_table(tmp_path, against={"position": "rope"}))["cope"].differences[SCORE]
    assert (found.n, found.mean) == (2, pytest.approx(-0.15))


def test_no_common_seed_is_said(tmp_path):
    write_run(tmp_path / "rope", {SCORE: 0.1}, position=ROPE)
    write_run(tmp_path / "cope", {SCORE: 0.9}, seed=1)
    table = only_table(tmp_path, against={"position": "rope"})
    assert rows_of(table)["cope"].differences == {}
    assert "without a seed in common with the baseline: 1 row" in table.notes


def test_one_common_seed_has_an_interval_and_no_verdict(tmp_path):
    write_run(tmp_path / "rope", {SCORE: 0.1}, position=ROPE)
    write_run(tmp_path / "cope", {SCORE: 0.9})
    found = rows_of(only_table(tmp_path, against={"position": "rope"}))["cope"].differences[SCORE]
    assert (found.low, found.mean, found.high) == pytest.approx((0.7, 0.8, 0.9))
    assert found.verdict == ""


def test_a_baseline_that_failed_is_said(tmp_path):
    write_run(tmp_path / "rope", {}, status="failed", position=ROPE)
    write_run(tmp_path / "cope", {SCORE: 0.1})
    table = only_table(tmp_path, against={"position": "rope"})
    assert rows_of(table)["rope"].baseline
    assert "with a baseline that has no such score: 1 row" in table.notes


def test_each_row_of_a_grid_has_the_baseline_of_its_own_column(tmp_path):
    for d_model, (rope, cope) in {32: (0.5, 0.4), 64: (0.3, 0.1)}.items():
        model = {"_target_": "lcbench.model.decoder.Decoder", "d_model": d_model, "n_layers": 2}
        write_run(tmp_path / f"rope{d_model}", {SCORE: rope}, model=model, position=ROPE)
        # an option that only cope has is no reason to find no baseline
        write_run(tmp_path / f"cope{d_model}", {SCORE: cope}, model=model, position={**COPE, "p_max": d_model})
    table = only_table(tmp_path, against={"position": "rope"})
    found = {row.keys["model.d_model"]: row.differences[SCORE].mean for row in table.rows if row.differences}
    assert found == {32: pytest.approx(-0.1), 64: pytest.approx(-0.2)}
    assert sum(row.baseline for row in table.rows) == 2


def test_a_grid_over_the_baselines_own_group_is_matched_too(tmp_path):
    for d_model, (decoder, lstm) in {32: (0.5, 0.4), 64: (0.3, 0.1)}.items():
        sizes = {"d_model": d_model, "n_layers": 2}
        write_run(
            tmp_path / f"d{d_model}", {SCORE: decoder}, model=sizes | {"_target_": "lcbench.model.decoder.Decoder"}
        )
        write_run(tmp_path / f"l{d_model}", {SCORE: lstm}, model=sizes | {"_target_": "lcbench.model.lstm.LSTM"})
    table = only_table(tmp_path, against={"model": "decoder"})
    found = {row.keys["model.d_model"]: row.differences[SCORE].mean for row in table.rows if row.differences}
    assert found == {32: pytest.approx(-0.1), 64: pytest.approx(-0.2)}


def test_a_row_without_its_baseline_is_said(tmp_path):
    for d_model in (32, 64):
        model = {"_target_": "lcbench.model.decoder.Decoder", "d_model": d_model, "n_layers": 2}
        write_run(tmp_path / f"rope{d_model}", {SCORE: 0.1}, model=model, position=ROPE)
    write_run(tmp_path / "cope", {SCORE: 0.1}, model={**model, "d_model": 128})
    table = only_table(tmp_path, against={"position": "rope"})
    assert "without a baseline that has the same model.d_model: 1 row" in table.notes


def test_an_ambiguous_baseline_asks_for_the_missing_key(tmp_path):
    for base in (100.0, 10000.0):
        write_run(tmp_path / f"rope{base}", {SCORE: 0.1}, position={**ROPE, "base": base})
    write_run(tmp_path / "cope", {SCORE: 0.1})
    with pytest.raises(ConfigurationError, match=r"2 rows fit.*position\.base.*position=rope,position\.base=100"):
        compare([tmp_path], against={"position": "rope"})
    rows = only_table(tmp_path, against={"position": "rope", "position.base": "1e2"}).rows
    assert [row.keys["position"] for row in rows if row.differences] == ["cope", "rope"]


def test_a_baseline_that_is_not_there_names_the_closest(tmp_path):
    write_seeds(tmp_path, "cope", [0.1])
    write_seeds(tmp_path, "rope", [0.1], position=ROPE)
    with pytest.raises(ConfigurationError, match=r"no row has position=rop; the closest is rope\."):
        compare([tmp_path], against={"position": "rop"})
    with pytest.raises(ConfigurationError, match=r"positon: no such key in these runs; the closest is position\."):
        compare([tmp_path], against={"positon": "rope"})
    with pytest.raises(ConfigurationError, match=r"no row has model\.d_model=65; the closest is 64\."):
        compare([tmp_path], against={"position": "rope", "model.d_model": "65"})


def test_unreadable_runs_are_skipped_and_named(tmp_path):
    write_seeds(tmp_path, "good", [0.1, 0.3])
    text = (tmp_path / "good-0" / "result.json").read_text()
    broken = {
        "truncated": text[: len(text) // 2],
        "empty": "",
        "binary": "\x00\xff",
        "list": "[1]",
        "partial": '{"status": "completed"}',
        "words": text.replace("0.1,", '"much",', 1),
    }
    for name, content in broken.items():
        write_run(tmp_path / name, {SCORE: 0.9})
        (tmp_path / name / "result.json").write_text(content, encoding="latin-1")
    write_run(tmp_path / "unborn", {})
    (tmp_path / "unborn" / "result.json").unlink()
    write_run(tmp_path / "no_config", {SCORE: 0.9}, old=True)
    (tmp_path / "no_config" / "config.yaml").unlink()
    write_run(tmp_path / "bad_config", {SCORE: 0.9}, old=True)
    (tmp_path / "bad_config" / "config.yaml").write_text("a: [")
    comparison = compare([tmp_path])
    assert comparison.tables[0].rows[0].scores[SCORE].mean == pytest.approx(0.2)
    reasons = {run.folder.rsplit("/", 1)[1]: run.reason for run in comparison.unreadable}
    assert set(reasons) == {*broken, "unborn", "no_config", "bad_config"}
    assert "no config.yaml" in reasons["no_config"]
    assert "no result.json" in reasons["unborn"]
    assert all("\n" not in reason for reason in reasons.values())


def test_nothing_readable_is_an_error_that_names_the_first(tmp_path):
    write_run(tmp_path / "a", {})
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"no run can be read: .*/a: result\.json cannot be read"):
        compare([tmp_path])


def test_records_without_their_config_are_read_from_config_yaml(tmp_path):
    write_seeds(tmp_path, "old", [0.1, 0.2], old=True)
    write_seeds(tmp_path, "new", [0.3, 0.4], position=ROPE)
    assert {name: row.scores[SCORE].n for name, row in rows_of(only_table(tmp_path)).items()} == {"cope": 2, "rope": 2}
    write_run(tmp_path / "again", {SCORE: 0.6}, seed=2)
    assert rows_of(only_table(tmp_path))["cope"].scores[SCORE].n == 3


def test_a_run_that_two_paths_reach_counts_once(tmp_path):
    write_seeds(tmp_path / "all", "cope", [0.1, 0.2])
    (tmp_path / "link").symlink_to(tmp_path / "all")
    paths = [tmp_path, tmp_path / "all" / "cope-0", tmp_path / "link"]
    (table,) = compare(paths).tables
    assert len(table.rows[0].runs) == 2


def test_what_lies_within_a_run_is_no_run_of_its_own(tmp_path):
    folder = write_run(tmp_path / "run", {SCORE: 0.1})
    write_run(folder / "elsewhere", {SCORE: 0.9}, seed=1)
    assert only_table(tmp_path).rows[0].scores[SCORE].values == {(0,): 0.1}


def test_a_config_elsewhere_is_no_run(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 1")
    with pytest.raises(ConfigurationError, match="is no run and holds none"):
        compare([tmp_path])
