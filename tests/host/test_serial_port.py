# SPDX-License-Identifier: Apache-2.0
"""Room tests: how a serial port is opened, lost and opened again; a board made of the contract."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pynq
import pytest

import host
from hwgen.arch import link
from hwgen.arch.link import Command, LinkConfig, Status

LINK = LinkConfig(clock_hz=40_000_000, baud=2_000_000, memory_bytes=8192)


class Port:
    """A port at whose other end a board answers at once: registers and memory as bytes."""

    boards: list[Port] = []

    def __init__(self, name: str, baud: int, **options: Any) -> None:
        if name == "/dev/none":
            raise FileNotFoundError(2, "no such file", name)
        self.name, self.baud, self.options = name, baud, options
        self.timeout = options["timeout"]
        self.memory = bytearray(LINK.memory_bytes)
        self.answers = bytearray()
        self.gone = self.closed = False
        self.low_latency = False
        Port.boards.append(self)

    def set_low_latency_mode(self, on: bool) -> None:
        self.low_latency = on

    def write(self, packet: bytes) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        fields = link.REQUEST.unpack(int.from_bytes(packet[: link.REQUEST_BYTES], "little"))
        command, address, length = (fields[n] for n in ("command", "address", "length"))
        status = link.fault_of(command, address, length, LINK.memory_bytes)
        data, at = b"", address - link.MEMORY_BASE
        if status is None and command == Command.PING:
            data = link.IDENTITY.pack(LINK.identity()).to_bytes(link.IDENTITY_BYTES, "little")
        elif status is None and command == Command.READ_MEMORY:
            data = bytes(self.memory[at : at + length])
        elif status is None and command == Command.WRITE_MEMORY:
            start = link.REQUEST_BYTES + link.CRC_BYTES
            self.memory[at : at + length] = packet[start : start + length]
        self.answers += link.answer(command, fields["tag"], status or Status.OK, data)
        return len(packet)

    def read(self, size: int) -> bytes:
        if self.gone:
            raise OSError(5, "Input/output error")
        found = bytes(self.answers[:size])
        del self.answers[:size]
        return found

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pyserial(monkeypatch: pytest.MonkeyPatch) -> type[Port]:
    """Stand in for pyserial."""
    Port.boards = []
    module = types.ModuleType("serial")
    module.Serial = Port  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "serial", module)
    return Port


def test_a_named_port_is_opened_for_us_alone(pyserial: type[Port]) -> None:
    with host.SerialBoard("/dev/ttyUSB0") as board:
        (port,) = pyserial.boards
        assert (port.name, port.baud, port.low_latency) == ("/dev/ttyUSB0", 2_000_000, True)
        assert port.options["exclusive"] and port.options["write_timeout"] > 0
        assert (board.memory_bytes, board.clock_hz) == (8192, 40_000_000)
    assert port.closed
    board.close()


def test_a_port_that_comes_back_is_opened_again(pyserial: type[Port]) -> None:
    with host.SerialBoard("COM3") as board:
        buffer = pynq.allocate((4,), dtype="u4", target=board)
        buffer[:] = 7
        pyserial.boards[0].gone = True
        with pytest.raises(host.LinkLost, match="COM3 failed in WRITE_MEMORY .*Input/output") as e:
            buffer.flush()
        assert isinstance(e.value, OSError) and isinstance(e.value, host.TransportError)
        assert pyserial.boards[0].closed
        buffer.flush()
        assert len(pyserial.boards) == 2
        assert pyserial.boards[1].memory[:4] == b"\7\0\0\0"
        buffer.freebuffer()


def test_no_such_port(pyserial: type[Port]) -> None:
    with pytest.raises(host.LinkLost, match="/dev/none cannot be opened.*list_ports"):
        host.SerialBoard("/dev/none")


def test_no_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(host.DeviceNotFound, match=r"pip install 'shears\[serial\]'"):
        host.SerialBoard("/dev/ttyUSB0")


def test_a_board_that_chatters(pyserial: type[Port], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is never quiet is damaged, not a reason to wait for ever."""
    monkeypatch.setattr(Port, "read", lambda self, size: b"x" * size)
    with pytest.raises(host.LinkDamaged, match="never falls silent"):
        host.SerialBoard("/dev/ttyUSB0")
    assert pyserial.boards[0].closed


def test_host_needs_neither_pynq_nor_pyserial() -> None:
    """`import host` alone loads neither; a name that does not exist is told as such."""
    code = (
        "import sys\nsys.modules['pynq'] = sys.modules['serial'] = None\nimport host\n"
        "assert host.LinkError and 'host.serial_link' not in sys.modules\n"
        "try:\n    host.SerialBoard\nexcept host.DeviceNotFound as error:\n    print(error)\n"
        "try:\n    host.Nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pynq must be installed" in done.stdout and "no attribute 'Nothing'" in done.stdout
