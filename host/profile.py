# SPDX-License-Identifier: Apache-2.0
"""The host room: run a program and read what each of its instructions took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from host.board import Board
from host.driver import Accelerator
from host.errors import WrongHardware
from hwgen.arch import isa
from hwgen.arch.bundle import LayerRecord
from hwgen.arch.isa import Opcode
from hwgen.arch.trace import TRACE_RECORD, TRACE_WORDS, WORD_BITS, Profile, TraceRecord

INDEX_POLLS = 256


def profile(accelerator: Accelerator, image: ArrayLike) -> Profile:
    """Run an image once for each window of the trace buffer and join what it recorded.

    The runs are ordinary ones: recording takes no cycles. Programs of more instructions than the
    buffer has entries take several runs of the same image, which differ where the memory does.

    Parameters
    ----------
    accelerator
        With its bundle loaded. Nobody else runs anything on it meanwhile.
    image
        What `Accelerator.run` takes, or int8 codes (H, W, C).

    Raises
    ------
    ValueError, RunStopped, AcceleratorTimeout, AcceleratorClosed
        As `Accelerator.run`.
    WrongHardware
        When the trace buffer does not hold what the program must have left there.
    """
    bundle = accelerator.bundle
    codes = np.asarray(image)
    if codes.dtype != np.int8:
        codes = accelerator._quantize(codes)
    program = decode(bundle.program)
    found: dict[int, dict[str, int]] = {}
    counters: dict[str, int] = {}
    cycles = []
    with accelerator.locked():
        board = accelerator._board
        for first in range(0, len(program), bundle.config.trace_entries):
            board.write("TRACE_FIRST", first)
            accelerator.run_outputs_int8(codes)
            run = accelerator.last_run
            assert run is not None
            counters = counters or run.counters
            cycles.append(run.cycles)
            last = min(first + bundle.config.trace_entries, len(program))
            found |= read_window(board, program, first, last)
    records = [
        TraceRecord(
            index=index,
            opcode=opcode.name,
            layer=layer_of(bundle.layers, index),
            fields=fields,
            **{k: v for k, v in found[index].items() if k not in ("index", "queue")},
        )
        for index, (opcode, fields) in enumerate(program)
    ]
    return Profile(
        name=bundle.name,
        records=tuple(records),
        counters=dict(counters),
        window_cycles=tuple(cycles),
    )


def decode(program: bytes) -> list[tuple[Opcode, dict[str, int]]]:
    """Decode a program up to its END, which is left out: it leaves no record."""
    decoded: list[tuple[Opcode, dict[str, int]]] = []
    for start in range(0, len(program), isa.INSTRUCTION_BYTES):
        opcode, fields = isa.decode(program[start : start + isa.INSTRUCTION_BYTES])
        if opcode is Opcode.END:
            break
        decoded.append((opcode, fields))
    return decoded


def layer_of(layers: Sequence[LayerRecord], index: int) -> str | None:
    """Name the layer whose first to last instruction an index lies among, or None.

    Of several, where layers are interleaved, it is the one with the fewest instructions.
    """
    around = [r for r in layers if r.first_instruction <= index <= r.last_instruction]
    if not around:
        return None
    return min(around, key=lambda r: r.last_instruction - r.first_instruction).name


def read_window(
    board: Board, program: Sequence[tuple[Opcode, dict[str, int]]], first: int, last: int
) -> dict[int, dict[str, int]]:
    """Read the records of instructions `first` to `last` - 1, by index; all must be there."""
    count, dropped = board.read("TRACE_COUNT"), board.read("TRACE_DROPPED")
    if (count, dropped) != (last - first, len(program) - last):
        raise WrongHardware(
            f"the trace of instructions {first} to {last - 1} of {len(program)} must hold "
            f"{last - first} records and have dropped {len(program) - last}, not {count} and "
            f"{dropped}; does another process use the accelerator?"
        )
    records = {}
    for number in range(count):
        record = _read_record(board, number)
        records[record["index"]] = record
    wrong = sorted(set(range(first, last)) ^ set(records)) or [
        index
        for index, record in records.items()
        if record["queue"] != isa.QUEUE_OF[program[index][0]]
    ]
    if wrong:
        raise WrongHardware(
            f"the trace must hold one record of each instruction from {first} to {last - 1}; "
            f"check those of {wrong[:8]}"
        )
    return records


def _read_record(board: Board, number: int) -> dict[str, int]:
    """Read a record. Reads may overtake a write: wait until TRACE_INDEX has arrived."""
    board.write("TRACE_INDEX", number)
    for _ in range(INDEX_POLLS):
        if board.read("TRACE_INDEX") == number:
            break
    else:
        raise WrongHardware(
            f"TRACE_INDEX must read {number} after writing it; load the bitstream again"
        )
    words = [board.read(f"TRACE_DATA{i}") for i in range(TRACE_WORDS)]
    return TRACE_RECORD.unpack(sum(word << WORD_BITS * i for i, word in enumerate(words)))
