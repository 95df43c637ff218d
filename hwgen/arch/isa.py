# SPDX-License-Identifier: Apache-2.0
"""The contract room: the instruction set. One layout an instruction, its loop nest beside it.

An instruction is 64 bytes, little-endian, aligned to 64 bytes in DDR; its last four bytes are
the CRC-32 (zlib's) of the 60 before them. The dispatcher fetches instructions in order and hands
each to its queue; LOAD, COMPUTE and STORE run ahead of each other and meet by tokens. There is a
counter for each ordered pair of queues. An instruction starts when every counter it waits for is
above zero, takes one from each, and on completion adds one to each counter it signals.

`docs/isa.md` is generated from this file by ``shears docs``.
"""

from __future__ import annotations

import enum
import zlib

from hwgen.arch.fields import Field, Layout
from hwgen.arch.numerics import BIAS_BITS, MULTIPLIER_BITS, RESIDUAL_MULTIPLIER_BITS, SHIFT_BITS

ISA_VERSION = 3
BEAT_BYTES = 8
INSTRUCTION_BYTES = 64
CRC_BYTES = 4
_BODY_BITS = 8 * (INSTRUCTION_BYTES - CRC_BYTES)
TAP_BYTES = BEAT_BYTES


class Opcode(enum.IntEnum):
    """Instruction kinds. 0 is illegal, so that empty memory is no program."""

    LOAD = 1
    COMPUTE = 2
    STORE = 3
    END = 4


class Queue(enum.IntEnum):
    """The three queues, in the order of the token bits."""

    LOAD = 0
    COMPUTE = 1
    STORE = 2


class LoadTarget(enum.IntEnum):
    """Which memory a LOAD fills."""

    SCRATCHPAD = 0
    SYNAPSE = 1
    TAP = 2
    RESAMPLER = 3


class Mode(enum.IntEnum):
    """What the array does with a step's input word."""

    DENSE = 0
    DEPTHWISE = 1
    MAXIMUM = 2
    SUM = 3


_HEADER = (
    Field("opcode", 4, "Instruction kind."),
    Field("wait_load", 1, "Wait for a token from the load queue."),
    Field("wait_compute", 1, "Wait for a token from the compute queue."),
    Field("wait_store", 1, "Wait for a token from the store queue."),
    Field("signal_load", 1, "On completion give the load queue a token."),
    Field("signal_compute", 1, "On completion give the compute queue a token."),
    Field("signal_store", 1, "On completion give the store queue a token."),
)

HEADER = Layout("HEADER", _HEADER, _BODY_BITS)

LOAD = Layout(
    "LOAD",
    (
        *_HEADER,
        Field("target", 2, "0 scratchpad, 1 synapse buffer, 2 tap buffer, 3 resampler tables."),
        Field("base", 3, "Base register that `offset_bytes` is added to."),
        Field("check", 1, "Compare the CRC-32 of all bytes fetched with `crc32`."),
        Field("offset_bytes", 32, "First row in DDR, relative to the base; a multiple of 8."),
        Field("pitch_bytes", 24, "From one row in DDR to the next; a multiple of 8."),
        Field("row_bytes", 24, "Bytes fetched of each row, at least 1."),
        Field("rows", 16, "Rows, at least 1."),
        Field("destination", 16, "First word, SB row, tap entry or table word written."),
        Field("destination_pitch", 16, "Scratchpad words from one row to the next."),
        Field("words_per_row", 16, "Scratchpad words written for each row."),
        Field("lead_bytes", 8, "Pad bytes in front of each row's bytes."),
        Field("step_bytes", 8, "Row bytes from one word to the next."),
        Field("take_bytes", 8, "Lanes of a word filled from the row; the others hold the pad."),
        Field("pad_value", 8, "Fills leading, trailing and unused lanes.", signed=True),
        Field("crc32", 32, "Expected CRC-32 (zlib's) of the bytes fetched, whole beats."),
        Field("resample", 1, "Make the rows out of a frame's, by the resampler's tables."),
        Field("channels", 3, "Resampled: bytes a pixel, 1 to 4."),
        Field("source_bytes", 16, "Resampled: bytes of a source row, from the first pixel's on."),
        Field("first_step", 12, "Resampled: first row step."),
        Field("row_steps", 12, "Resampled: row steps, at least 1; `rows` of them are last ones."),
        Field("column_steps", 12, "Resampled: column steps, at least 1."),
    ),
    _BODY_BITS,
)

