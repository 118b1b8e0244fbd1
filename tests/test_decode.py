"""Decoding in threads and processes: the same pixels, and one line where a process dies; forward passes in buffers."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_extract import SQUEEZE, photographs
from test_images import broken, photograph

from fastclust import forward, reader
from fastclust.decode import Batches, Decoder, groups
from fastclust.extract import ExtractReport, extract
from fastclust.forward import Buffers, Forward, arithmetic
from fastclust.networks import Network, random_state
from fastclust.plan import make_transform
from fastclust.store import LEFT_OUT, ImageRecord, open_store

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def record(path: Path, size: tuple[int, int] = (64, 64)) -> ImageRecord:
    return ImageRecord(str(path), path.stem, "", "", size, size)


def test_groups_are_of_one_size_in_the_lists_order() -> None:
    sizes = [(8, 8), (9, 9), (8, 8), (0, 0), (8, 8), (9, 9), (8, 8)]
    images = [record(Path(f"{place}.png"), size) for place, size in enumerate(sizes)]
    assert groups(images, 2) == [[0, 2], [1, 5], [4, 6]]


def test_processes_give_the_same_bytes_and_reasons_as_threads(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 5)
    broken(folder)
    Image.fromarray(photograph()).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-100])
    for workers in (0, 2):
        report = extract([folder], out=tmp_path / f"{workers}.h5", workers=workers, **SQUEEZE)
        assert report.seconds["decode"] > 0
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()
    reasons = [image.reason for image in open_store(tmp_path / "2.h5").images if image.state == LEFT_OUT]
    assert any("truncated" in reason for reason in reasons)
    with pytest.raises(ValueError, match="workers -1: expected 0 for threads"):
        extract([folder], out=tmp_path / "f.h5", workers=-1, **SQUEEZE)
    assert not (tmp_path / "f.h5").exists()


def test_a_worker_that_dies_is_one_line_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = photographs(tmp_path / "a", 9), tmp_path / "f.h5"
    program = tmp_path / "mortal.py"
    source = Path(str(reader.__file__)).read_text()
    dying = (
        "    if '06.png' in path:\n        import os\n        os.kill(os.getpid(), 9)\n    start = time.perf_counter()"
    )
    assert source.count("    start = time.perf_counter()") == 1
    program.write_text(source.replace("    start = time.perf_counter()", dying))
    with monkeypatch.context() as patch:
        patch.setattr(reader, "__file__", str(program))
        with pytest.raises(RuntimeError, match=r"a worker process died .* while it decoded .*06\.png") as caught:
            extract([folder], out=out, workers=1, batch_size=2, **SQUEEZE)
    assert "\n" not in str(caught.value)
    assert len(open_store(out).finished) >= 2
    assert extract([folder], out=out, workers=1, batch_size=2, resume=True, **SQUEEZE).done == 9


@pytest.mark.skipif(not hasattr(os, "kill") or os.name != "posix", reason="POSIX signals")
def test_a_worker_outlives_neither_its_pipe_nor_an_interrupt_of_its_group(tmp_path: Path) -> None:
    photographs(tmp_path, 1)
    command = [sys.executable, "-P", str(reader.__file__)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None and worker.stdout is not None
    for _ in range(2):
        transform = {"resize": None}
        pickle.dump((str(tmp_path / "00.png"), (70, 90), transform), worker.stdin)
        worker.stdin.flush()
        image, seconds = pickle.load(worker.stdout)
        assert np.array_equal(image, photograph(70, 90, 0)) and seconds > 0
        worker.send_signal(signal.SIGINT)
        time.sleep(0.05)
    worker.stdin.close()
    assert worker.wait(10) == 0
    worker.stdout.close()


def test_an_error_in_a_worker_is_raised_here(tmp_path: Path) -> None:
    photographs(tmp_path, 1)
    transform = make_transform("squeezenet1_1", 64)
    with Decoder({**transform, "interpolation": "no such"}, 1, CPU) as decoder, pytest.raises(KeyError):
        decoder.submit(record(tmp_path / "00.png")).result()


def test_batches_keep_what_there_is_room_for(tmp_path: Path) -> None:
    folder = photographs(tmp_path, 4)
    images = [record(path) for path in sorted(folder.iterdir())]
    with Decoder(make_transform("squeezenet1_1", 64), None, CPU) as decoder:
        batches = Batches(decoder, images, [[0, 1], [2, 3]], wrap=True, keep=2 * 64 * 64 * 3)
        first = batches[0][0]
        batches[1]
        for path in folder.iterdir():
            path.unlink()
        again, gone = batches[0]
        assert not gone and all(np.array_equal(again[index], first[index]) for index in (0, 1))
        batches[1]  # was decoded ahead
        assert set(batches[1][1]) == {2, 3}


def ready(dtype: str, device: torch.device = CPU, layers: tuple[str, ...] = ("2", "classifier.1")) -> Forward:
    network = Network("squeezenet1_1", layers)
    network.load(random_state("squeezenet1_1", 0), "random", CPU)
    return Forward(network, make_transform("squeezenet1_1", 64), dtype, device)


def pixels(count: int = 3) -> list[np.ndarray]:
    return [photograph(64, 64, seed) for seed in range(count)]


def test_pixels_are_normalised_as_torchvision_does_it() -> None:
    from torchvision.transforms import functional

    transform = make_transform("squeezenet1_1", 64)
    inputs = ready("float32")._normalised(pixels())
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for image, values in zip(pixels(), inputs, strict=True):
        expected = functional.normalize(functional.to_tensor(image), transform["mean"], transform["std"])
        assert torch.equal(values, expected)


def test_values_are_cast_into_memory_that_is_used_again() -> None:
    run, buffers = ready("float16"), Buffers(CPU)
    exact = ready("float32")(pixels(), Buffers(CPU))
    first = run(pixels(), buffers)
    where = {name: values.data_ptr() for name, values in first.items()}
    for name, values in first.items():
        assert values.dtype == torch.float16 and values.is_contiguous()
        assert torch.equal(values, exact[name].half())
    fewer = run(pixels(2), buffers)
    assert {name: values.data_ptr() for name, values in fewer.items()} == where
    assert [len(values) for values in fewer.values()] == [2, 2]


def test_on_cuda_half_precision_is_used_for_half_and_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's branches, with autocast and flags of the CPU in place of CUDA's."""
    assert arithmetic(CPU, "float16") == arithmetic(CUDA, "float32") == "float32, channels last"
    assert arithmetic(CUDA, "float16") == "float16 autocast, channels last"
    run = ready("float16")
    exact = run(pixels(), Buffers(CPU))["2"].clone()
    run._half = True
    halved = run(pixels(), Buffers(CPU))["2"]
    assert halved.dtype == torch.float16
    assert 0 < (halved - exact).abs().max() < 0.01 * exact.abs().max()
    seen = {}
    with forward._repeatable(CUDA):
        seen = {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32}
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert seen == {"conv": False, "matmul": False}
    assert torch.backends.cudnn.allow_tf32, "as it was"


