# SPDX-License-Identifier: Apache-2.0
"""The contract room: the resampler in the load path, and the tables that it works by.

A LOAD with `resample` reads a box of a frame in DDR (uint8, channels last) and hands on the box
resized, bit for bit as `hwgen.arch.crop.resize` does it, each pixel already the network's input
code. Both axes of a resize are lists of *steps*: a step adds weight times a row (or a pixel) to
the sum of the output that is being made. For an area average every source row is passed once, and
once more where two outputs share it; a linear interpolation takes two neighbours an output.

The tables lie in one space of 8 byte words, which a LOAD of target RESAMPLER fills: `STEPS` row
steps and as many column steps, `STEPS_PER_WORD` in a word, then the codes of every byte value,
`CODE_WORDS` words a channel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.crop import WEIGHT_ONE, resize_weights
from hwgen.arch.fields import Field, Layout

CHANNELS_MOST = 4
STEPS = 1024
STEPS_PER_WORD = 4
STEP_WORDS = STEPS // STEPS_PER_WORD
CODES = 256
CODE_WORDS = CODES // 8
ROW_STEPS_AT, COLUMN_STEPS_AT, CODES_AT = 0, STEP_WORDS, 2 * STEP_WORDS
TABLE_WORDS = CODES_AT + CHANNELS_MOST * CODE_WORDS

STEP = Layout(
    "STEP",
    (
        Field("weight", WEIGHT_ONE.bit_length(), "Of the row or pixel, in 1/256."),
        Field("previous", 1, "Take the row or pixel before the one the pointer is at."),
        Field("advance", 1, "Move the pointer on by one first; it starts in front of the first."),
        Field("last", 1, "The output is complete."),
    ),
    16,
)


@lru_cache(maxsize=64)
def resize_steps(source: int, target: int) -> NDArray[np.uint16]:
    """Return the steps of one axis of a resize, packed as `STEP`: uint16 (steps,), read-only.

    `target` of them have `last`. The first one advances. There are at most ``source + target``,
    or twice `target` where that is more than `source`.

    Raises
    ------
    ValueError
        If a length is less than 1.
    """
    weights = resize_weights(source, target)
    steps: list[int] = []
    pointer = -1
    for output, row in enumerate(weights):
        if target <= source:  # every source passes by, that its successors may be reached
            sources = range(output * source // target, -(-(output + 1) * source // target))
            ahead = 0
        else:
            used = np.flatnonzero(row)
            sources = range(int(used[0]), int(used[-1]) + 1)
            ahead = max(sources[-1], pointer)  # of two neighbours, the pointer is at the second
        mine: list[dict[str, int]] = []
        for place in sources:
            at = max(place, ahead)
            advance = at - pointer
            if row[place] or advance:
                mine.append({"weight": int(row[place]), "previous": at - place, "advance": advance})
                pointer = at
        mine[-1]["last"] = 1
        steps += [STEP.pack(step) for step in mine]
    packed = np.array(steps, dtype=np.uint16)
    packed.setflags(write=False)
    return packed


def steps_of_outputs(steps: NDArray[np.uint16], first: int, last: int) -> tuple[int, int, int]:
    """Return which steps make outputs [first, last): the first, how many, and the pointer before.

    The pointer is the number of advances before the first step: what a strip of rows starts from.
    """
    fields = unpack_steps(steps)
    ends = np.flatnonzero(fields["last"]) + 1
    begin = int(ends[first - 1]) if first else 0
    return begin, int(ends[last - 1]) - begin, int(fields["advance"][:begin].sum())


def unpack_steps(steps: NDArray[np.uint16]) -> dict[str, NDArray[np.int64]]:
    """Split packed steps into their fields, each int64 (steps,)."""
    wide = np.asarray(steps).astype(np.int64)
    return {
        field.name: wide >> position & (1 << field.bits) - 1 for field, position in STEP.placed()
    }


def table_blocks(
    rows: NDArray[np.uint16], columns: NDArray[np.uint16], codes: NDArray[Any]
) -> list[tuple[int, bytes]]:
    """Return what fills the tables: the first word of each part, and its bytes in whole words.

    `rows` and `columns` are packed steps; `codes` are 8 bit, a channel's 256 after the other's.
    """
    parts = ((ROW_STEPS_AT, rows), (COLUMN_STEPS_AT, columns), (CODES_AT, codes))
    return [(word, part.tobytes() + bytes(-part.nbytes % 8)) for word, part in parts]
