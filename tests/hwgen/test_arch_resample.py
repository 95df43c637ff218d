# SPDX-License-Identifier: Apache-2.0
"""Room tests: the resampler's tables, and programs that look at a box of a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import hwgen
from hwgen import models
from hwgen.arch import isa, resample
from hwgen.arch.bundle import BASE_FRAME, BASE_OUTPUT, BASE_TABLES
from hwgen.arch.crop import resize, resize_weights
from hwgen.arch.frames import FrameError, code_table, frame_program
from hwgen.arch.interpreter import GoldenRun, Interpreter, MachineError, Memory
from hwgen.arch.registers import ErrorCode
from tests.support.pictures import network
from tests.support.simulators import SMALL_BOARD

SHAPES = [(s, t) for s in (1, 2, 3, 7, 24, 33) for t in (1, 2, 5, 24, 31)]
SHAPES += [(640, 32), (1365, 3), (1000, 1), (7, 1000), (480, 64), (600, 599)]


def matrix(steps: np.ndarray, source: int, target: int) -> np.ndarray:
    """Return what steps do, as a weight table."""
    fields = resample.unpack_steps(steps)
    table = np.zeros((target, source), dtype=np.int64)
    pointer, output = -1, 0
    for weight, previous, advance, last in zip(*fields.values(), strict=True):
        pointer += advance
        assert 0 <= pointer - previous and pointer < source
        table[output, pointer - previous] += weight
        output += last
    assert output == target
    return table


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_steps_do_what_the_weights_say(source: int, target: int) -> None:
    steps = resample.resize_steps(source, target)
    np.testing.assert_array_equal(matrix(steps, source, target), resize_weights(source, target))
    assert resample.unpack_steps(steps)["advance"][0] == 1
    assert len(steps) <= max(source + target, 2 * target)


@pytest.mark.parametrize(("source", "target"), [(24, 7), (7, 24), (16, 16)])
def test_strips_take_up_where_the_strip_before_ended(source: int, target: int) -> None:
    steps = resample.resize_steps(source, target)
    at = 0
    for first in range(0, target, 3):
        last = min(first + 3, target)
        begin, count, pointer = resample.steps_of_outputs(steps, first, last)
        assert begin == at
        fields = resample.unpack_steps(steps[begin : begin + count])
        assert fields["last"].sum() == last - first and fields["last"][-1] == 1
        assert pointer == resample.unpack_steps(steps[:begin])["advance"].sum()
        at += count
    assert at == len(steps)


def run_box(bundle, frame: np.ndarray, pitch: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Run a frame program in the interpreter; return the output's codes."""
    y0, x0, height, width = box
    made = frame_program(bundle, height, width, pitch)
    machine = Interpreter(bundle.config)
    golden = GoldenRun(bundle, machine)  # its setup puts the constants on chip
    golden.run(np.zeros(bundle.input.shape[1:] + bundle.input.shape[:1], dtype=np.int8))
    size = isa.INSTRUCTION_BYTES
    program_at, frame_at = 0, -(-(len(made.program) + len(made.tables)) // size) * size
    constants_at = -(-(frame_at + frame.size) // size) * size
    output_at = -(-(constants_at + len(bundle.constants)) // size) * size
    memory = np.zeros(output_at + bundle.output_bytes, dtype=np.uint8)
    whole = made.program + made.tables
    memory[: len(whole)] = np.frombuffer(whole, np.uint8)
    memory[frame_at : frame_at + frame.size] = frame.reshape(-1)
    constants = np.frombuffer(bundle.constants, np.uint8)
    memory[constants_at : constants_at + len(constants)] = constants
    bases = {
        0: constants_at,
        BASE_OUTPUT: output_at,
        BASE_TABLES: len(made.program),
        BASE_FRAME: frame_at + y0 * pitch + x0 * bundle.input.shape[0],
    }
    machine.execute(Memory(memory), program_at, len(made.program) // size, bases)
    (codes,) = bundle.unpack_outputs(memory[output_at:])
    return codes


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_box_equals_its_resized_picture(channels: int, rng: np.random.Generator) -> None:
    bundle = network(channels=channels)
    golden = GoldenRun(bundle)
    width = 41
    pitch = -(-width * channels // 8) * 8 + 8
    frame = rng.integers(0, 256, (50, pitch), dtype=np.uint8)
    pixels = frame[:, : width * channels].reshape(50, width, channels)
    for box in ((0, 0, 50, 41), (3, 5, 24, 24), (7, 2, 33, 17), (49, 40, 1, 1), (1, 1, 6, 30)):
        y0, x0, height, width_ = box
        part = pixels[y0 : y0 + height, x0 : x0 + width_]
        square = resize(part, 24)
        codes = bundle.quantize_input(bundle.preprocess(square))
        np.testing.assert_array_equal(run_box(bundle, frame, pitch, box), golden.run(codes)[0])


def test_codes_are_the_preprocessing(rng: np.random.Generator) -> None:
    bundle = network()
    picture = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    table = code_table(bundle)
    assert table is not None
    np.testing.assert_array_equal(
        table[np.arange(3), picture], bundle.quantize_input(bundle.preprocess(picture))
    )
    assert code_table(replace(bundle, mean=None, std=None)) is None


def test_what_cannot_be_resized_is_refused() -> None:
    bundle = network()
    none = replace(bundle, config=replace(SMALL_BOARD, resampler_row_bytes=0))
    for given, size, message in (
        (none, (8, 8, 24), "no resampler"),
        (replace(bundle, mean=None, std=None), (8, 8, 24), "must take uint8 pictures"),
        (replace(bundle, batch=2), (8, 8, 24), "one image at once, not 2"),
        (bundle, (0, 8, 24), "at least one pixel, not 0 x 8"),
        (bundle, (8, 8, 25), "multiple of 8 bytes apart, and 24 or more, not 25"),
        (bundle, (8, 9, 24), "27 or more, not 24"),
        (bundle, (8, 2000, 6000), "at most 680 pixels wide"),
        (bundle, (1023, 8, 24), "takes 1044 steps to resize to 24 x 24"),
    ):
        with pytest.raises(FrameError, match=message):
            frame_program(given, *size)
    wide = network(channels=5)
    with pytest.raises(FrameError, match="at most 4 channels, not 5"):
        frame_program(wide, 8, 8, 40)


def test_a_frame_that_is_not_there_is_an_error(rng: np.random.Generator) -> None:
    bundle = network()
    frame = rng.integers(0, 256, (8, 24), dtype=np.uint8)
    with pytest.raises(MachineError) as found:
        run_box(bundle, frame, 1 << 20, (0, 0, 8, 8))
    assert found.value.code == ErrorCode.READ_DECERR


def test_models_of_the_zoo_take_boxes() -> None:
    torch.manual_seed(0)
    for make, side in ((models.demo_classifier, 64), (lambda n: models.lenet(n, 32), 32)):
        images = torch.randn(4, 3, side, side)
        bundle = hwgen.compile(
            make(10).eval(), images[:1], images, preprocess=((0.5,) * 3, (0.25,) * 3)
        )
        made = frame_program(bundle, 100, 120, 360)
        assert len(made.program) == len(bundle.program) + 3 * isa.INSTRUCTION_BYTES


LOAD = {
    "base": BASE_FRAME,
    "rows": 2,
    "row_bytes": 4,
    "words_per_row": 1,
    "step_bytes": 8,
    "take_bytes": 8,
    "resample": 1,
    "channels": 1,
    "source_bytes": 4,
    "pitch_bytes": 8,
    "row_steps": 2,
    "column_steps": 4,
}


@pytest.mark.parametrize(
    ("place", "changes", "code"),
    [
        (0, {}, None),
        (0, {"row_steps": 3}, ErrorCode.BAD_FIELD),  # a step behind the last row's
        (0, {"row_steps": 1}, ErrorCode.BAD_FIELD),
        ((1 << 32) - 16, {}, None),
        ((1 << 32) - 12, {}, ErrorCode.ADDRESS_RANGE),  # as the machine has it: by whole beats
        ((1 << 32) - 8, {}, ErrorCode.ADDRESS_RANGE),
    ],
)
def test_boxes_that_the_machine_stops_at(place: int, changes: dict, code: ErrorCode | None) -> None:
    machine = Interpreter(SMALL_BOARD)
    one = resample.STEP.pack({"weight": 256, "advance": 1, "last": 1})
    steps = machine.tables.view("<u2")
    steps[:3] = one, one, resample.STEP.pack({"weight": 1, "advance": 1})
    steps[4 * resample.COLUMN_STEPS_AT :][:4] = one
    program = isa.encode(isa.Opcode.LOAD, **(LOAD | changes)) + isa.encode(isa.Opcode.END)
    window = (1 << 32) - 256
    memory = np.zeros(256, dtype=np.uint8)
    memory[: len(program)] = np.frombuffer(program, np.uint8)
    bases = {BASE_FRAME: place or window + 192}
    if code is None:
        machine.execute(Memory(memory, window), window, 2, bases)
        return
    with pytest.raises(MachineError) as found:
        machine.execute(Memory(memory, window), window, 2, bases)
    assert found.value.code == code
