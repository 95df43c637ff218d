# SPDX-License-Identifier: Apache-2.0
"""The tests room: one simulated board for several processes, as a real one is there for all.

`BoardServer` keeps the board and serves one process after the other; `RemoteBoard` is the pynq
Device that such a process has. When a process ends, however it does, its memory is free, as the
kernel of a board does it; the machine goes on with what it was at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

import sim


class BoardServer:
    """Serve a board on a local socket, in a thread.

    Attributes
    ----------
    accesses
        Requests that the process that is served now has made.
    on_access
        Called with their number before each is answered.
    """

    def __init__(self, board: sim.SimulatedBoard) -> None:
        self.board = board
        self.accesses = 0
        self.on_access: Callable[[int], None] = lambda number: None
        self._listener = Listener(None, "AF_UNIX")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._idle = threading.Event()
        self._thread.start()

    @property
    def address(self) -> str:
        """What a RemoteBoard connects to."""
        return str(self._listener.address)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until the process that was served last has gone."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """End serving; no process may be connected."""
        Client(self.address).close()  # which ends accept()
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as connection:
                if not self._serve_one(connection):
                    return

    def _serve_one(self, connection: Connection) -> bool:
        """Answer one process until it ends; returns whether it asked for anything."""
        buffers: dict[int, PynqBuffer] = {}
        self.accesses = 0
        self._idle.clear()
        try:
            while True:
                name, arguments = connection.recv()
                self.accesses += 1
                self.on_access(self.accesses)
                connection.send(self._answer(name, arguments, buffers))
        except (EOFError, OSError):  # it ended, or was killed
            return self.accesses > 0
        finally:
            for buffer in buffers.values():
                buffer.freebuffer()
            self._idle.set()

    def _answer(self, name: str, arguments: tuple[Any, ...], buffers: dict[int, Any]) -> Any:
        if name == "allocate":
            buffer = self.board.allocate(*arguments, "u1")
            buffers[buffer.device_address] = buffer
            return buffer.device_address
        if name == "free":
            return buffers.pop(*arguments).freebuffer()
        return getattr(self.board, name)(*arguments)


class RemoteBoard(Device):
    """The board of a `BoardServer`."""

    def __init__(self, address: str) -> None:
        super().__init__("remote")
        self.capabilities = {"REGISTER_RW": True}
        self._connection = Client(address)

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return self._connection.recv()

    def read_registers(self, address: int, length: int) -> bytes:
        """Read registers."""
        return self._ask("read_registers", address, length)

    def write_registers(self, address: int, data: bytes) -> None:
        """Write registers."""
        self._ask("write_registers", address, bytes(data))

    def allocate(self, shape: Any, dtype: Any, **options: Any) -> PynqBuffer:
        """Allocate memory of the board; `flush` and `invalidate` move its content."""
        cpu = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0x5A, np.uint8)
        address = self._ask("allocate", len(cpu))
        buffer = PynqBuffer(
            shape,
            dtype,
            buffer=cpu.data,
            bo=(address, cpu),
            device=self,
            device_address=address,
            coherent=False,
        )
        buffer.memory, buffer.pointer, buffer.return_to, buffer.freed = self, address, self, True
        return buffer

    def return_pointer(self, address: int) -> None:
        """Free memory."""
        self._ask("free", address)

    def flush(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Copy part of a buffer to the board."""
        address, cpu = bo
        self._ask("write_memory", address + offset, cpu[offset : offset + size])

    def invalidate(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Copy part of a buffer from the board."""
        address, cpu = bo
        cpu[offset : offset + size] = self._ask("read_memory", address + offset, size)
