# SPDX-License-Identifier: Apache-2.0
"""The generator room: reference pages written from the contract, so that they cannot rot."""

from __future__ import annotations

from pathlib import Path

from hwgen.arch import isa, registers, resample
from hwgen.arch.fields import Layout
from hwgen.arch.trace import TRACE_RECORD

_NOTE = "<!-- Generated from {source} by `shears docs`; do not edit. -->\n"


def _table(layout: Layout) -> str:
    lines = ["| Bits | Field | Kind | Meaning |", "|---|---|---|---|"]
    for field, position in layout.placed():
        top = position + field.bits - 1
        bits = f"{top}:{position}" if field.bits > 1 else f"{position}"
        kind = f"{'s' if field.signed else 'u'}{field.bits}"
        lines.append(f"| {bits} | `{field.name}` | {kind} | {field.doc} |")
    return "\n".join(lines)


_RESAMPLER_TABLES = (
    (resample.ROW_STEPS_AT, f"{resample.STEPS} row steps, {resample.STEPS_PER_WORD} a word"),
    (resample.COLUMN_STEPS_AT, "as many column steps"),
    (
        resample.CODES_AT,
        f"the code of every byte value, {resample.CODE_WORDS} words a channel",
    ),
)


def isa_page() -> str:
    """Return the instruction set as Markdown: encoding and loop nest of each instruction."""
    assert isa.__doc__ is not None
    _, _, body = isa.__doc__.partition("\n\n")
    parts = [
        _NOTE.format(source="hwgen/arch/isa.py"),
        "# Instruction set\n",
        body.replace("\n\n``docs", "\n\n``docs").split("`docs/isa.md`")[0].strip() + "\n",
        "Opcodes: " + ", ".join(f"{o.value} {o.name}" for o in isa.Opcode) + ".\n",
    ]
    for opcode, layout in isa.LAYOUTS.items():
        parts += [
            f"## {opcode.name}\n",
            f"```python\n{isa.LOOP_NESTS[opcode]}\n```\n",
            _table(layout) + f"\n\nBits 511:480 hold the CRC-32 of bytes 0 to {59}.\n",
        ]
    parts += [
        "## Tap buffer entry\n",
        f"{isa.TAP_BYTES} bytes in DDR, the fields from bit 0.\n",
        _table(isa.TAP) + "\n",
        "## Channel parameters\n",
        "One slot of the SB rows in front of a group's weights, a slot a channel.\n",
        _table(isa.CHANNEL_PARAMETERS) + "\n",
        "## Resampler tables\n",
        f"A space of {resample.TABLE_WORDS} words of 8 bytes, where the machine has a resampler.\n",
        "| Words | Hold |",
        "|---|---|",
        *(f"| {first} on | {what} |" for first, what in _RESAMPLER_TABLES),
        "",
        f"A step has {resample.STEP.bits} bits.\n",
        _table(resample.STEP) + "\n",
    ]
    return "\n".join(parts)


def registers_page() -> str:
    """Return the register map and the error codes as Markdown."""
    parts = [
        _NOTE.format(source="hwgen/arch/registers.py"),
        "# Register map\n",
        f"AXI4-Lite, 32 bit registers in {registers.ADDRESS_SPACE_BYTES} bytes.\n",
        "An access to an offset that is not listed answers SLVERR.\n",
        "| Offset | Register | Access | Reset | Meaning |",
        "|---|---|---|---|---|",
    ]
    for register in registers.REGISTERS:
        doc = register.doc
        if register.fields:
            bits = []
            for field, position in register.layout.placed():
                top = position + field.bits - 1
                where = f"{top}:{position}" if field.bits > 1 else f"{position}"
                bits.append(f"[{where}] `{field.name}`: {field.doc}")
            doc += "<br>" + "<br>".join(bits)
        parts.append(
            f"| 0x{register.offset:02X} | `{register.name}` | {register.access.value} "
            f"| 0x{register.reset:X} | {doc} |"
        )
    parts += ["\n## Error codes\n", "| Code | Name | Meaning |", "|---|---|---|"]
    for code, hint in registers.ERROR_HINTS.items():
        parts.append(f"| {code.value} | `{code.name}` | {hint} |")
    parts.append(
        "\n## Trace\n\n"
        "Each instruction but END leaves a record when it is complete, if its index is among the "
        "`trace_entries` of the configuration from TRACE_FIRST on. A record, whose 32 bit words "
        "are TRACE_DATA0 and so on:\n\n"
        f"{_table(TRACE_RECORD)}\n\n"
        "Write TRACE_FIRST, run, read TRACE_COUNT; for each record write its number to "
        "TRACE_INDEX, read it back, read the data. A longer program is traced in several runs. "
        "Starting a run and a soft reset forget the records; an error does not."
    )
    parts.append(
        "\n## Programming model\n\n"
        "1. Read ID, VERSION and DIGEST; refuse what does not match the bundle.\n"
        "2. Write the constants, the setup program and the program to DDR.\n"
        "3. Write BASE0 (constants), BASE1 (input), BASE2 (output), BASE3 (scratch), "
        "PROGRAM_ADDRESS and PROGRAM_LENGTH of the setup program; write CONTROL.start; wait for "
        "STATUS.done or the interrupt.\n"
        "4. For each image: write it to the input region, point PROGRAM_ADDRESS and PROGRAM_LENGTH "
        "at the program, start, wait, read the output region.\n"
        "5. On STATUS.error read ERROR and ERROR_INSTRUCTION, write CONTROL.soft_reset, wait until "
        "STATUS.resetting is 0, and start again. On-chip memories keep their contents.\n"
    )
    return "\n".join(parts)


PAGES = {"isa.md": isa_page, "registers.md": registers_page}


def write_pages(folder: Path) -> list[Path]:
    """Write every reference page into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, page in PAGES.items():
        (folder / name).write_text(page().rstrip() + "\n", encoding="utf-8")
        written.append(folder / name)
    return written
