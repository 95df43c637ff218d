# SPDX-License-Identifier: Apache-2.0
"""The contract room: a network's program, made to look at a box of a frame instead of its input.

The LOADs of the network's input become resampled ones: they read a box of a frame in DDR, resize
it as `hwgen.arch.crop.resize` does, and turn each byte into the network's input code, on the way
into the scratchpad. Nothing else changes. A program is for boxes of one height and width; where in
the frame the box lies is a base register's affair, so that moving it costs nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa, numerics, resample
from hwgen.arch.bundle import BASE_FRAME, BASE_INPUT, BASE_TABLES, Bundle
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Opcode


class FrameError(ValueError):
    """A bundle can't be run on boxes of a frame, or not on these; the message says why."""


@dataclass(frozen=True)
class FrameProgram:
    """A program that runs a bundle's network on a box of a frame.

    Attributes
    ----------
    program
        Instructions; base registers as the bundle's own, and `BASE_TABLES` and `BASE_FRAME`.
    tables
        What lies at `BASE_TABLES`.
    height, width, pitch_bytes
        The box in pixels, and bytes from one row of the frame to the next. `BASE_FRAME` is the
        address of the box's first byte, any address.
    """

    program: bytes
    tables: bytes
    height: int
    width: int
    pitch_bytes: int


def pitch_of(width: int, channels: int) -> int:
    """Bytes from one row of a frame to the next."""
    return -(-width * channels // BEAT_BYTES) * BEAT_BYTES


def code_table(bundle: Bundle) -> NDArray[np.int8] | None:
    """Return the input code of every byte value, int8 (C, 256); None without mean and std."""
    if bundle.mean is None or bundle.std is None:
        return None
    channels = bundle.input.shape[0]
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], channels, axis=2)
    codes = numerics.quantize(bundle.preprocess(ramp), bundle.input.scale, bundle.input.zero_point)
    return codes.reshape(channels, 256)


def frame_program(bundle: Bundle, height: int, width: int, pitch_bytes: int) -> FrameProgram:
    """Return the program for boxes of `height` x `width` pixels of a frame.

    Parameters
    ----------
    bundle
        Its input is the size that boxes are resized to, and its mean and std say what a byte means.
    height, width
        Of the boxes, in pixels.
    pitch_bytes
        From one row of the frame to the next; a multiple of 8.

    Raises
    ------
    FrameError
        When the machine has no resampler or a box is too large for it, or the bundle takes no
        pictures, or several at once.
    """
    channels, out_height, out_width = bundle.input.shape
    check_bundle(bundle)
    check_box(bundle, height, width, pitch_bytes)
    codes = code_table(bundle)
    rows = resample.resize_steps(height, out_height)
    columns = resample.resize_steps(width, out_width)
    instructions, tables = [], bytearray()
    for word, data in resample.table_blocks(rows, columns, np.asarray(codes)):
        instructions.append(
            isa.encode(
                Opcode.LOAD,
                target=LoadTarget.RESAMPLER,
                base=BASE_TABLES,
                offset_bytes=len(tables),
                row_bytes=len(data),
                rows=1,
                destination=word,
                check=1,
                crc32=zlib.crc32(data),
            )
        )
        tables += data

    box = {
        "resample": 1,
        "base": BASE_FRAME,
        "channels": channels,
        "source_bytes": width * channels,
        "pitch_bytes": pitch_bytes,
        "column_steps": len(columns),
        "row_bytes": out_width * channels,
    }
    size = isa.INSTRUCTION_BYTES
    for at in range(0, len(bundle.program), size):
        raw = bundle.program[at : at + size]
        opcode, fields = isa.decode(raw)
        if opcode == Opcode.LOAD and fields["base"] == BASE_INPUT:
            # Rows that lie end to end may have been loaded as one, and pixels may have been words.
            pixel_bytes = bundle.input.pixel_bytes
            joined = fields["row_bytes"] // (out_width * pixel_bytes)
            first = fields["offset_bytes"] // bundle.input.pitch_bytes
            count = fields["rows"] * joined
            begin, steps, pointer = resample.steps_of_outputs(rows, first, first + count)
            words = fields["words_per_row"] // joined
            fields |= box | {
                "offset_bytes": pointer * pitch_bytes,
                "first_step": begin,
                "row_steps": steps,
                "rows": count,
                "words_per_row": words,
                "destination_pitch": words if joined > 1 else fields["destination_pitch"],
                **{
                    name: fields[name] // pixel_bytes * channels
                    for name in ("lead_bytes", "step_bytes", "take_bytes")
                },
            }
            raw = isa.encode(opcode, **{k: v for k, v in fields.items() if k != "opcode"})
        instructions.append(raw)
    return FrameProgram(b"".join(instructions), bytes(tables), height, width, pitch_bytes)


def check_bundle(bundle: Bundle) -> None:
    """Refuse a network that cannot look at boxes of frames, of whatever size.

    Raises
    ------
    FrameError
        As `frame_program`; the message says what to do instead.
    """
    channels = bundle.input.shape[0]
    named = f"the network {bundle.name!r}"
    if not bundle.config.resampler_row_bytes:
        raise FrameError(
            "the machine has no resampler (resampler_row_bytes is 0); build one that has, or "
            "resize on the host"
        )
    if bundle.mean is None or bundle.std is None:
        raise FrameError(f"{named} must take uint8 pictures; compile with preprocess=(mean, std)")
    if bundle.batch != 1:
        raise FrameError(f"{named} must run one image at once, not {bundle.batch}")
    if channels > resample.CHANNELS_MOST:
        raise FrameError(
            f"{named} must take at most {resample.CHANNELS_MOST} channels, not {channels}"
        )


def check_box(bundle: Bundle, height: int, width: int, pitch_bytes: int) -> None:
    """Refuse a box that the resampler cannot bring to a network's size; as `frame_program`.

    Raises
    ------
    FrameError
        The message says what to do instead.
    """
    channels, out_height, out_width = bundle.input.shape
    longest = bundle.config.resampler_row_bytes
    if height < 1 or width < 1:
        raise FrameError(f"a box must have at least one pixel, not {height!r} x {width!r}")
    if pitch_bytes % BEAT_BYTES or pitch_bytes < width * channels:
        raise FrameError(
            f"rows must be a multiple of {BEAT_BYTES} bytes apart, and {width * channels} or more, "
            f"not {pitch_bytes!r}"
        )
    most = (longest - BEAT_BYTES + 1) // channels  # a row may begin anywhere in a beat
    if width > most:
        raise FrameError(
            f"a box must be at most {most} pixels wide (resampler_row_bytes is {longest}), not "
            f"{width}; try a smaller frame"
        )
    steps = max(
        len(resample.resize_steps(height, out_height)), len(resample.resize_steps(width, out_width))
    )
    if steps > resample.STEPS:
        raise FrameError(
            f"a box of {height} x {width} pixels takes {steps} steps to resize to {out_height} x "
            f"{out_width}, and the resampler has {resample.STEPS}; try a smaller frame"
        )
