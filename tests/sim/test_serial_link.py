# SPDX-License-Identifier: Apache-2.0
"""The tests room: the driver over a serial line, bit by bit, to the RTL behind it."""

from __future__ import annotations

import re
import shlex
import sys
import types
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pynq
import pytest

import host
import hwgen.boards
from hwgen.arch import isa, link
from hwgen.arch.bundle import Bundle
from hwgen.arch.crop import resize
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.isa import Opcode
from hwgen.arch.link import Command, Status
from hwgen.arch.registers import BY_NAME, ID_VALUE
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.cli import main
from hwgen.demo_training import train_demo
from sim.demo import compile_demo
from sim.serial_port import FAST_LINK, SimulatedSerialPort
from tests.hwgen.test_demo_training import TINY
from tests.support.quantized_graphs import every_operation
from tests.support.simulators import SMALL_BOARD as CONFIG

ROOT = Path(__file__).parents[2]
REGISTERS = 0x43C0_0000


@pytest.fixture(scope="module")
def line() -> Iterator[SimulatedSerialPort]:
    """One simulation for all tests of this file."""
    with SimulatedSerialPort(CONFIG) as port:
        yield port


@pytest.fixture
def port(line: SimulatedSerialPort) -> Iterator[SimulatedSerialPort]:
    """Give the line as new: no faults, nothing on it."""
    line.on_write = line.on_read = bytes
    line.pulled_out, line.timeout = False, 0.5
    line.reset()
    yield line
    line.on_write = line.on_read = bytes
    line.pulled_out = False


@pytest.fixture
def board(port: SimulatedSerialPort) -> Iterator[host.SerialBoard]:
    with host.SerialBoard(port, timeout_s=0.02) as made:
        yield made


def exchange(port: SimulatedSerialPort, packet: bytes) -> link.Answer:
    """Send bytes and read one answer."""
    port.write(packet)
    head = port.read(link.ANSWER_BYTES)
    return link.parse_answer(head + port.read(link.answer_length(head) - len(head)))


def small_bundle() -> Bundle:
    graph = every_operation(np.random.default_rng(5), 3, 9, 8)
    return program.emit(graph, CONFIG, "net", ((0.5,) * 3, (0.25,) * 3), None)


BUNDLE = small_bundle()


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (9, 8, 3)).astype(np.int8)