COMPUTE = Layout(
    "COMPUTE",
    (
        *_HEADER,
        Field("mode", 2, "0 dense, 1 depthwise, 2 maximum, 3 sum."),
        Field("residual", 1, "Add a residual map before the rounding."),
        Field("resume", 1, "Go on with the sums of the COMPUTE before, which held as many pixels."),
        Field("hold", 1, "Keep the sums and write nothing. As resume: dense, up to tp pixels."),
        Field("start_delay", 8, "Cycles from the previous COMPUTE's last step to the first here."),
        Field("tap_address", 14, "First tap of the group's list."),
        Field("tap_count", 12, "Taps of the group, at least 1."),
        Field("synapse_address", 14, "First SB row of the group's channel parameters."),
        Field("weight_address", 14, "First SB row of the group's weights."),
        Field("input_start", 16, "Word address that output (0, 0) adds its taps to, modulo 2^16."),
        Field("input_pixel_step", 16, "Words from one output pixel's input to the next in x."),
        Field("input_row_step", 16, "Words from one output row's input to the next."),
        Field("input_height", 12, "Rows of the input; taps outside see `pad_value`."),
        Field("input_width", 12, "Pixels of an input row; taps outside see `pad_value`."),
        Field("origin_y", 8, "Input row of tap dy = 0 of output row 0.", signed=True),
        Field("origin_x", 8, "Input pixel of tap dx = 0 of output pixel 0.", signed=True),
        Field("stride_y", 4, "Input rows from one output row to the next."),
        Field("stride_x", 4, "Input pixels from one output pixel to the next."),
        Field("pad_value", 8, "What taps outside the input see.", signed=True),
        Field("output_address", 16, "Word that output (0, 0) is written to."),
        Field("output_pixel_step", 16, "Words from one output pixel to the next."),
        Field("output_row_step", 16, "Words from one output row to the next."),
        Field("output_height", 12, "Output rows, at least 1."),
        Field("output_width", 12, "Output pixels of a row, at least 1."),
        Field("lane_block", 4, "Which block of tn lanes of the word the group is."),
        Field(
            "residual_address", 16, "Word of the residual of output (0, 0); steps as the output."
        ),
        Field("residual_zero_point", 8, "Zero point of the residual map.", signed=True),
        Field("zero_point", 8, "Zero point of the output.", signed=True),
        Field("lo", 8, "Lower clamp of the output.", signed=True),
        Field("hi", 8, "Upper clamp of the output.", signed=True),
    ),
    _BODY_BITS,
)

STORE = Layout(
    "STORE",
    (
        *_HEADER,
        Field("base", 3, "Base register that `offset_bytes` is added to."),
        Field("offset_bytes", 32, "First row in DDR, relative to the base; a multiple of 8."),
        Field("pitch_bytes", 24, "From one row in DDR to the next; a multiple of 8."),
        Field("rows", 16, "Rows, at least 1."),
        Field("words_per_row", 16, "Scratchpad words of each row, at least 1."),
        Field("source", 16, "First word read."),
        Field("source_pitch", 16, "Scratchpad words from one row to the next."),
    ),
    _BODY_BITS,
)

END = Layout("END", _HEADER, _BODY_BITS)

LAYOUTS = {
    Opcode.LOAD: LOAD,
    Opcode.COMPUTE: COMPUTE,
    Opcode.STORE: STORE,
    Opcode.END: END,
}

QUEUE_OF = {Opcode.LOAD: Queue.LOAD, Opcode.COMPUTE: Queue.COMPUTE, Opcode.STORE: Queue.STORE}

TAP = Layout(
    "TAP",
    (
        Field("offset", 16, "Words from the output pixel's input to this tap's, modulo 2^16."),
        Field("dy", 6, "Input rows below the origin."),
        Field("dx", 6, "Input pixels right of the origin."),
    ),
    8 * TAP_BYTES,
)

CHANNEL_PARAMETERS = Layout(
    "CHANNEL_PARAMETERS",
    (
        Field("bias", BIAS_BITS, "Added to the sum of products.", signed=True),
        Field("multiplier", MULTIPLIER_BITS, "Of the sum."),
        Field("shift", SHIFT_BITS, "Right shift after both products; 0 to 47."),
        Field("residual_multiplier", RESIDUAL_MULTIPLIER_BITS, "Of the residual less its zero."),
    ),
    80,
)

