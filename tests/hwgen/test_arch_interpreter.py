# SPDX-License-Identifier: Apache-2.0
"""The tests room: the golden model's errors, each with its code, queue and instruction."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, Interpreter, MachineError, isa
from hwgen.arch.interpreter import Memory
from hwgen.arch.isa import LoadTarget, Opcode
from hwgen.arch.registers import ErrorCode

CONFIG = AcceleratorConfig(
    tn=8, ti=8, scratchpad_banks=2, scratchpad_bank_words=64, synapse_rows=32, tap_entries=32
)
LOAD = {
    "rows": 1,
    "row_bytes": 64,
    "words_per_row": 8,
    "step_bytes": 8,
    "take_bytes": 8,
    "base": 1,
}
COMPUTE = {
    "tap_count": 1,
    "mode": 3,
    "output_height": 1,
    "output_width": 1,
    "input_height": 1,
    "input_width": 1,
}


def run(*instructions: bytes, length: int | None = None) -> Interpreter:
    """Run instructions at address 0, base 1 at 4096, in 8 KiB of DDR."""
    program = b"".join(instructions)
    memory = Memory(np.zeros(8192, np.uint8))
    memory.data[: len(program)] = np.frombuffer(program, np.uint8)
    memory.data[4096:4160] = np.arange(64)
    machine = Interpreter(CONFIG)
    machine.execute(memory, 0, len(instructions) if length is None else length, {1: 4096})
    return machine


END = isa.encode(Opcode.END)


def test_load_words_with_lead_step_and_take() -> None:
    """Words slide over a row with padding in front and behind."""
    fields = {**LOAD, "row_bytes": 6, "words_per_row": 4, "lead_bytes": 2, "step_bytes": 2}
    machine = run(isa.encode(Opcode.LOAD, **{**fields, "take_bytes": 5, "pad_value": -7}), END)
    expected = [
        [-7, -7, 0, 1, 2, -7, -7, -7],
        [0, 1, 2, 3, 4, -7, -7, -7],
        [2, 3, 4, 5, -7, -7, -7, -7],
        [4, 5, -7, -7, -7, -7, -7, -7],
    ]
    assert np.array_equal(machine.scratchpad[:4], np.array(expected, np.int8))


def damaged() -> bytes:
    """Return an END with a flipped bit."""
    data = bytearray(END)
    data[10] ^= 4
    return bytes(data)


def unknown_opcode() -> bytes:
    """Return a well-formed instruction of an opcode that does not exist."""
    import zlib

    body = isa.HEADER.pack({"opcode": 7}).to_bytes(60, "little")
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("code", "queue", "instruction"),
    [
        (ErrorCode.INSTRUCTION_CHECKSUM, 3, damaged()),
        (ErrorCode.BAD_OPCODE, 3, unknown_opcode()),
        (ErrorCode.NO_PROGRESS, 1, isa.encode(Opcode.COMPUTE, **COMPUTE, wait_load=1)),
        (ErrorCode.BAD_FIELD, 0, isa.encode(Opcode.LOAD, **{**LOAD, "rows": 0})),
        (ErrorCode.BAD_FIELD, 0, isa.encode(Opcode.LOAD, **{**LOAD, "take_bytes": 9})),
        (ErrorCode.BAD_FIELD, 1, isa.encode(Opcode.COMPUTE, **{**COMPUTE, "tap_count": 0})),
        (ErrorCode.READ_DECERR, 0, isa.encode(Opcode.LOAD, **{**LOAD, "offset_bytes": 4096})),
        (ErrorCode.ADDRESS_RANGE, 0, isa.encode(Opcode.LOAD, **{**LOAD, "destination": 121})),
        (
            ErrorCode.ADDRESS_RANGE,
            0,
            isa.encode(Opcode.LOAD, **{**LOAD, "target": LoadTarget.SYNAPSE, "destination": 32}),
        ),
        (
            ErrorCode.DATA_CHECKSUM,
            0,
            isa.encode(Opcode.LOAD, **{**LOAD, "check": 1, "crc32": 1}),
        ),
        (ErrorCode.ADDRESS_RANGE, 1, isa.encode(Opcode.COMPUTE, **COMPUTE, input_start=500)),
        (ErrorCode.ADDRESS_RANGE, 1, isa.encode(Opcode.COMPUTE, **COMPUTE, output_address=128)),
        (ErrorCode.ADDRESS_RANGE, 1, isa.encode(Opcode.COMPUTE, **COMPUTE, tap_address=32)),
        (
            ErrorCode.BANK_CONFLICT,
            1,
            isa.encode(Opcode.COMPUTE, **COMPUTE, residual=1, residual_address=3),
        ),
        (
            ErrorCode.WRITE_DECERR,
            2,
            isa.encode(Opcode.STORE, base=1, offset_bytes=4096, rows=1, words_per_row=1),
        ),
        (
            ErrorCode.ADDRESS_RANGE,
            2,
            isa.encode(Opcode.STORE, base=1, rows=1, words_per_row=2, source=127),
        ),
    ],
)
def test_errors(code: ErrorCode, queue: int, instruction: bytes) -> None:
    """Each stops with its own code, in the right queue, at the right instruction."""
    good = isa.encode(Opcode.LOAD, **LOAD)
    with pytest.raises(MachineError) as caught:
        run(good, instruction, END)
    assert (caught.value.code, caught.value.queue, caught.value.instruction) == (code, queue, 1)
    assert code.name in str(caught.value)


def test_program_without_end() -> None:
    """A program that runs past its length is stopped."""
    with pytest.raises(MachineError, match="PROGRAM_OVERRUN"):
        run(isa.encode(Opcode.LOAD, **LOAD))


def test_program_outside_memory() -> None:
    """A program address outside DDR is a DECERR of the dispatcher."""
    with pytest.raises(MachineError) as caught:
        Interpreter(CONFIG).execute(Memory(np.zeros(64, np.uint8)), 4096, 1, {})
    assert (caught.value.code, caught.value.queue) == (ErrorCode.READ_DECERR, 3)


@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.STORE])
@pytest.mark.parametrize(
    ("base", "offset", "code"),
    [
        (4100, 0, ErrorCode.BAD_FIELD),
        (4096, 4, ErrorCode.BAD_FIELD),
        (4096, 2**32 - 4096 - 8, ErrorCode.ADDRESS_RANGE),
        (2**32 - 16, 16, ErrorCode.ADDRESS_RANGE),
        (2**32 - 16, 0, None),
    ],
)
def test_addresses(opcode: Opcode, base: int, offset: int, code: ErrorCode | None) -> None:
    """A base that is not aligned, and a row past 4 GiB, are errors; the last bytes are not."""
    specific = LOAD if opcode == Opcode.LOAD else {"rows": 1, "base": 1}
    fields = {**specific, "words_per_row": 2, "offset_bytes": offset}
    if opcode == Opcode.LOAD:
        fields["row_bytes"] = 16
    program = isa.encode(opcode, **fields) + END
    memory = Memory(np.zeros(8192, np.uint8), 2**32 - 8192)
    memory.data[: len(program)] = np.frombuffer(program, np.uint8)
    arguments = memory, 2**32 - 8192, 2, {1: base}
    if code is None:
        Interpreter(CONFIG).execute(*arguments)
        return
    with pytest.raises(MachineError) as caught:
        Interpreter(CONFIG).execute(*arguments)
    assert (caught.value.code, caught.value.instruction) == (code, 0)


@pytest.mark.parametrize(
    ("address", "length", "code", "instruction"),
    [
        (8, 1, ErrorCode.BAD_FIELD, 0),
        (0, 1 << 24, ErrorCode.BAD_FIELD, 0),
        (2**32 - 64, 2, ErrorCode.ADDRESS_RANGE, 1),
        (2**32 - 64, 1, ErrorCode.PROGRAM_OVERRUN, 1),
    ],
)
def test_program_addresses(address: int, length: int, code: ErrorCode, instruction: int) -> None:
    """A program is aligned, has a length that fits its counter and ends inside 4 GiB."""
    program = isa.encode(Opcode.LOAD, **{**LOAD, "row_bytes": 8, "words_per_row": 1})
    memory = Memory(np.zeros(8192, np.uint8), 2**32 - 8192)
    memory.data[-64:] = np.frombuffer(program, np.uint8)
    with pytest.raises(MachineError) as caught:
        Interpreter(CONFIG).execute(memory, address, length, {1: 2**32 - 8192})
    found = (caught.value.code, caught.value.queue, caught.value.instruction)
    assert found == (code, 3, instruction)
