"""The benchmarks' own tests: the record's shape, what is refused, and the README's table."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import data, pairs, run, table, verify
from benchmarks.cases import suite
from fastclust.kernels import Statistics
from fastclust.kernels.contract import Totals

SPREAD = {"median", "min", "max"}


def test_the_readmes_table_is_that_of_the_records():
    for path, text in table.pages(table.load()).items():
        assert path.read_text() == text, "run `python -m benchmarks.table`"


def test_the_quick_suite_leaves_a_whole_record(tmp_path, capsys):
    path = tmp_path / "quick.json"
    assert run.main(["--suite", "quick", "--out", str(path)]) == 0
    record = json.loads(path.read_text())
    assert {"suite", "date", "commit", "machine", "formulae", "tolerance"} <= set(record)
    assert record["matrix_product_gflop_per_second"] > 0
    assert record["copy_gbytes_per_second"] > 0
    (case,) = record["cases"]
    assert case["name"] in capsys.readouterr().out
    assert set(case["errors"]) == {"nk", "sx", "sxx", "log_norm", "entropy"}
    assert max(case["errors"].values()) < verify.TOLERANCE
    assert case["verified_rows"] == case["n"]
    assert {"data", "n", "d", "k", "covariance", "dtype", "backend", "repeats", "fit_passes"} <= set(case)
    for part in ("pass", "fit"):
        for side in ("ours", "theirs", "ratio"):
            spread = case[part][side]
            assert set(spread) == SPREAD
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert case["pass"]["gbytes_per_second"] > 0
    assert case["pass"]["gflop_per_second"] > 0
    assert 0 < case["pass"]["share_of_floor"] < 1
    # The two did the same work: their bounds agree.
    assert case["pass"]["largest_bound_difference_per_row"] < 1e-3
    assert abs(case["fit"]["bound_difference_per_row"]) < 1e-3
    assert set(case["fit"]["peak_memory_bytes"]) == {"ours", "theirs"}
    shown = table.render([record]).splitlines()
    assert [line[:1] for line in shown[1:5]] == ["", "|", "|", "|"]  # after a paragraph, a header of two lines, a row


def test_a_case_with_a_wrong_kernel_is_not_timed(tmp_path, monkeypatch, capsys):
    right = Totals.result

    def wrong(plan: Totals) -> Statistics:
        found = right(plan)
        nk = found.nk.clone()
        nk[nk.argmin()] *= 1.001
        return replace(found, nk=nk)

    monkeypatch.setattr(Totals, "result", wrong)
    path = tmp_path / "quick.json"
    assert run.main(["--suite", "quick", "--out", str(path)]) == 1
    record = json.loads(path.read_text())
    (case,) = record["cases"]
    assert "nk: 1.0e-03" in case["refused"]
    assert not {"pass", "fit"} & set(case)
    assert "REFUSED" in capsys.readouterr().out
    assert "not timed: wrong" in table.render([record])


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_every_statistic_is_judged_on_a_scale_of_its_own(kind):
    case = replace(suite("quick")[0], covariance=kind)
    X = data.relu(case.n, case.d)
    model = pairs.make_ours(case, max_iter=3)
    with pytest.warns(match="did not converge"):
        model.fit(X)
    _, rows = model._rows_of(X)
    posterior = model._posterior(rows)
    expected = verify.oracle(rows.blocks, rows.frame, verify.engine.coefficients(posterior))
    assert verify.variances(posterior).shape == posterior.m.shape
    second = (posterior.m - expected.about) ** 2 + verify.variances(posterior)
    assert verify.beyond_tolerance(verify.errors(expected, expected, second)) == []
    smallest = int(expected.nk.argmin())
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        value = getattr(expected, name)
        if value is None:
            continue
        for change in (1e-2, math.nan):  # of the smallest component's largest entry
            changed = value.clone().reshape(len(value) if value.ndim else 1, -1)
            row = changed[smallest if value.ndim else 0]
            row[row.abs().argmax()] *= 1 + change
            moved = replace(expected, **{name: changed.reshape(value.shape)})
            (complaint,) = verify.beyond_tolerance(verify.errors(moved, expected, second))
            assert complaint.startswith(f"{name}:")


def test_moving_the_reference_point_of_the_oracle_changes_nothing():
    case = replace(suite("quick")[0], covariance="full")
    X = data.relu(200, case.d)
    model = pairs.make_ours(case, max_iter=2)
    with pytest.warns(match="did not converge"):
        model.fit(X)
    _, rows = model._rows_of(X)
    statistics = verify.oracle(rows.blocks, rows.frame, verify.engine.coefficients(model._posterior(rows)))
    there = statistics.moved(statistics.about + 0.5)
    back = there.moved(statistics.about)
    assert not torch.allclose(there.sx, statistics.sx)
    for name in ("sx", "sxx"):
        torch.testing.assert_close(getattr(back, name), getattr(statistics, name), rtol=1e-9, atol=1e-9)


def test_synthetic_features_are_like_those_of_a_relu():
    rows = data.relu(5_000, 64)
    assert rows.dtype == np.float32
    assert 0.4 < (rows == 0).mean() < 0.6
    assert not rows[:, 3].any()
    assert (rows.min(), rows.max()) == (0, 10)
    assert rows.max() > 20 * rows.mean(), "no heavy tails"


def test_an_unknown_case_is_an_error():
    with pytest.raises(SystemExit):
        run.main(["--suite", "quick", "--only", "nothing of that name"])
