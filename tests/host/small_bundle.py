# SPDX-License-Identifier: Apache-2.0
"""Room tests: a linear layer as a hand-written bundle, small enough to check by eye."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa, numerics
from hwgen.arch.bundle import (
    BASE_CONSTANTS,
    BASE_INPUT,
    BASE_OUTPUT,
    Bundle,
    LayerRecord,
    Placement,
    TensorPlacement,
)
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Opcode

CONFIG = AcceleratorConfig(
    tn=4, ti=8, scratchpad_bank_words=64, synapse_rows=64, tap_entries=64, queue_depth=2
)
MULTIPLIER, SHIFT = 1 << 14, 24


def linear_bundle(
    weight: NDArray[np.int8],
    name: str = "linear",
    synapse_row: int = 0,
    tap_entry: int = 0,
    scale: float = 0.5,
    pictures: bool = True,
    labels: tuple[str, ...] | None = None,
) -> Bundle:
    """Compile ``y = clamp(round(weight . x / 1024))`` by hand for `CONFIG`.

    `weight` is int8 (outputs, channels, side, side): at most 4 outputs and 8 channels. The layer
    is one COMPUTE of side * side taps with one output pixel.
    """
    outputs, channels, side, _ = weight.shape
    ti, tn, taps = CONFIG.ti, CONFIG.tn, side * side
    slot = isa.CHANNEL_PARAMETERS.pack({"multiplier": MULTIPLIER, "shift": SHIFT})
    rows = np.zeros((CONFIG.parameter_rows + taps, tn, ti), dtype=np.int8)
    raw = np.frombuffer(slot.to_bytes(CONFIG.parameter_rows * ti, "little"), dtype=np.int8)
    rows[: CONFIG.parameter_rows] = raw.reshape(-1, 1, ti)
    by_tap = weight.transpose(2, 3, 0, 1).reshape(taps, outputs, channels)
    rows[CONFIG.parameter_rows :, :outputs, :channels] = by_tap
    entries = b"".join(
        isa.TAP.pack({"offset": y * side + x, "dy": y, "dx": x}).to_bytes(isa.TAP_BYTES, "little")
        for y in range(side)
        for x in range(side)
    )
    constants = rows.tobytes() + entries

    def load(target: LoadTarget, first: int, size: int, place: int, **tokens: int) -> bytes:
        return isa.encode(
            Opcode.LOAD,
            target=target,
            base=BASE_CONSTANTS,
            offset_bytes=first,
            row_bytes=size,
            rows=1,
            destination=place,
            check=1,
            crc32=zlib.crc32(constants[first : first + size]),
            **tokens,
        )

    setup = (
        load(LoadTarget.SYNAPSE, 0, rows.nbytes, synapse_row)
        + load(LoadTarget.TAP, rows.nbytes, len(entries), tap_entry)
        + isa.encode(Opcode.END)
    )
    program = b"".join(
        [
            isa.encode(
                Opcode.LOAD,
                target=LoadTarget.SCRATCHPAD,
                base=BASE_INPUT,
                pitch_bytes=side * ti,
                row_bytes=side * ti,
                rows=side,
                destination_pitch=side,
                words_per_row=side,
                step_bytes=ti,
                take_bytes=ti,
                signal_compute=1,
            ),
            isa.encode(
                Opcode.COMPUTE,
                wait_load=1,
                signal_store=1,
                tap_address=tap_entry,
                tap_count=taps,
                synapse_address=synapse_row,
                weight_address=synapse_row + CONFIG.parameter_rows,
                input_height=side,
                input_width=side,
                stride_y=1,
                stride_x=1,
                output_address=CONFIG.scratchpad_bank_words,
                output_height=1,
                output_width=1,
                lo=-128,
                hi=127,
            ),
            isa.encode(
                Opcode.STORE,
                wait_compute=1,
                base=BASE_OUTPUT,
                rows=1,
                words_per_row=1,
                source=CONFIG.scratchpad_bank_words,
            ),
            isa.encode(Opcode.END),
        ]
    )
    placed = dict(offset_bytes=0, pixel_bytes=ti)
    return Bundle(
        name=name,
        config=CONFIG,
        placement=Placement(synapse_row, len(rows), tap_entry, taps),
        setup=setup,
        program=program,
        constants=constants,
        input=TensorPlacement(
            name="x",
            shape=(channels, side, side),
            scale=1 / 64,
            zero_point=0,
            pitch_bytes=side * ti,
            size_bytes=side * side * ti,
            lanes=tuple(range(channels)),
            **placed,
        ),
        outputs=(
            TensorPlacement(
                name="y",
                shape=(outputs, 1, 1),
                scale=scale,
                zero_point=0,
                pitch_bytes=ti,
                size_bytes=ti,
                lanes=tuple(range(outputs)),
                vector=True,
                **placed,
            ),
        ),
        output_bytes=ti,
        scratch_bytes=0,
        layers=(LayerRecord(name, "linear", 1, 1, weight.size, 0, taps, (outputs, 1, 1)),),
        mean=(0.5,) * channels if pictures else None,
        std=(0.25,) * channels if pictures else None,
        labels=labels,
    )


def expected(weight: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Compute what the bundle of `weight` answers to int8 codes (H, W, C)."""
    x = codes.transpose(2, 0, 1).astype(np.int64)
    total = (weight.astype(np.int64) * x).sum(axis=(1, 2, 3))
    return numerics.requantize(total, MULTIPLIER, SHIFT, 0, -128, 127)