def insist(accelerator: host.Accelerator, seed: int = 1) -> None:
    """Run an image and compare every output with the golden model's."""
    found = accelerator.run_outputs_int8(codes(seed))
    right = GoldenRun(BUNDLE).run(codes(seed))
    assert len(found) == len(right)
    for mine, theirs in zip(found, right, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_runs_equal_the_golden_model(board: host.SerialBoard) -> None:
    """A small network over the line: same bits, no repetition, the identity of the build."""
    assert board.identity == FAST_LINK.identity()
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        for seed in range(3):
            insist(accelerator, seed)
        assert accelerator.last_run is not None and accelerator.last_run.cycles > 0
        assert board.allocated_bytes > 0
    assert board.repeated == 0 and board.allocated_bytes == 0


def test_leds_show_a_run_that_failed_and_refusals(
    port: SimulatedSerialPort, board: host.SerialBoard
) -> None:
    """Bits of the LEDs: 2 error, 3 packet, 4 refused, 7 out of reset."""
    assert port.leds & 0x9E == 0x88
    with pytest.raises(host.LinkRefused) as caught:
        board.read_registers(REGISTERS + 0x3C, 4)
    assert caught.value.status == Status.BUS_ERROR and port.leds & 0x10
    mmio = pynq.MMIO(REGISTERS, 4096, device=board)
    mmio.write(BY_NAME["PROGRAM_ADDRESS"].offset, 0x40)  # where no memory is: DECERR
    mmio.write(BY_NAME["PROGRAM_LENGTH"].offset, 1)
    mmio.write(BY_NAME["CONTROL"].offset, 1)
    port.run(1 << 17)
    assert port.leds & 0x04
    code = mmio.read(BY_NAME["ERROR"].offset) & 0xFF
    assert code == 5  # READ_DECERR
    mmio.write(BY_NAME["CONTROL"].offset, 2)
    port.run(1 << 17)
    assert not port.leds & 0x04


def test_memory_and_registers_through_pynq(board: host.SerialBoard) -> None:
    """Any size goes there and back; parts of a buffer leave their neighbours alone."""
    assert pynq.MMIO(REGISTERS, 4096, device=board).read(0) == ID_VALUE
    rng = np.random.default_rng(2)
    for size in (1, 7, 8, 4095, 4097, 9000):
        buffer = pynq.allocate((size,), dtype="u1", target=board)
        wanted = rng.integers(0, 256, size).astype(np.uint8)
        buffer[:] = wanted
        buffer.flush()
        buffer[:] = 0
        buffer.invalidate()
        np.testing.assert_array_equal(np.asarray(buffer), wanted)
        middle = buffer[size // 3 : size // 2 + 1]
        middle[:] = 1
        middle.invalidate()
        np.testing.assert_array_equal(np.asarray(buffer), wanted)
        buffer.freebuffer()


def test_no_room_says_what_was_asked_for_and_what_is_free(board: host.SerialBoard) -> None:
    total = FAST_LINK.memory_bytes
    first = pynq.allocate((total // 2,), dtype="u1", target=board)
    with pytest.raises(host.AllocationError, match=f"{total} bytes asked for, {total // 2} of"):
        pynq.allocate((total,), dtype="u1", target=board)
    rest = pynq.allocate((total // 8,), dtype="u4", target=board)
    with pytest.raises(host.AllocationError, match=r"1 bytes asked for, 0 of .* largest gap has 0"):
        pynq.allocate((1,), dtype="u1", target=board)
    with pytest.raises(host.AllocationError, match="no DMA memory for the"):
        host.Accelerator(BUNDLE, device=board)
    first.freebuffer()
    rest.freebuffer()
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        insist(accelerator)


def test_refused_before_anything_is_done(port: SimulatedSerialPort) -> None:
    """Each fault of `link.fault_of`, and that the next request works."""
    first, end = link.MEMORY_BASE, link.MEMORY_BASE + FAST_LINK.memory_bytes
    cases = [
        (Command.PING, 0, 8),
        (Command.PING, 4, link.IDENTITY_BYTES),
        (Command.READ_REGISTERS, 2, 4),
        (Command.READ_REGISTERS, 4092, 8),
        (Command.READ_REGISTERS, 0, 0),
        (Command.WRITE_REGISTER, 0x40, 8),
        (Command.READ_MEMORY, first - 8, 8),
        (Command.READ_MEMORY, end - 8, 16),
        (Command.READ_MEMORY, first + 4, 8),
        (Command.READ_MEMORY, first, 12),
        (Command.READ_MEMORY, first, link.PAYLOAD_BYTES_MOST + 8),
        (Command.READ_MEMORY, 0xFFFF_FFF8, 16),
        (Command.READ_MEMORY, 0, 8),
        (Command.WRITE_MEMORY, end, 8),
        (5, 0, 8),
        (255, 0, 8),
    ]
    for tag, (command, address, length) in enumerate(cases):
        wanted = link.fault_of(command, address, length, FAST_LINK.memory_bytes)
        assert wanted is not None
        found = exchange(port, link.request(command, tag, address, length, bytes(length)))
        assert found == link.Answer(command, tag, wanted, b""), (command, hex(address), length)
    for command, address, length in (
        (Command.READ_MEMORY, end - 4096, 4096),
        (Command.READ_REGISTERS, 0, 16),
    ):
        assert link.fault_of(command, address, length, FAST_LINK.memory_bytes) is None
        found = exchange(port, link.request(command, 99, address, length))
        assert found.status == Status.OK and len(found.data) == length


def test_a_write_is_not_done_twice(port: SimulatedSerialPort) -> None:
    """The same request again gets the same answer; IRQ_STATUS would tell of a second start."""
    offset = BY_NAME["BASE1"].offset
    write = link.request(Command.WRITE_REGISTER, 7, offset, 4, b"\1\0\0\0")
    other = link.request(Command.WRITE_REGISTER, 7, offset, 4, b"\2\0\0\0")
    read = link.request(Command.READ_REGISTERS, 8, offset, 4)
    assert exchange(port, write).status == Status.OK
    assert exchange(port, other).status == Status.OK  # same tag: taken for the same request
    assert exchange(port, read).data == b"\1\0\0\0"
    assert exchange(port, other).status == Status.OK  # a read came between
    assert exchange(port, read).data == b"\2\0\0\0"


def flip_once(position: int):
    """Return a wire that flips a bit of the first bytes that are long enough."""
    left = [1]

    def wire(data: bytes) -> bytes:
        if left[0] and len(data) > position:
            left[0] = 0
            return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        return data

    return wire


@pytest.mark.parametrize("position", [0, 1, 3, 6, 10, 14, 40, -1])
def test_a_flipped_bit_is_repeated(
    port: SimulatedSerialPort, board: host.SerialBoard, position: int
) -> None:
    """Wherever it is in a request: sync, command, length, address, checksum, data."""
    buffer = pynq.allocate((64,), dtype="u1", target=board)
    buffer[:] = np.arange(64)
    at = position if position >= 0 else len(link.request(4, 0, 0, 64, bytes(64))) - 1
    port.on_write = flip_once(at)
    buffer.flush()
    assert board.repeated == 1
    buffer[:] = 0
    buffer.invalidate()
    np.testing.assert_array_equal(np.asarray(buffer), np.arange(64))


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_flipped_bit_of_an_answer_is_repeated(
    port: SimulatedSerialPort, board: host.SerialBoard, position: int
) -> None:
    port.on_read = flip_once(position)
    assert pynq.MMIO(REGISTERS, 4096, device=board).read(0) == ID_VALUE
    assert board.repeated == 1


def test_garbage_before_a_packet(port: SimulatedSerialPort, board: host.SerialBoard) -> None:
    """Bytes of nobody, the beginning of a packet, a line held low: the next request works."""
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        for rubbish in (b"hello", bytes([0xA5]), link.request(3, 1, 0, 8)[:9], bytes(range(256))):
            port.write(rubbish)
            insist(accelerator)
        assert board.repeated
        port.hold_low(500)
        insist(accelerator)
        port.write(link.request(4, 1, link.MEMORY_BASE, 4096, bytes(4096))[:50])
        host.SerialBoard(port, timeout_s=0.02, retries=0)  # listens first, until the line is quiet
        insist(accelerator, 2)


def test_a_truncated_packet_is_answered_when_the_line_is_quiet(port: SimulatedSerialPort) -> None:
    packet = link.request(Command.WRITE_MEMORY, 3, link.MEMORY_BASE, 64, bytes(64))
    answer = exchange(port, packet[:-10])
    assert (answer.tag, answer.status) == (3, Status.TRUNCATED)
    assert exchange(port, packet).status == Status.OK
    damaged = packet[:-6] + bytes([packet[-6] ^ 1]) + packet[-5:]
    assert exchange(port, damaged).status == Status.BAD_CHECKSUM
    assert exchange(port, packet).status == Status.OK


def test_a_line_that_damages_everything(port: SimulatedSerialPort, board: host.SerialBoard) -> None:
    """After the last attempt: LinkDamaged with what was wrong; then all is well again."""
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        port.on_read = lambda data: data[:-1] + bytes([data[-1] ^ 1]) if data else data
        with pytest.raises(host.LinkDamaged, match="4 attempts: an answer stopped after 10 of"):
            accelerator.run_outputs_int8(codes(1))
        port.on_read = bytes
        insist(accelerator)


def test_silence(port: SimulatedSerialPort, board: host.SerialBoard) -> None:
    """Nothing arrives: LinkTimeout, in bounded time; then all is well again."""
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        port.on_write = lambda data: b""
        with pytest.raises(host.LinkTimeout, match="4 attempts, 0.02 s each"):
            accelerator.run_outputs_int8(codes(1))
        port.on_write = bytes
        insist(accelerator)
    port.on_write = lambda data: b""
    with pytest.raises(host.LinkTimeout, match="bitstream is loaded"):
        host.SerialBoard(port, timeout_s=0.02, retries=1)


def test_the_cable_pulled_out(port: SimulatedSerialPort, board: host.SerialBoard) -> None:
    """In mid-run: LinkLost; and plugged in again, with registers as after power-on, it runs."""
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        insist(accelerator)
        left = [3]

        def pull(data: bytes) -> bytes:
            left[0] -= 1
            if not left[0]:
                port.pulled_out = True
                raise OSError(5, "gone")
            return data

        port.on_write = pull
        with pytest.raises(host.LinkLost, match="failed in"):
            accelerator.run_outputs_int8(codes(1))
        with pytest.raises(host.TransportError):
            accelerator.run_outputs_int8(codes(1))
        port.on_write, port.pulled_out = bytes, False
        port.reset()
        insist(accelerator)


def test_another_board_behind_the_plug(port: SimulatedSerialPort, board: host.SerialBoard) -> None:
    """What answers with another magic, or has another memory, is refused."""
    change = {"magic": 1}

    def other(data: bytes) -> bytes:
        fields = FAST_LINK.identity() | change
        whole = link.IDENTITY.pack(fields).to_bytes(link.IDENTITY_BYTES, "little")
        if len(data) != link.IDENTITY_BYTES + 1 + link.CRC_BYTES:
            return data
        head = link.ANSWER.pack(
            {"sync": 0x5A, "command": 0, "tag": board._tag, "length": len(whole)}
        ).to_bytes(link.ANSWER_BYTES, "little")
        return whole + b"\0" + link.checksum(head + whole + b"\0")

    port.on_read = other
    with pytest.raises(host.WrongLink, match="version 1, not 0x00000001"):
        board.ping()
    buffer = pynq.allocate((8,), dtype="u1", target=board)
    change = {"memory_bytes": 4096}
    with pytest.raises(host.WrongLink, match="another board"):
        board.ping()
    buffer.freebuffer()


def with_program(text: bytes) -> Bundle:
    return replace(BUNDLE, program=text)


def test_an_error_of_the_accelerator(board: host.SerialBoard) -> None:
    """The error code, the instruction and its text arrive; the next run works."""
    bad = bytearray(isa.encode(Opcode.END))
    bad[0] = 0x3F  # an opcode that does not exist
    body = bytes(bad[:-4])
    bad[-4:] = zlib.crc32(body).to_bytes(4, "little")
    with host.Accelerator(with_program(bytes(bad)), device=board) as accelerator:
        with pytest.raises(host.RunStopped, match="dispatcher queue at instruction 0"):
            accelerator.run_outputs_int8(codes(1))
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        insist(accelerator)


def test_a_run_that_hangs(board: host.SerialBoard) -> None:
    """A token that never comes: the watchdog tells, or without one the deadline."""
    waits = isa.encode(Opcode.STORE, wait_compute=1, rows=1, words_per_row=1, base=2) + isa.encode(
        Opcode.END
    )
    with host.Accelerator(with_program(waits), device=board, watchdog_cycles=3000) as accelerator:
        with pytest.raises(host.NoProgress):
            accelerator.run_outputs_int8(codes(1))
    with host.Accelerator(
        with_program(waits), device=board, watchdog_cycles=0, timeout_s=0.3
    ) as accelerator:
        with pytest.raises(host.AcceleratorTimeout, match="a soft reset brought it back"):
            accelerator.run_outputs_int8(codes(1))
    with host.Accelerator(BUNDLE, device=board) as accelerator:
        insist(accelerator)


def test_arguments(port: SimulatedSerialPort) -> None:
    with pytest.raises(ValueError, match="timeout_s and baud must be above 0"):
        host.SerialBoard(port, timeout_s=0)
    board = host.SerialBoard(port)
    with pytest.raises(ValueError, match="registers are whole words"):
        board.read_registers(REGISTERS + 2, 4)
    with pytest.raises(ValueError, match="registers are whole words"):
        board.write_registers(REGISTERS + 4096, bytes(4))
    board.close()
    with pytest.raises(host.LinkLost, match="was closed"):
        board.read_registers(REGISTERS, 4)
    assert port.is_open  # it was not ours to close


NETWORK = """
from torch import nn

model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
)
"""


@pytest.mark.slow
def test_the_page(
    port: SimulatedSerialPort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
) -> None:
    """Run docs/ulx3s.md from compiling on, as it stands, on a simulated port."""
    text = (ROOT / "docs" / "ulx3s.md").read_text(encoding="utf-8")
    folder = tmp_path / "boards"
    folder.mkdir()
    for path in (ROOT / "boards").glob("ulx3s-85f*"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    fields = "\n".join(f"{name} = {value}" for name, value in CONFIG.to_dict().items())
    file = folder / "ulx3s-85f.toml"
    head = file.read_text(encoding="utf-8").partition("[accelerator]")[0]
    file.write_text(f"{head}[accelerator]\n{fields}\n", encoding="utf-8")
    monkeypatch.setattr(hwgen.boards, "_FOLDERS", (folder,))
    opened = []

    def serial_port(name: str, baud: int, **options: object) -> SimulatedSerialPort:
        opened.append((name, baud))
        monkeypatch.setattr(port, "close", lambda: None)
        return port

    module = types.ModuleType("serial")
    module.Serial = serial_port  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "serial", module)
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    np.savez("images.npz", images=rng.normal(size=(8, 3, 8, 8)).astype(np.float32))
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("shears ")]
    assert [words[0] for words in commands] == ["build", "compile", "selftest", "run"]
    for words in commands[1:]:
        assert main(words) == 0, (words, capsys.readouterr())
    (snippet,) = (block for kind, block in blocks if kind == "python")
    exec(compile(snippet, "docs/ulx3s.md", "exec"), {"__name__": "__snippet__"})
    printed = capsys.readouterr().out
    assert "0 failed" in printed and "1 images on the board at /dev/ttyUSB0, 0 differ" in printed
    assert "label: " in printed
    assert opened == [("/dev/ttyUSB0", link.DEFAULT_BAUD)] * 3


@pytest.mark.slow
def test_two_networks_of_the_demo_on_the_boards_own_machine(tmp_path: Path) -> None:
    """Predictor and classifier fit together, and label frames with the golden model's bits."""
    models = train_demo(tmp_path, 3, None, TINY)
    board_file = load_board("ulx3s-85f")
    nets = compile_demo(models, board_file)
    bundles = [nets[name].bundle for name in ("predictor", "compressed")]
    whole = replace(FAST_LINK, memory_bytes=board_file.ddr_bytes)
    with SimulatedSerialPort(board_file.config, whole) as line:
        board = host.SerialBoard(line)
        predictor, classifier = (host.Accelerator(bundle, device=board) for bundle in bundles)
        cropped = host.CroppedClassifier(predictor, classifier)
        for frame in models.splits.test.images[:2]:
            found = cropped.run(frame)
            picture = resize(frame, models.predictor_side)
            for accelerator in (predictor, classifier):
                bundle = accelerator.bundle
                codes = bundle.quantize_input(bundle.preprocess(picture))
                (wanted,) = GoldenRun(bundle).run(codes)
                np.testing.assert_array_equal(accelerator.run_int8(codes), wanted)
            assert found.name in models.splits.test.class_names
        assert board.repeated == 0