LOOP_NESTS = {
    Opcode.LOAD: """\
for r in range(rows):
    address = base[base] + offset_bytes + r * pitch_bytes
    stream = [pad_value] * lead_bytes + memory[address : address + row_bytes] + [pad_value] * ...
    if target == SCRATCHPAD:
        for j in range(words_per_row):
            word = stream[j * step_bytes : j * step_bytes + take_bytes] + [pad_value] * ...
            scratchpad[destination + r * destination_pitch + j] = word[0 : ti]
    elif target == SYNAPSE:   # rows = 1; row_bytes a multiple of tn * ti
        for j, row in enumerate(chunks(stream, tn * ti)):
            SB[destination + j] = row reshaped (tn, ti)
    elif target == TAP:       # rows = 1; one tap a beat of 8 bytes
        for j, entry in enumerate(chunks(stream, 8)):
            taps[destination + j] = entry
    elif target == RESAMPLER: # rows = 1; row_bytes a multiple of 8
        for j, word in enumerate(chunks(stream, 8)):
            tables[destination + j] = word
if resample:                  # target = SCRATCHPAD; a row's bytes, instead of memory's, are made
    y = -1                    # base and offset_bytes may be any; pitch_bytes is the frame's
    for step in row_steps[first_step : first_step + row_steps]:
        y += step.advance
        address = base[base] + offset_bytes + (y - step.previous) * pitch_bytes
        sums[b] += step.weight * memory[address + b]          # of source_bytes; from 0 in a row
        if step.last:
            x = -1
            for step in column_steps[0 : column_steps]:
                x += step.advance
                pixel[c] += step.weight * sums[(x - step.previous) * channels + c]
                if step.last:
                    the row's next bytes are codes[c][(pixel[c] + 32768) >> 16] for each channel c
if check and crc32(all beats fetched) != crc32: stop with DATA_CHECKSUM""",
    Opcode.COMPUTE: """\
parameters = SB[synapse_address : synapse_address + parameter_rows]   # one slot a channel
weights    = SB[weight_address : ...]
for y in range(output_height):
    for x in range(output_width):              # tp neighbours in x at once
        acc[n] = acc[n] if resume else bias[n]
        for k in range(tap_count):             # one step a cycle
            tap = taps[tap_address + k]
            iy, ix = origin_y + y * stride_y + tap.dy, origin_x + x * stride_x + tap.dx
            address = input_start + y * input_row_step + x * input_pixel_step + tap.offset
            word = scratchpad[address % 2**16] if (iy, ix) inside the input else [pad_value] * ti
            lane = word[lane_block * tn : (lane_block + 1) * tn]
            DENSE:     acc[n] += sum(weights[k][n][i] * word[i] for i in range(ti))
            DEPTHWISE: acc[n] += weights[k // tn][k % tn][n] * lane[n]
            MAXIMUM:   acc[n] = lane[n] if k == 0 else max(acc[n], lane[n])
            SUM:       acc[n] += lane[n]
        if hold: continue
        here = y * output_row_step + x * output_pixel_step
        r[n] = scratchpad[residual_address + here][lane_block * tn + n] - residual_zero_point
        total = acc[n] * multiplier[n] + (r[n] * residual_multiplier[n] if residual else 0)
        result = clamp(zero_point + round_half_up(total / 2**shift[n]), lo, hi)
        scratchpad[output_address + here][lane_block * tn + n] = result""",
    Opcode.STORE: """\
for r in range(rows):
    address = base[base] + offset_bytes + r * pitch_bytes
    for j in range(words_per_row):
        word = scratchpad[source + r * source_pitch + j]
        memory[address + j * ti : address + (j + 1) * ti] = word""",
    Opcode.END: """\
wait until the three queues are empty and their engines idle; set DONE, raise the interrupt""",
}


class DecodeError(ValueError):
    """Bytes are no instruction; `checksum` tells a bad CRC from a bad opcode."""

    def __init__(self, message: str, checksum: bool) -> None:
        super().__init__(message)
        self.checksum = checksum


def encode(opcode: Opcode, **values: int) -> bytes:
    """Encode one instruction, CRC included; raises FieldRangeError for a value that won't fit."""
    body = LAYOUTS[opcode].pack({"opcode": opcode, **values})
    data = body.to_bytes(INSTRUCTION_BYTES - CRC_BYTES, "little")
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def decode(data: bytes) -> tuple[Opcode, dict[str, int]]:
    """Decode 64 bytes into opcode and fields; raises DecodeError."""
    body, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if len(data) != INSTRUCTION_BYTES or zlib.crc32(body) != int.from_bytes(crc, "little"):
        raise DecodeError(f"instruction checksum does not match: {data.hex()}", checksum=True)
    word = int.from_bytes(body, "little")
    number = HEADER.unpack(word)["opcode"]
    if number not in LAYOUTS:
        raise DecodeError(f"opcode {number} does not exist", checksum=False)
    opcode = Opcode(number)
    return opcode, LAYOUTS[opcode].unpack(word)


def disassemble(program: bytes) -> str:
    """One line an instruction: index, opcode, and every field that is not zero."""
    lines = []
    for index in range(len(program) // INSTRUCTION_BYTES):
        data = program[index * INSTRUCTION_BYTES : (index + 1) * INSTRUCTION_BYTES]
        opcode, values = decode(data)
        shown = " ".join(f"{k}={v}" for k, v in values.items() if v and k != "opcode")
        lines.append(f"{index:5d}  {opcode.name:8s} {shown}")
    return "\n".join(lines)
