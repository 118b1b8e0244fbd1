"""What is around the mixture: rows from the host's memory, images through a network, and decoding them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks import passes
from benchmarks.first_contact.job import Write
from benchmarks.first_contact.speed import case_of
from benchmarks.timing import short
from fastclust import blocks, decode, engine, kernels
from fastclust.blocks import Blocks
from fastclust.store import ImageRecord

SIZE = 224
BATCHES = (8, 64, 256)
LAYER = "conv1_2"


def rows(write: Write, device: str, rows: int, kind: Any, stored: str, backend: str, scratch: str) -> None:
    """Write the GB/s of rows that come from the host on every pass, bare and with E-step and sums."""
    there = torch.device(device)
    case = case_of(kind, stored, backend, rows, device=device)
    problem = passes.problem_of(case, there, Path(scratch))
    source = problem.rows.cpu().numpy()
    with mock.patch.object(blocks, "KEPT_SHARE", 0.0):  # they do not stay
        given = Blocks(source, there)

        def bare() -> None:
            for block in given:
                block[:1].sum()

        def a_pass() -> None:
            plan = module.prepare(coefficients, problem.frame, torch.float32, "high")
            for block in given:
                plan.add(block)
            plan.result()

        _rate(write, "rows from the host", there, bare, source.nbytes)
        try:
            module = kernels.usable(backend, there)
            coefficients = engine.coefficients(problem.posterior)
            _rate(write, f"a pass of {backend} over them", there, a_pass, source.nbytes)
        except Exception as error:
            write({"what": f"a pass of {backend} over them", "failed": f"{type(error).__name__}: {error}"[:300]})


def _rate(write: Write, what: str, device: torch.device, work: Any, nbytes: int) -> None:
    work()
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    taken = time.perf_counter() - began
    write({"what": what, "gbytes_per_second": short(nbytes / taken / 1e9), "ms": short(taken * 1e3)})


def network(write: Write, device: str, images: int) -> None:
    """Write the images/s of VGG-19 to conv1_2, with random weights, from decoded images, kept in float16."""
    from fastclust.forward import Buffers, Forward
    from fastclust.networks import Network, random_state

    there = torch.device(device)
    transform = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    pixels = list(np.random.default_rng(0).integers(0, 256, size=(min(256, images), SIZE, SIZE, 3), dtype=np.uint8))
    for batch in BATCHES:
        about: dict[str, Any] = {"what": f"VGG-19 to {LAYER}, batches of {batch}"}
        if batch > len(pixels):
            write(about | {"left_out": f"there are {len(pixels)} images"})
            continue
        try:
            net = Network("vgg19", [LAYER])
            net.load(random_state("vgg19", 0), "random", there)
            forward, buffers = Forward(net, transform, "float16", there), Buffers(there)
            for _ in range(2):
                forward(pixels[:batch], buffers)
            _wait(there)
            began, done = time.perf_counter(), 0
            while done < images and time.perf_counter() - began < 4:
                forward(pixels[:batch], buffers)
                done += batch
            _wait(there)
            write(about | {"images_per_second": short(done / (time.perf_counter() - began))})
        except Exception as error:
            write(about | {"failed": f"{type(error).__name__}: {error}"[:300]})


def decoding(write: Write, device: str, images: int) -> None:
    """Write the images/s of decoding JPEG photographs of 500 x 375 pixels, in threads and in processes."""
    transform = {"resize": 256, "crop": SIZE, "interpolation": "bilinear", "antialias": True}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        few = []
        for index in range(min(images, 64)):
            coarse = Image.fromarray(random.integers(0, 256, size=(47, 63, 3), dtype=np.uint8))
            few.append(Path(folder) / f"{index}.jpg")
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(few[-1], quality=90)
        records = [ImageRecord(str(path), path.name, "", "", (375, 500), (SIZE, SIZE)) for path in few]
        for workers in (0, decode.PROCESSES):
            with decode.Decoder(transform, workers, torch.device(device)) as decoder:
                for future in [decoder.submit(record) for record in records]:  # start what decodes
                    future.result()
                began = time.perf_counter()
                every = [decoder.submit(records[index % len(records)]) for index in range(images)]
                wrong = [text for text in (future.result()[0] for future in every) if isinstance(text, str)]
                taken = time.perf_counter() - began
            about = {"what": f"decoding in {f'{workers} processes' if workers else f'{decode.THREADS} threads'}"}
            write(about | ({"failed": wrong[0]} if wrong else {"images_per_second": short(images / taken)}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
