# SPDX-License-Identifier: Apache-2.0
"""The tests room: the simulated board under pynq's own MMIO and allocate, and under the driver."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pynq
import pytest

import host
import sim
from hwgen.arch import isa
from hwgen.arch.bundle import Bundle
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.isa import Opcode
from hwgen.arch.registers import BY_NAME, ID_VALUE
from hwgen.backends import program
from sim.board import REGISTER_BASE
from tests.support.quantized_graphs import every_operation
from tests.support.simulators import SMALL_BOARD as CONFIG


@pytest.fixture
def board() -> Iterator[sim.SimulatedBoard]:
    with sim.SimulatedBoard(CONFIG, memory_bytes=1 << 20) as made:
        yield made


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return program.emit(every_operation(np.random.default_rng(5), 3, 6, 5), CONFIG, name="all")


def codes_for(bundle: Bundle, rng: np.random.Generator) -> np.ndarray:
    channels, height, width = bundle.input.shape
    return rng.integers(-128, 128, (height, width, channels)).astype(np.int8)


def offset(name: str) -> int:
    return BY_NAME[name].offset


def test_pynq_mmio(board: sim.SimulatedBoard) -> None:
    mmio = pynq.MMIO(REGISTER_BASE, 4096, device=board)
    assert mmio.read(offset("ID")) == ID_VALUE
    digest = mmio.read(offset("DIGEST_LOW")) | mmio.read(offset("DIGEST_HIGH")) << 32
    assert digest == CONFIG.digest() == mmio.read(offset("DIGEST_LOW"), length=8)
    mmio.write(offset("BASE0"), 0x12345678)
    mmio.write(offset("BASE1"), b"\x01\x02\x03\x04\x05\x06\x07\x08")
    assert mmio.read(offset("BASE0")) == 0x12345678 == int(mmio.array[offset("BASE0") // 4])
    assert mmio.read(offset("BASE1"), length=8) == 0x0807060504030201
    with pytest.raises(sim.SimulationError, match="no register is at 0x40000000"):
        pynq.MMIO(0x4000_0000, 4096, device=board).read(0)
    assert pynq.MMIO(REGISTER_BASE, 4096, device=board).read(offset("BASE0")) == 0x12345678


def test_pynq_does_not_find_the_board_by_itself() -> None:
    from pynq.pl_server.device import DeviceMeta

    assert sim.SimulatedBoard not in DeviceMeta._subclasses.values()


def test_pynq_allocate(board: sim.SimulatedBoard, rng: np.random.Generator) -> None:
    buffer = pynq.allocate((3, 5), dtype="i2", target=board)
    assert buffer.shape == (3, 5) and buffer.dtype == np.int16
    assert buffer.device_address % 4096 == 0 and buffer.physical_address == buffer.device_address
    values = rng.integers(-99, 99, (3, 5)).astype(np.int16)
    buffer[:] = values
    assert not np.array_equal(board.read_memory(buffer.device_address, 30).view(np.int16), values)
    buffer.flush()
    raw = board.read_memory(buffer.device_address, 30).view(np.int16).reshape(3, 5)
    assert np.array_equal(raw, values)
    board.write_memory(buffer.device_address, np.zeros(30))
    assert np.array_equal(buffer, values)
    row = buffer[1]  # a view knows its own place
    row.invalidate()
    assert not buffer[1].any() and np.array_equal(buffer[0], values[0])
    buffer.sync_from_device()
    assert not buffer.any()


def test_lenient_cache_shares_the_memory() -> None:
    with sim.SimulatedBoard(CONFIG, memory_bytes=1 << 16, strict_cache=False) as board:
        buffer = pynq.allocate(8, dtype="u1", target=board)
        buffer[:] = 7
        assert (board.read_memory(buffer.device_address, 8) == 7).all()


def test_freed_memory_is_used_again(board: sim.SimulatedBoard) -> None:
    total = len(board.harness.memory)
    first = pynq.allocate(total // 2, dtype="u1", target=board)
    second = pynq.allocate(total // 4, dtype="u1", target=board)
    with pytest.raises(
        sim.OutOfDeviceMemoryError,
        match=f"{total // 2} bytes asked for, {total // 4} bytes of {total} free, the largest gap",
    ):
        pynq.allocate(total // 2, dtype="u1", target=board)
    address = first.device_address
    first.freebuffer()
    first.freebuffer()
    with pytest.raises(sim.SimulationError, match="freed"):
        first.flush()
    again = pynq.allocate(total // 2, dtype="u1", target=board)
    assert again.device_address == address
    del again, second
    gc.collect()
    assert board.allocated_bytes == 0
    with pynq.allocate((4,), target=board) as scoped:
        assert board.allocated_bytes == 4096 and scoped.dtype == np.uint32
    assert board.allocated_bytes == 0


def loopback(size: int) -> bytes:
    """Return a program that copies `size` bytes, a multiple of ti, through the scratchpad."""
    words = size // CONFIG.ti
    load = isa.encode(
        Opcode.LOAD,
        base=1,
        rows=1,
        row_bytes=size,
        words_per_row=words,
        step_bytes=CONFIG.ti,
        take_bytes=CONFIG.ti,
        signal_store=1,
    )
    store = isa.encode(Opcode.STORE, base=2, rows=1, words_per_row=words, wait_load=1)
    return load + store + isa.encode(Opcode.END)


def start_loopback(board: sim.SimulatedBoard, data: np.ndarray) -> tuple[pynq.MMIO, list]:
    mmio = pynq.MMIO(REGISTER_BASE, 4096, device=board)
    code = np.frombuffer(loopback(len(data)), dtype=np.uint8)
    buffers = [pynq.allocate(len(x), dtype="u1", target=board) for x in (code, data, data)]
    for buffer, content in zip(buffers, (code, data), strict=False):
        buffer[:] = content
        buffer.flush()
    mmio.write(offset("PROGRAM_ADDRESS"), buffers[0].device_address)
    mmio.write(offset("PROGRAM_LENGTH"), 3)
    mmio.write(offset("BASE1"), buffers[1].device_address)
    mmio.write(offset("BASE2"), buffers[2].device_address)
    mmio.write(offset("IRQ_ENABLE"), 3)
    mmio.write(offset("CONTROL"), 1)
    return mmio, buffers


@pytest.mark.parametrize("stall", [0, 40])
def test_loopback_by_interrupt(stall: int, rng: np.random.Generator, seed: int) -> None:
    data = rng.integers(0, 256, 1024).astype(np.uint8)
    with sim.SimulatedBoard(
        CONFIG, memory_bytes=1 << 16, stall_percent=stall, seed=seed, clock_hz=100e6
    ) as board:
        mmio, buffers = start_loopback(board, data)
        assert not board.irq
        assert not board.wait_interrupt(1e-7)
        before = board.seconds
        assert board.wait_interrupt(1.0) and board.irq
        assert board.seconds - before < 1e-3
        assert not np.array_equal(buffers[2], data)  # nothing was invalidated yet
        buffers[2].invalidate()
        assert np.array_equal(buffers[2], data)
        mmio.write(offset("IRQ_STATUS"), 3)
        mmio.read(offset("STATUS"))
        assert not board.irq
        assert board.bus_counts.write_beats == 128 and board.sim_cycles_per_second > 0


def test_loopback_by_polling(board: sim.SimulatedBoard, rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, 4096).astype(np.uint8)
    mmio, buffers = start_loopback(board, data)
    polls = 0
    while not mmio.read(offset("STATUS")) & 4:
        polls += 1
        assert polls < 10
    buffers[2].invalidate()
    assert np.array_equal(buffers[2], data)


def test_cycles_of_a_run_do_not_depend_on_who_looks(
    bundle: Bundle, rng: np.random.Generator
) -> None:
    codes = codes_for(bundle, rng)
    cycles = set()
    for poll in (50, 3000):
        with sim.SimulatedBoard(bundle, cycles_per_poll=poll) as board:
            accelerator = host.Accelerator(bundle, device=board)
            accelerator.run_outputs_int8(codes)
            cycles.add(accelerator.last_run.cycles)
    assert len(cycles) == 1


@pytest.mark.parametrize(("stall", "latency"), [(0, 30), (0, 1), (60, 5)])
def test_driver_equals_interpreter(
    bundle: Bundle, rng: np.random.Generator, seed: int, stall: int, latency: int
) -> None:
    golden = GoldenRun(bundle)
    with sim.SimulatedBoard(
        bundle, stall_percent=stall, memory_latency_cycles=latency, seed=seed
    ) as board:
        accelerator = host.Accelerator(bundle, device=board)
        for _ in range(3):
            codes = codes_for(bundle, rng)
            got, want = accelerator.run_outputs_int8(codes), golden.run(codes)
            assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
            assert accelerator.last_run.counters["STEPS"] == golden.machine.steps
        accelerator.close()
        assert board.allocated_bytes == 0


@pytest.mark.parametrize("response", ["slverr", "decerr"])
@pytest.mark.parametrize("side", ["read", "write"])
def test_bus_faults_reach_the_driver(
    bundle: Bundle, rng: np.random.Generator, side: str, response: str
) -> None:
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle) as board:
        accelerator = host.Accelerator(bundle, device=board)
        everything = (board.harness.memory_base, len(board.harness.memory))
        board.inject_fault(f"{side}_{response}", *everything)
        with pytest.raises(host.BusError, match=f"{side}_{response}".upper()):
            accelerator.run_outputs_int8(codes)[0]
        board.clear_faults()
        wanted = GoldenRun(bundle).run(codes)[0]
        assert np.array_equal(accelerator.run_outputs_int8(codes)[0], wanted)
        board.inject_fault(f"{side}_{response}", *everything, count=1)
        assert np.array_equal(
            accelerator.run_outputs_int8(codes)[0], wanted
        )  # the driver tries once more
        assert accelerator.last_run.attempts == 2


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_bus_that_hangs_is_no_progress(
    bundle: Bundle, rng: np.random.Generator, side: str
) -> None:
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle) as board:
        accelerator = host.Accelerator(bundle, device=board, watchdog_cycles=2000)
        board.inject_fault(f"{side}_hang", board.harness.memory_base, 1 << 20, count=1)
        # The bus owes an answer, so a soft reset cannot finish until it comes.
        with pytest.raises(host.AcceleratorError):
            accelerator.run_outputs_int8(codes)[0]
        board.clear_faults()
        wanted = GoldenRun(bundle).run(codes)[0]
        assert np.array_equal(accelerator.run_outputs_int8(codes)[0], wanted)


def test_a_flipped_byte_of_the_constants_is_found(bundle: Bundle, rng: np.random.Generator) -> None:
    other = program.emit(every_operation(np.random.default_rng(6), 3, 6, 5), CONFIG, name="other")
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle) as board:
        accelerator = host.Accelerator(bundle, device=board)
        host.Accelerator(other, device=board)  # lies in the same SB rows: the first must reload
        where = board.harness.memory.tobytes().find(bundle.constants[:64])
        address = board.harness.memory_base + where
        board.corrupt(address, 0x10)
        assert board.read_memory(address, 1)[0] == bundle.constants[0] ^ 0x10
        assert np.array_equal(
            accelerator.run_outputs_int8(codes)[0], GoldenRun(bundle).run(codes)[0]
        )
        assert accelerator.last_run.attempts == 2
        assert "DATA_CHECKSUM" in accelerator.last_run.errors[0]


def test_boards_share_nothing(bundle: Bundle, rng: np.random.Generator) -> None:
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle) as one, sim.SimulatedBoard(bundle) as other:
        a, b = (host.Accelerator(bundle, device=board) for board in (one, other))
        idle = other.cycles
        assert np.array_equal(a.run_outputs_int8(codes)[0], GoldenRun(bundle).run(codes)[0])
        assert other.cycles == idle and one.tag != other.tag
        assert np.array_equal(b.run_outputs_int8(codes)[0], a.run_outputs_int8(codes)[0])


def test_threads_take_turns(bundle: Bundle, rng: np.random.Generator) -> None:
    images = [codes_for(bundle, rng) for _ in range(4)]
    golden = GoldenRun(bundle)
    wanted = [golden.run(codes)[0] for codes in images]
    results: dict[int, np.ndarray] = {}
    with sim.SimulatedBoard(bundle) as board:
        accelerator = host.Accelerator(bundle, device=board)

        def work(i: int) -> None:
            results[i] = accelerator.run_outputs_int8(images[i])[0]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(results[i], wanted[i]) for i in range(4))


def test_wrong_arguments(board: sim.SimulatedBoard) -> None:
    with pytest.raises(TypeError, match="must be a Bundle or an AcceleratorConfig, not str"):
        sim.SimulatedBoard("pynq-z2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        sim.SimulatedBoard(CONFIG, clock_hz=0)
    with pytest.raises(TypeError, match="pointer"):
        pynq.allocate(4, target=board, pointer=3)
    with pytest.raises(ValueError, match="shape must be positive"):
        pynq.allocate((0,), target=board)
    with pytest.raises(sim.SimulationError, match="must lie in the DDR"):
        board.read_memory(0, 4)
    with pytest.raises(sim.SimulationError, match="4 bytes wide"):
        board.write_registers(REGISTER_BASE, b"abc")


def test_a_closed_board_says_so() -> None:
    board = sim.SimulatedBoard(CONFIG)
    buffer = pynq.allocate(4, target=board)
    board.close()
    with pytest.raises(sim.SimulationError, match="closed"):
        pynq.MMIO(REGISTER_BASE, 4096, device=board).read(0)
    buffer.freebuffer()