def test_what_overflows_in_half_precision_is_computed_in_float32() -> None:
    network = Network("squeezenet1_1", ["1", "2"])
    state = random_state("squeezenet1_1", 0)
    state["features.0.weight"] *= 1e6
    state["features.3.squeeze.weight"] *= 1e-6
    network.load(state, "random", CPU)
    run = Forward(network, make_transform("squeezenet1_1", 64), "float16", CPU)
    expected = {name: values.clone() for name, values in run(pixels(), Buffers(CPU)).items()}
    assert expected["1"].dtype == torch.float32, "what float16 cannot hold is handed on for the store to name"
    assert expected["2"].dtype == torch.float16
    run._half = True
    again = run(pixels(), Buffers(CPU))
    assert all(torch.equal(again[name], values) for name, values in expected.items())


def test_another_arithmetic_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photographs(tmp_path / "a", 2)
    extract([folder], out=tmp_path / "f.h5", **SQUEEZE)
    monkeypatch.setattr("fastclust.plan.arithmetic", lambda device, dtype: "float16 autocast, channels last")
    with pytest.raises(ValueError, match="its arithmetic is 'float32, channels last', now 'float16 autocast"):
        extract([folder], out=tmp_path / "f.h5", resume=True, **SQUEEZE)


def test_rates_and_shares_are_those_of_the_stream(tmp_path: Path) -> None:
    remarks: list[str] = []
    report = extract(
        [photographs(tmp_path / "a", 5)],
        out=tmp_path / "f.h5",
        progress=lambda done, total, remark: remarks.append(remark),
        **{**SQUEEZE, "batch_size": 2},
    )
    assert report.streamed == 5
    store = open_store(tmp_path / "f.h5")
    assert report.nbytes == sum(part.nbytes for layer in store.layers for part in store.rows(layer))
    stream = report.seconds["stream"]
    assert 0 < stream < report.seconds["total"]
    assert report.rates["images_per_second"] == pytest.approx(5 / stream)
    assert report.rates["megabytes_per_second"] == pytest.approx(report.nbytes / 1e6 / stream)
    assert 0.3 < sum(report.shares.values()) <= 1
    assert len(remarks) == 3 and all(remark.startswith("images, ") and remark.endswith(" MB/s") for remark in remarks)
    nothing: Any = ExtractReport()
    assert set(nothing.rates.values()) == set(nothing.shares.values()) == {0.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's fallocate")
def test_a_new_store_has_its_place_on_the_disk(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract([photographs(tmp_path / "a", 20)], out=tmp_path / "f.h5", progress=stop, **{**SQUEEZE, "size": 200})
    status = (tmp_path / "f.h5").stat()
    assert status.st_blocks * 512 >= status.st_size


@pytest.mark.parametrize(
    "model", ["mobilenet_v3_small", "efficientnet_b0", "googlenet", "regnet_y_400mf", "densenet121"]
)
def test_channels_last_changes_rounding_alone(model: str) -> None:
    state = random_state(model, 1)
    network = Network(model, ["2", "8"])
    network.load(state, "random", CPU)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        last = network(images.contiguous(memory_format=torch.channels_last))
        network._runner.to(memory_format=torch.contiguous_format)
        first = network(images)
    for name, values in last.items():
        torch.testing.assert_close(values, first[name], rtol=1e-3, atol=1e-4 * float(first[name].abs().max()))
