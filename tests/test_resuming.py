"""Commands that are stopped, by whatever, and go on: to the same results, in one process or several."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import MIXTURE, NETWORK, call, contents, photographs

from fastclust import DPGMM, blocks, load
from fastclust.blocks import share
from fastclust.store import open_store

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as here: bits are compared
}

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ten small photographs."""
    folder = tmp_path_factory.mktemp("store")
    photographs(folder / "images", 10)
    result = call("extract", folder / "images", *NETWORK, "--layer", "1", "--out", folder / "features.h5")
    assert (result.status, result.err) == (0, "")
    return folder / "features.h5"


def command(*words: object, torchrun: int = 0, restarts: int = 0, **environment: str) -> subprocess.Popen:
    """Start a command in a process of its own, or in several that torchrun starts."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", torchrun, "--max-restarts", restarts]
    launcher += ["--standalone", "-m", "fastclust"]
    return subprocess.Popen(
        [sys.executable, *map(str, launcher if torchrun else ["-m", "fastclust"]), *map(str, words)],
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_interrupts if os.name == "posix" else None,
    )


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a command; return its status and what it printed."""
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_at_twenty_moments_fit_and_label_go_on_to_the_same_results(store: Path, tmp_path: Path) -> None:
    (tmp_path / "features.h5").write_bytes(store.read_bytes())
    script = TESTS / "kill_commands.py"
    run = subprocess.run([sys.executable, script, tmp_path], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    done = json.loads(run.stdout.splitlines()[-1])
    assert [len(done[name]) for name in ("fit", "label")] == [20, 20]
    assert sum(0 < passes < 60 for passes in done["fit"]) >= 3, f"too few kills came in the middle: {done}"
    assert sum(0 < images < 10 for images in done["label"]) >= 3, f"too few kills came in the middle: {done}"


@pytest.mark.parametrize(("number", "status"), SIGNALS, ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(number, status, store: Path, tmp_path: Path) -> None:
    words = ("fit", store, *MIXTURE[:2], "--max-iter", 1_000_000, "--tol", 0, "--out", tmp_path / "m.h5")
    words = (*words, "--checkpoint", tmp_path / "c.h5", "--every")
    process = command(*words, "1s")
    wait_for(tmp_path / "c.h5", process)
    (tmp_path / "c.h5").unlink()  # what the signal leaves is another one,
    time.sleep(1)  # of passes after it
    process.send_signal(number)
    found = ended(process)
    assert (found[0], found[1]) == (status, "")
    assert found[2] == f"stopped; the fit so far is in {tmp_path}/c.h5: the same command with --resume goes on\n"
    assert set(contents(tmp_path)) == {"c.h5"}
    described = call("inspect", tmp_path / "c.h5")
    assert described.status == 0
    passes = int(re.search(r"(\d+) passes", described.out)[1])
    assert passes > 0
    assert f"{tmp_path / 'c.h5'} exists: resume goes on from it" in call(*words, "1h").err
    resumed = call(*words[:5], passes + 5, *words[6:], "1h", "--resume")
    assert (resumed.status, resumed.err) == (0, "")
    assert f"{passes + 5} passes" in resumed.out
    assert set(contents(tmp_path)) == {"m.h5"}
    whole = command(*words[:5], passes + 5, *words[6:8], "--out", tmp_path / "whole.h5")
    assert ended(whole)[0] == 0
    assert load(tmp_path / "m.h5").lower_bounds_ == load(tmp_path / "whole.h5").lower_bounds_
    again = call(*words, "1h", "--resume")
    assert (again.status, again.out) == (1, "")
    assert "m.h5 exists" in again.err


@pytest.mark.parametrize(("number", "status"), SIGNALS, ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_counts_where_what_it_raises_is_dropped(number: signal.Signals, status: int) -> None:
    """Python drops what a destructor or a weak reference's callback raises, also where a signal raised it."""
    done = subprocess.run(
        [sys.executable, TESTS / "deaf_moments.py", str(int(number))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=50,  # the command would sleep for longer
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "stopped\n")


def test_a_fit_that_has_ended_is_not_made_again_nor_taken_for_another(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    words = ("fit", store, *MIXTURE, "--rows", 2000, "--out", out, "--checkpoint", tmp_path / "c.h5", "--resume")
    assert call(*words).status == 0
    before = out.read_bytes()
    again = call(*words, "--backend", "torch")  # where it is computed is no part of what it finds
    assert (again.status, again.err) == (0, "")
    assert "this fit has ended before" in again.out
    for others in (("--seed", 1), ("--tol", 0.5), ("--alpha", 0.3), ("--rows", 2001), ("--max-iter", 6)):
        refused = call(*words, *others)
        assert (refused.status, refused.out) == (1, ""), others
        assert "m.h5 exists: --overwrite replaces it" in refused.err
    others = tmp_path / "other.h5"
    assert call("extract", store.parent / "images", *NETWORK, "--seed", 1, "--layer", "1", "--out", others).status == 0
    assert "m.h5 exists" in call("fit", others, *words[2:]).err
    folder = photographs(tmp_path / "as many", 11)
    (folder / "0.png").unlink()
    assert call("extract", folder, *NETWORK, "--layer", "1", "--out", others, "--overwrite").status == 0
    assert "m.h5 exists" in call("fit", others, *words[2:]).err, "of other images of the same network"
    shutil.rmtree(folder)
    assert out.read_bytes() == before
    out.write_bytes(before[:-100])
    assert call(*words).status == 1
    assert set(contents(tmp_path)) == {"m.h5", "other.h5"}


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["--checkpoint", "{}"], "with --resume"),
        (["--checkpoint={}"], "with --resume"),
        (["--checkpoint={}", "--overwrite"], "with --resume in place of --overwrite"),
    ],
    ids=["two words", "one word", "overwriting"],
)
def test_a_stopped_fit_names_its_checkpoint_however_that_was_given(
    words: list[str], again: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = [word.format(tmp_path / "c.h5") for word in words]
    with monkeypatch.context() as patch:
        patch.setattr("fastclust.estimator.DPGMM._counted", interrupt)
        stopped = call("fit", store, *MIXTURE, "--out", tmp_path / "m.h5", *words)
    assert (stopped.status, stopped.out) == (130, "")
    assert stopped.err == f"stopped; the fit so far is in {tmp_path}/c.h5: the same command {again} goes on\n"
    assert set(contents(tmp_path)) == {"c.h5"}
    words = [word for word in words if word != "--overwrite"]
    resumed = call("fit", store, *MIXTURE, "--out", tmp_path / "m.h5", *words, "--resume")
    assert (resumed.status, resumed.err) == (0, "")


def test_one_file_is_not_both_the_model_and_the_checkpoint(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "m.h5")
    for other in ("m.h5", "link.h5", f"../{tmp_path.name}/m.h5"):
        refused = call("fit", store, *MIXTURE, "--out", tmp_path / "m.h5", "--checkpoint", tmp_path / other)
        assert (refused.status, refused.out) == (1, "")
        assert "m.h5 cannot be the model and the checkpoint: name another file with --checkpoint" in refused.err
        assert not (tmp_path / "m.h5").exists()


def test_labels_of_another_model_are_not_gone_on_with(store: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        out = tmp_path / f"{seed}.h5"
        assert call("fit", store, *MIXTURE, "--seed", seed, "--out", out).status == 0
    words = ("label", store, "--out", tmp_path / "labelled", "--model")
    assert call(*words, tmp_path / "0.h5").status == 0
    before = contents(tmp_path)
    refused = call(*words, tmp_path / "1.h5", "--resume")
    assert refused.status == 1
    assert "has labels of another model or of other features" in refused.err
    assert contents(tmp_path) == before
    folder = photographs(tmp_path / "others" / "images", 11)
    (folder / "0.png").unlink()
    (folder / "10.png").rename(folder / "0.png")
    others = tmp_path / "others" / "features.h5"
    assert call("extract", folder, *NETWORK, "--layer", "1", "--out", others).status == 0
    refused = call("label", others, *words[2:], tmp_path / "0.h5", "--resume")
    assert refused.status == 1, "other images of the same names"
    assert "has labels of another model or of other features" in refused.err
    shutil.rmtree(tmp_path / "others")
    assert contents(tmp_path) == before
    (tmp_path / "labelled" / "labels" / "3.png").write_bytes(b"cut")
    (tmp_path / "labelled" / "enlarged" / "4.png").unlink()
    resumed = call(*words, tmp_path / "0.h5", "--resume")
    assert (resumed.status, resumed.err) == (0, "")
    assert "10 images (8 from before)" in resumed.out
    assert contents(tmp_path) == before


def test_two_processes_fit_and_label_what_one_does(store: Path, tmp_path: Path) -> None:
    large = ("--model", "squeezenet1_1", "--weights", "random", "--size", 224, "--layer", "1")
    assert call("extract", store.parent / "images", *large, "--out", tmp_path / "f.h5").status == 0
    store = tmp_path / "f.h5"
    assert len(share(open_store(store).rows("1"), 0, 2)[0]) == blocks.READ_BYTES // 128
    fit = ("fit", store, *MIXTURE[:2], "--max-iter", 40, "--tol", 0, "--out")
    one = command(*fit, tmp_path / "one.h5", OMP_NUM_THREADS="1")
    two = command(*fit, tmp_path / "two.h5", torchrun=2, OMP_NUM_THREADS="1")
    for process in (one, two):
        status, out, err = ended(process)
        assert status == 0, err
        assert out.count("clusters in use") == 1
    models = [load(tmp_path / name) for name in ("one.h5", "two.h5")]
    np.testing.assert_allclose(models[1].lower_bounds_, models[0].lower_bounds_, rtol=1e-10)
    np.testing.assert_array_equal(models[1].counts_, models[0].counts_)
    assert models[1].n_iter_ == models[0].n_iter_ == 40
    label = ("label", store, "--model", tmp_path / "one.h5", "--out")
    one, two = command(*label, tmp_path / "one"), command(*label, tmp_path / "two", torchrun=2, OMP_NUM_THREADS="1")
    for process in (one, two):
        status, out, err = ended(process)
        assert status == 0, err
        assert "10 images" in out
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "two" / "labels").glob("*.png"))) == 10


def test_two_processes_extract_what_one_does_into_one_store_or_two(store: Path, tmp_path: Path) -> None:
    words = ("extract", store.parent / "images", *NETWORK, "--layer", "1", "--layer", "3", "--batch-size", 2, "--out")
    one = command(*words, tmp_path / "one.h5", OMP_NUM_THREADS="1")
    two = command(*words, tmp_path / "two.h5", torchrun=2, OMP_NUM_THREADS="1")
    each = command(*words, tmp_path / "own-{rank}.h5", torchrun=2, OMP_NUM_THREADS="1")
    for process in (one, two, each):
        status, out, err = ended(process)
        assert status == 0, err
        assert out.count("images, 1, 3, in") == 1
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    merged = call("merge", tmp_path / "own-0.h5", tmp_path / "own-1.h5", "--out", tmp_path / "merged.h5")
    assert merged.status == 0, merged.err
    expected, found = open_store(tmp_path / "one.h5"), open_store(tmp_path / "merged.h5")
    place = {image.path: index for index, image in enumerate(found.images)}
    for index, image in enumerate(expected.images):
        for layer in ("1", "3"):
            rows = found.image_rows(layer, place[image.path])
            np.testing.assert_allclose(rows, expected.image_rows(layer, index), rtol=2e-3, atol=1e-4)


def test_a_process_that_is_killed_ends_the_others_and_a_restart_goes_on(store: Path, tmp_path: Path) -> None:
    fit = ("fit", store, *MIXTURE[:2], "--max-iter", 150, "--tol", 0, "--every", "0s")

    def start(name: str, restarts: int) -> subprocess.Popen:
        files = ("--out", tmp_path / f"{name}.h5", "--checkpoint", tmp_path / f"{name}.checkpoint", "--resume")
        return command(*fit, *files, torchrun=2, restarts=restarts)

    def kill_one(name: str) -> None:
        ranks = {}
        for pid in map(int, filter(str.isdecimal, (entry.name for entry in Path("/proc").iterdir()))):
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                named = os.fsencode(str(tmp_path / f"{name}.h5")) in Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            for word in words:
                if named and word.startswith(b"RANK="):
                    ranks[int(word[5:])] = pid
        os.kill(ranks[1], signal.SIGKILL)

    stopped, restarted, whole = start("stopped", 0), start("restarted", 1), start("whole", 0)
    began = {}
    while len(began) < 2:  # each as soon as it can go on: a fit takes seconds
        for name, process in (("stopped", stopped), ("restarted", restarted)):
            if name in began:
                continue
            assert process.poll() is None, process.communicate()
            if (tmp_path / f"{name}.checkpoint").exists():
                kill_one(name)
                began[name] = time.monotonic()
        time.sleep(0.01)
    status, _, said = ended(stopped)
    assert status != 0
    assert time.monotonic() - began["stopped"] < 60
    assert re.search(r"rank\s*: 1 \(local_rank: 1\)|process 1 \(pid \d+ on", said)
    for process in (restarted, whole, start_again := start("stopped", 0)):
        status, _, said = ended(process)
        assert status == 0, said
    assert start_again.returncode == 0
    expected = load(tmp_path / "whole.h5")
    for name in ("stopped", "restarted"):
        model = load(tmp_path / f"{name}.h5")
        assert model.lower_bounds_ == expected.lower_bounds_
        np.testing.assert_array_equal(model.means_, expected.means_)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_commands_for_one_process_refuse_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refused = call("inspect", tmp_path)
    assert refused.status == 1
    assert "torchrun is for extract, fit, label" in refused.err


def test_a_sample_is_even_and_said(store: Path, tmp_path: Path) -> None:
    assert call("fit", store, *MIXTURE, "--rows", 2000, "--out", tmp_path / "m.h5").status == 0
    model, rows = load(tmp_path / "m.h5"), open_store(store).layer("1").n_rows
    assert model.counts_.sum() == pytest.approx(rows, rel=1e-12), "each counts for as many as it stands for"
    drawn = blocks.Blocks(open_store(store).rows("1"), torch.device("cpu"))
    some = drawn.take(drawn.sample(2000, np.random.RandomState(0))).numpy()
    by_hand = DPGMM(3, max_iter=5, random_state=0, weight_concentration_prior=0.2, feature_range=(0, 10))
    by_hand.fit(some, sample_weight=np.full(2000, rows / 2000))
    np.testing.assert_array_equal(model.means_, by_hand.means_)
    assert model.lower_bounds_ == by_hand.lower_bounds_
    assert model.source_["sample"] == f"2000 of {rows} rows"
    assert f"a sample: 2000 of {rows} rows" in call("inspect", tmp_path / "m.h5").out
    both = call("fit", store, store, *MIXTURE, "--out", tmp_path / "both.h5")
    assert both.status == 0
    assert f"{2 * rows} rows of 64 from 20 images" in both.out
    assert torch.is_grad_enabled()
