# SPDX-License-Identifier: Apache-2.0
"""Room tests: frame to label on the RTL, crop and resize in the load path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import host
import sim
from hwgen.arch import Bundle
from hwgen.arch.cascade import CascadeRule
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.crop import ordered_box, resize, square_crop
from hwgen.arch.estimate import MemoryTiming, estimate_cycles
from hwgen.arch.frames import frame_program
from hwgen.arch.interpreter import GoldenRun
from tests.support.pictures import network
from tests.support.simulators import SMALL_BOARD

ACCESS_CYCLES = 30
"""Of the accelerator's clock: a register access through a Zynq's GP0, about 0.2 us at 150 MHz."""
BYTE_CYCLES = 1


@pytest.fixture(scope="module")
def bundles() -> tuple[Bundle, Bundle]:
    predictor = network(16, outputs=4)
    placed = predictor.placement
    classifier = network(
        24,
        outputs=6,
        synapse_row=placed.synapse_row + placed.synapse_rows,
        tap_entry=placed.tap_entry + placed.tap_entries,
    )
    return predictor, classifier


def numbers_of(golden: GoldenRun, picture: np.ndarray) -> np.ndarray:
    """Return what a network says of a picture of any size, resized here."""
    bundle = golden.bundle
    small = resize(picture, bundle.input.shape[1])
    (codes,) = golden.run(bundle.quantize_input(bundle.preprocess(small)))
    return bundle.dequantize_output(0, codes)


@pytest.mark.parametrize("stall_percent", [0, 30])
def test_boxes(bundles: tuple[Bundle, Bundle], stall_percent: int, rng: Any) -> None:
    bundle = bundles[1]
    golden = GoldenRun(bundle)
    picture = rng.integers(0, 256, (70, 93, 3), dtype=np.uint8)
    boxes = [(0, 0, 70, 93), (3, 5, 48, 48), (9, 14, 24, 24), (22, 51, 35, 17), (69, 92, 1, 1)]
    boxes += [(1, 2, 7, 80)]
    with (
        sim.SimulatedBoard(bundle, stall_percent=stall_percent) as board,
        host.Accelerator(bundle, board) as accelerator,
        host.Frame(70, 93, 3, board) as frame,
    ):
        frame.write(picture)
        for y0, x0, height, width in boxes:
            found = accelerator.run_box(frame, y0, x0, height, width)
            wanted = numbers_of(golden, picture[y0 : y0 + height, x0 : x0 + width])
            np.testing.assert_array_equal(found, wanted)
            if not stall_percent:
                made = frame_program(bundle, height, width, frame.pitch_bytes)
                record = accelerator.last_run
                assert record is not None
                cycles = estimate_cycles(made.program, bundle.config, MemoryTiming())
                # Which rows end a line is spread evenly in the estimate.
                assert abs(cycles - record.cycles) <= 0.01 * record.cycles + 30


@pytest.mark.parametrize("resizer", ["accelerator", "host"])
def test_frame_to_label(bundles: tuple[Bundle, Bundle], resizer: str, rng: Any) -> None:
    predictor, classifier = bundles
    golden = [GoldenRun(bundle) for bundle in bundles]
    with (
        sim.SimulatedBoard(predictor) as board,
        host.Accelerator(predictor, board) as first,
        host.Accelerator(classifier, board) as second,
    ):
        pipeline = host.CroppedClassifier(first, second, resize=resizer)
        for shape in ((64, 64, 3), (60, 81, 3)):
            frame = rng.integers(0, 256, shape, dtype=np.uint8)
            found = pipeline.run(frame)
            box = ordered_box(numbers_of(golden[0], frame))
            y0, x0, side = square_crop(box, *shape[:2])
            assert found.crop == (y0, x0, side)
            wanted = numbers_of(golden[1], frame[y0 : y0 + side, x0 : x0 + side])
            np.testing.assert_array_equal(found.logits, wanted)
        pipeline.close()


@pytest.mark.parametrize("glances", [0, 1])
def test_cascade(bundles: tuple[Bundle, Bundle], rng: Any, glances: int) -> None:
    predictor, classifier = bundles
    larger = network(32, outputs=6)
    rule = CascadeRule(thresholds=(0.3,), alphas=(0.5,))
    cascade = CascadeBundle("cascade", rule, (classifier, larger), predictor, glances)
    frames = rng.integers(0, 256, (4, 50, 66, 3), dtype=np.uint8)
    found = {}
    with sim.SimulatedBoard(predictor) as board:
        for resizer in ("accelerator", "host"):
            with host.CascadeClassifier(cascade, board, resize=resizer) as classify:
                found[resizer] = [classify.run(frame) for frame in frames]
    for one, other in zip(found["accelerator"], found["host"], strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        assert (one.label, one.crop, one.stages) == (other.label, other.crop, other.stages)
        assert (one.crop is None) == (glances == one.stages)


@contextmanager
def counted(board: sim.SimulatedBoard) -> Iterator[Counter[str]]:
    """Count what the processor does: register accesses, and bytes of buffers it touches.

    Looks at STATUS while a run goes on are waiting, not work: an interrupt would take their place.
    """
    seen: Counter[str] = Counter()
    read, write = board.read_registers, board.write_registers
    flush, invalidate = board.flush, board.invalidate

    def count_read(address: int, length: int) -> bytes:
        raw = read(address, length)
        waiting = address == board.register_base + 0x14 and raw[0] & 2
        seen["accesses"] += not waiting
        return raw

    def count_write(address: int, data: bytes) -> None:
        seen["accesses"] += 1
        write(address, data)

    def count_flush(bo: Any, offset: int, pointer: int, size: int) -> None:
        seen["bytes"] += size
        flush(bo, offset, pointer, size)

    def count_invalidate(bo: Any, offset: int, pointer: int, size: int) -> None:
        seen["bytes"] += size
        invalidate(bo, offset, pointer, size)

    patched = {
        "read_registers": count_read,
        "write_registers": count_write,
        "flush": count_flush,
        "invalidate": count_invalidate,
    }
    for name, function in patched.items():
        setattr(board, name, function)
    try:
        yield seen
    finally:
        for name in patched:
            delattr(board, name)


def test_the_processor_has_little_to_do(bundles: tuple[Bundle, Bundle], rng: Any) -> None:
    predictor, classifier = bundles
    with (
        sim.SimulatedBoard(predictor) as board,
        host.Accelerator(predictor, board) as first,
        host.Accelerator(classifier, board) as second,
        host.Frame(240, 320, 3, board) as frame,
    ):
        frame.write(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
        pipeline = host.CroppedClassifier(first, second)
        pipeline.run(frame)  # makes the programs for boxes of this size
        with counted(board) as seen:
            found = pipeline.run(frame)
        work = seen["accesses"] * ACCESS_CYCLES + seen["bytes"] * BYTE_CYCLES
        print(f"{seen['accesses']} accesses, {seen['bytes']} bytes, {found.cycles} cycles")
        assert seen["accesses"] > 20  # they were counted
        assert seen["bytes"] < 1000  # of a frame of 230,400
        assert work < 0.05 * found.cycles


def test_another_resampler(rng: Any) -> None:
    """Refuse a box that is too wide for the machine before anything runs."""
    config = replace(SMALL_BOARD, resampler_row_bytes=64)
    bundle = network(16, config=config)
    device = sim.SimulatedBoard(bundle)
    with device as board, host.Accelerator(bundle, board) as accelerator:
        with host.Frame(20, 20, 3, board) as frame:
            frame.write(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            accelerator.run_box(frame, 0, 0, 19, 19)
            with pytest.raises(host.FrameError, match="at most 19 pixels wide"):
                accelerator.run_box(frame, 0, 0, 20, 20)
