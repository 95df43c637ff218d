# SPDX-License-Identifier: Apache-2.0
"""The tests room: what goes wrong on the simulated board is typed, and the board stays usable."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

import host
from hwgen.arch import Bundle, GoldenRun, isa
from hwgen.arch.isa import Opcode
from hwgen.arch.registers import ErrorCode
from hwgen.backends import program
from sim import SimulatedBoard
from tests.support.quantized_graphs import every_operation
from tests.support.simulators import SMALL_BOARD as CONFIG

WATCHDOG_CYCLES = 3000


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    """Give one small board for the whole module: every test leaves it usable."""
    with SimulatedBoard(CONFIG) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Compile a network with every operation."""
    return program.emit(every_operation(np.random.default_rng(0), 3, 9, 8), CONFIG)


def opened(bundle: Bundle, board: SimulatedBoard) -> host.Accelerator:
    """Open a driver with a short watchdog."""
    return host.Accelerator(bundle, board, watchdog_cycles=WATCHDOG_CYCLES, timeout_s=20)


def assert_works(accelerator: host.Accelerator, attempts: int = 1) -> None:
    """Run an image; compare every output with the golden model."""
    bundle = accelerator.bundle
    codes = np.random.default_rng(1).integers(-128, 128, (9, 8, 3)).astype(np.int8)
    for got, want in zip(
        accelerator.run_outputs_int8(codes), GoldenRun(bundle).run(codes), strict=True
    ):
        assert np.array_equal(got, want)
    assert accelerator.last_run is not None
    assert accelerator.last_run.attempts == attempts


@pytest.mark.parametrize("kind", ["read_slverr", "read_decerr", "write_slverr", "write_decerr"])
def test_bus_error(bundle: Bundle, board: SimulatedBoard, kind: str) -> None:
    """An error response once is retried; one that stays is a BusError that names it."""
    memory = board.harness
    everywhere = (memory.memory_base, len(memory.memory))
    with opened(bundle, board) as accelerator:
        assert_works(accelerator)
        board.inject_fault(kind, *everywhere, count=1)
        assert_works(accelerator, attempts=2)
        board.inject_fault(kind, *everywhere)
        try:
            with pytest.raises(host.BusError, match=kind.upper()):
                assert_works(accelerator)
        finally:
            board.clear_faults()
        assert_works(accelerator)


@pytest.mark.parametrize("kind", ["read_hang", "write_hang"])
def test_memory_that_does_not_answer(bundle: Bundle, board: SimulatedBoard, kind: str) -> None:
    """A bus that hangs ends in a typed error, and the board works once it answers again."""
    memory = board.harness
    with opened(bundle, board) as accelerator:
        board.inject_fault(kind, memory.memory_base, len(memory.memory))
        try:
            with pytest.raises((host.NoProgress, host.AcceleratorTimeout)):
                assert_works(accelerator)
        finally:
            board.clear_faults()
        assert_works(accelerator)


def unknown_opcode() -> bytes:
    """Return a well-formed instruction of an opcode that does not exist."""
    body = isa.HEADER.pack({"opcode": 9}).to_bytes(60, "little")
    return body + zlib.crc32(body).to_bytes(4, "little")


def damaged() -> bytes:
    """Return an END with a flipped bit."""
    data = bytearray(isa.encode(Opcode.END))
    data[7] ^= 16
    return bytes(data)


