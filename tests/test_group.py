"""Processes that fit together: the model of one process, and no waiting for one that died."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import one_of_a_group
import pytest
import torch
import torch.distributed as distributed

TESTS = Path(__file__).parent

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")


def start(folder: Path, what: str, size: int = 2) -> list[subprocess.Popen]:
    """Start the processes of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [sys.executable, TESTS / "one_of_a_group.py", folder, what],
            env=common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def test_a_group_finds_what_one_process_finds(tmp_path):
    processes = start(tmp_path, "fits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = one_of_a_group.fits(*(slice(low, high) for low, high in pairwise(one_of_a_group.CUT)))
    torch.set_num_threads(threads)
    for process in processes:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    one, other = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert set(one.files) == set(alone)
    for name, expected in alone.items():
        if name.endswith("labels"):
            np.testing.assert_array_equal(np.concatenate([one[name], other[name]]), expected, err_msg=name)
            continue
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        bound = "lower_bounds_" in name or "drop-in" in name
        rtol, atol = (1e-10, 0) if bound else (1e-6, 1e-8)
        np.testing.assert_allclose(one[name], expected, rtol=rtol, atol=atol, err_msg=name)
    assert one["batches lower_bounds_"].shape == (6,)
    assert (np.diff(one["batches lower_bounds_"])[1:] > 0).all()  # the second call brought new rows


def in_two_processes(folder: Path, what: str) -> dict[str, np.ndarray]:
    """What both processes of a group found, which is the same."""
    for process in start(folder, what):
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    one, other = (dict(np.load(folder / f"{rank}.npz")) for rank in range(2))
    np.testing.assert_equal(one, other)
    return one


def test_rows_of_a_process_that_gives_no_weights_count_once(tmp_path):
    first, second = (slice(low, high) for low, high in pairwise(one_of_a_group.CUT))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = one_of_a_group.half_weighted((first, True), (second, False))
    found = in_two_processes(tmp_path, "half weighted")
    assert set(found) == set(alone)
    for name, expected in alone.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)


def test_a_random_state_goes_on_in_the_first_process_from_fit_to_fit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = one_of_a_group.one_random_state(*(slice(low, high) for low, high in pairwise(one_of_a_group.CUT)))
    found = in_two_processes(tmp_path, "one random state")
    for name, expected in alone.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def test_each_process_fits_in_a_way_of_its_own(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = one_of_a_group.elsewhere(0, *(slice(low, high) for low, high in pairwise(one_of_a_group.CUT)))
    found = in_two_processes(tmp_path, "elsewhere")
    for name, expected in alone.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)


FAILURES = {
    "nan": "process 1 (pid {pid} on {host}) failed: ValueError: Input X contains NaN",
    "killed": "process 1 (pid {pid} on {host}) has died: no sign of life for 20 seconds",
    "stopped": "process 1 (pid {pid} on {host}) has died: no sign of life for 20 seconds",
}


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, float]]:
    """What the first process of each group said, whose second one fails; that one's id; and the seconds that took.

    The groups run at the same time, for they mostly wait.
    """
    folders = {what: tmp_path_factory.mktemp(what) for what in FAILURES}
    groups = {what: start(folder, what) for what, folder in folders.items()}
    found = {}
    for what, (first, second) in groups.items():
        _, said = first.communicate(timeout=100)
        assert first.returncode == 1
        found[what] = said, second.pid, time.time() - (folders[what] / "fails").stat().st_mtime
        second.send_signal(signal.SIGKILL)
        second.communicate()
    return found


@pytest.mark.parametrize("what", FAILURES)
def test_no_process_waits_for_one_that_died(what: str, failing: dict[str, tuple[str, int, float]]) -> None:
    said, pid, seconds = failing[what]
    last = said.strip().splitlines()[-1]
    assert f"RuntimeError: {FAILURES[what].format(pid=pid, host=socket.gethostname())}" in last
    assert seconds < 60


def test_a_process_that_dies_before_it_comes_to_the_fit_is_named(tmp_path):
    first, second = start(tmp_path, "killed before")
    last = first.communicate(timeout=100)[1].strip().splitlines()[-1]
    second.communicate()
    assert "RuntimeError: the connection to the other processes broke before process 1 of 2 came: " in last


def test_a_process_that_has_no_rows_is_named(tmp_path):
    folders = [tmp_path / kind for kind in ("array", "tensor")]
    for group in [start(folder, "no rows") for folder in folders]:
        first, second = (process.communicate(timeout=100)[1].strip().splitlines()[-1] for process in group)
        words = "ValueError: process 1 of 2 has no rows: give it some, or use fewer processes"
        assert first.endswith(f"RuntimeError: process 1 (pid {group[1].pid} on {socket.gethostname()}) failed: {words}")
        assert second.endswith(words)


def test_processes_that_would_fit_different_models_say_so(tmp_path):
    for process in start(tmp_path, "different"):
        _, said = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "fit one model: n_components is" in said.strip().splitlines()[-1]
