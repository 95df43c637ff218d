# SPDX-License-Identifier: Apache-2.0
"""Room tests: a pynq Device whose registers run the golden interpreter, with faults on demand.

The driver sees it through the real `pynq.MMIO` and `pynq.allocate`. A run takes as many STATUS
reads as `polls` says.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import Interpreter, MachineError, Memory
from hwgen.arch.isa import INSTRUCTION_BYTES, ISA_VERSION, QUEUE_OF, decode
from hwgen.arch.registers import BASE_COUNT, BY_NAME, REGISTERS, Access, ErrorCode
from hwgen.arch.trace import TRACE_RECORD, WORD_BITS

DDR_BASE = 0x1000_0000
PAGE_BYTES = 4096
HANG = "hang"

NAME_AT = {register.offset: register.name for register in REGISTERS}


class MemoryDevice(Device):
    """DDR of a board: `allocate` hands out pages of one array, first fit.

    Attributes
    ----------
    ddr
        uint8, at `DDR_BASE` for the accelerator.
    allocated
        Sizes in bytes of the buffers that are not freed, by address.
    """

    def __init__(self, tag: str, base_address: int, ddr_bytes: int) -> None:
        super().__init__(tag)
        self.capabilities = {"REGISTER_RW": True}
        self.base_address = base_address
        self.ddr = np.zeros(ddr_bytes, dtype=np.uint8)
        self.allocated: dict[int, int] = {}

    def has_capability(self, name: str) -> bool:
        return self.capabilities.get(name, False)

    def allocate(self, shape: Any, dtype: Any, **kwargs: Any) -> PynqBuffer:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pages = -(-size // PAGE_BYTES) * PAGE_BYTES
        start = 0
        for address, taken in sorted(self.allocated.items()):
            if address - start >= pages:
                break
            start = address + taken
        if start + pages > len(self.ddr):
            raise RuntimeError(f"Failed to allocate {size} bytes")
        self.allocated[start] = pages
        self.ddr[start : start + size] = 0xA5  # what memory holds that nobody has written
        buffer = PynqBuffer(
            shape,
            dtype,
            buffer=self.ddr[start : start + size].data,
            device=self,
            device_address=DDR_BASE + start,
            coherent=True,
        )
        # pynq gives the pointer back once, when it is true; `freed` keeps it from munmap then.
        buffer.memory, buffer.pointer, buffer.return_to = self, (start,), self
        buffer.freed = True
        return buffer

    def return_pointer(self, pointer: tuple[int]) -> None:
        del self.allocated[pointer[0]]


class FakeDevice(MemoryDevice):
    """A board with one accelerator of `config` at `base_address`.

    Attributes
    ----------
    faults
        What happens to the next starts, one entry each: None (a correct run), an `ErrorCode`
        (stop with it) or `HANG`. When it is empty, every run is correct.
    stuck_reset
        A soft reset never finishes while this is set.
    starts
        Programs started so far.
    trace
        Records of the last run, as if each instruction took ten cycles after the one before it.
    trace_lost
        So many records at the end of a run are lost.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        base_address: int = 0x43C0_0000,
        ddr_bytes: int = 1 << 20,
        polls: int = 3,
    ) -> None:
        super().__init__("fake", base_address, ddr_bytes)
        self.machine = Interpreter(config)
        self.faults: deque[ErrorCode | int | str | None] = deque()
        self.stuck_reset = False
        self.polls = polls
        self.starts = 0
        self.trace: list[int] = []
        self.trace_lost = 0
        self.reset_registers()

    def reset_registers(self) -> None:
        """Do what loading the bitstream anew does to the registers."""
        digest = self.machine.config.digest()
        self.registers = {register.name: register.reset for register in REGISTERS}
        self.registers["VERSION"] = ISA_VERSION
        self.registers["DIGEST_LOW"] = digest & 0xFFFFFFFF
        self.registers["DIGEST_HIGH"] = digest >> 32
        self.status = {"idle": 1, "running": 0, "done": 0, "error": 0, "resetting": 0}
        self._outcome: ErrorCode | int | str | None = None
        self._left = 0

    def read_registers(self, address: int, length: int) -> bytes:
        assert length == 4
        name = NAME_AT[address - self.base_address]
        if name == "STATUS":
            self._advance()
            return struct.pack("<I", BY_NAME[name].layout.pack(self.status))
        if name.startswith("TRACE_DATA"):
            index = self.registers["TRACE_INDEX"]
            record = self.trace[index] if index < len(self.trace) else 0
            return struct.pack("<I", record >> WORD_BITS * int(name[-1]) & 0xFFFFFFFF)
        return struct.pack("<I", self.registers[name])

    def write_registers(self, address: int, data: bytes) -> None:
        name = NAME_AT[address - self.base_address]
        (value,) = struct.unpack("<I", bytes(data))
        if name == "CONTROL":
            command = BY_NAME[name].layout.unpack(value)
            if command["soft_reset"]:
                self._soft_reset()
            elif command["start"] and not self.status["running"]:
                self._start()
        elif BY_NAME[name].access is Access.READ_WRITE:
            self.registers[name] = value
        elif BY_NAME[name].access is Access.WRITE_CLEAR:
            self.registers[name] &= ~value

    def _soft_reset(self) -> None:
        if self.stuck_reset:
            self.status["resetting"] = 1
            return
        self.registers["ERROR"] = self.registers["ERROR_INSTRUCTION"] = 0
        self.status = {"idle": 1, "running": 0, "done": 0, "error": 0, "resetting": 0}

    def _start(self) -> None:
        self.starts += 1
        self.status.update(idle=0, running=1, done=0, error=0)
        self._left = self.polls
        self._outcome = self.faults.popleft() if self.faults else None

    def _execute(self) -> None:
        """Run the program, now that its time has passed."""
        bases = {i: self.registers[f"BASE{i}"] for i in range(BASE_COUNT)}
        try:
            self.machine.execute(
                Memory(self.ddr, DDR_BASE),
                self.registers["PROGRAM_ADDRESS"],
                self.registers["PROGRAM_LENGTH"],
                bases,
            )
        except MachineError as error:
            self._outcome = error.code
            self._set_error(error.code, error.queue, error.instruction)
        self.registers["STEPS"] = self.machine.steps
        self.registers["CYCLES_TOTAL"] = 100 + self.machine.steps
        if self._outcome is None:
            self._record()

    def _record(self) -> None:
        """Leave the records that the program's window gets."""
        first, place = self.registers["TRACE_FIRST"], self.registers["PROGRAM_ADDRESS"] - DDR_BASE
        length = self.registers["PROGRAM_LENGTH"] - 1  # END has none
        self.trace = []
        for index in range(first, min(length, first + self.machine.config.trace_entries)):
            at = place + INSTRUCTION_BYTES * index
            opcode, _ = decode(self.ddr[at : at + INSTRUCTION_BYTES].tobytes())
            values = {"queue": QUEUE_OF[opcode], "index": index}
            values |= {"start": 10 * index + 5, "end": 10 * index + 12, "wait_load": index % 3}
            self.trace.append(TRACE_RECORD.pack(values))
        del self.trace[len(self.trace) - self.trace_lost :]
        self.trace.reverse()  # any order will do
        self.registers["TRACE_COUNT"] = len(self.trace)
        self.registers["TRACE_DROPPED"] = max(0, length - first - len(self.trace))

    def _set_error(self, code: int, queue: int, instruction: int) -> None:
        self.registers["ERROR"] = BY_NAME["ERROR"].layout.pack({"code": code, "queue": queue})
        self.registers["ERROR_INSTRUCTION"] = instruction

    def _advance(self) -> None:
        if not self.status["running"] or self._outcome == HANG:
            return
        self._left -= 1
        if self._left > 0:
            return
        if self._outcome is None:
            self._execute()
        event = "done" if self._outcome is None else "error"
        self.status.update({"idle": 1, "running": 0, event: 1})
        self.registers["IRQ_STATUS"] |= BY_NAME["IRQ_STATUS"].layout.pack({event: 1})
        if self._outcome is not None and not self.registers["ERROR"]:
            self._set_error(int(self._outcome), 1, 2)