@pytest.mark.parametrize("power", [True, False], ids=["keeps power", "loses power"])
@pytest.mark.parametrize("accesses", [0, 12, 20])
def test_pulled_out(
    bundle: Bundle,
    board: SimulatedBoard,
    power: bool,
    accesses: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Registers that can't be reached any more are a TransportError; back again, it works."""
    read, left = board.read_registers, accesses

    def pulled(address: int, length: int) -> bytes:
        nonlocal left
        if left == 0:
            raise OSError(5, "Input/output error")
        left -= 1
        return read(address, length)

    with opened(bundle, board) as accelerator:
        board.reset_hardware()  # so that the run begins with the setup program
        with monkeypatch.context() as patch:
            patch.setattr(board, "read_registers", pulled)
            with pytest.raises(host.TransportError, match="Input/output error"):
                assert_works(accelerator)
        if not power:
            board.reset_hardware()
            board.harness.memory[:] = 0xA5
        assert_works(accelerator)


SUM = {"mode": 3, "tap_count": 1, "output_height": 1, "output_width": 1, "input_height": 1}
SUM |= {"input_width": 1}


@pytest.mark.parametrize(
    ("error", "code", "instruction"),
    [
        (host.ProgramError, ErrorCode.BAD_OPCODE, unknown_opcode()),
        (host.ChecksumError, ErrorCode.INSTRUCTION_CHECKSUM, damaged()),
        (
            host.ProgramError,
            ErrorCode.ADDRESS_RANGE,
            isa.encode(Opcode.COMPUTE, **SUM, output_address=CONFIG.scratchpad_words),
        ),
        (
            host.ProgramError,
            ErrorCode.ADDRESS_RANGE,
            isa.encode(Opcode.COMPUTE, **SUM, input_start=CONFIG.scratchpad_words),
        ),
        (
            host.ProgramError,
            ErrorCode.ADDRESS_RANGE,
            isa.encode(Opcode.COMPUTE, **SUM, tap_address=CONFIG.tap_entries),
        ),
        (
            host.ProgramError,
            ErrorCode.ADDRESS_RANGE,
            isa.encode(
                Opcode.STORE, base=2, rows=1, words_per_row=2, source=CONFIG.scratchpad_words - 1
            ),
        ),
        (host.ProgramError, ErrorCode.BAD_FIELD, isa.encode(Opcode.LOAD)),
        (host.NoProgress, ErrorCode.NO_PROGRESS, isa.encode(Opcode.STORE, wait_load=1)),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else "",
)
def test_wrong_program(
    bundle: Bundle,
    board: SimulatedBoard,
    error: type[host.RunStopped],
    code: ErrorCode,
    instruction: bytes,
) -> None:
    """A program that goes wrong stops with its own code and instruction; the next bundle runs."""
    wrong = dataclasses.replace(bundle, program=instruction + isa.encode(Opcode.END))
    with opened(wrong, board) as accelerator:
        codes = np.zeros((9, 8, 3), np.int8)
        with pytest.raises(error, match=code.name) as caught:
            accelerator.run_outputs_int8(codes)
        assert (caught.value.code, caught.value.instruction) == (code, 0)
    with opened(bundle, board) as accelerator:
        assert_works(accelerator)


def test_program_without_end(bundle: Bundle, board: SimulatedBoard) -> None:
    """A program that runs past its length is stopped."""
    endless = dataclasses.replace(bundle, program=bundle.program[: -isa.INSTRUCTION_BYTES])
    with opened(endless, board) as accelerator:
        with pytest.raises(host.ProgramError, match="PROGRAM_OVERRUN"):
            accelerator.run_outputs_int8(np.zeros((9, 8, 3), np.int8))
    with opened(bundle, board) as accelerator:
        assert_works(accelerator)


def test_bundle_for_another_machine(board: SimulatedBoard) -> None:
    """A bundle compiled for another configuration is refused before anything runs."""
    other = dataclasses.replace(CONFIG, synapse_rows=512)
    stranger = program.emit(every_operation(np.random.default_rng(0), 3, 9, 8), other)
    with pytest.raises(host.DigestMismatch, match=f"{other.digest():016x}"):
        host.Accelerator(stranger, board)
    assert board.allocated_bytes == 0


def test_random_stalls_change_nothing(bundle: Bundle) -> None:
    """Every AXI channel stalled at random, one beat in three: the same bits."""
    with SimulatedBoard(CONFIG, stall_percent=35, seed=5) as slow:
        with opened(bundle, slow) as accelerator:
            assert_works(accelerator)
            assert_works(accelerator)
