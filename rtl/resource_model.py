# SPDX-License-Identifier: Apache-2.0
"""The hardware room: what a configuration takes of an FPGA, by arithmetic, in microseconds.

Multipliers and block RAMs are counted as Yosys maps them, exactly. LUTs and flip-flops are sums
over the blocks: each block's count is linear in a few numbers of the configuration (`FEATURES`),
with coefficients that `calibrate` finds from configurations that Yosys has synthesised and
``resource_model.json`` keeps, with their error. `resources` is the measure, this is its shadow, for
searches that ask about thousands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hwgen.arch import resample
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES
from hwgen.arch.trace import TRACE_RECORD
from rtl.resources import FAMILIES, Usage

COEFFICIENTS = Path(__file__).with_suffix(".json")

#: Multipliers of a lane of NFU-3: the sum's low bits, its high bits, the residual.
REQUANTIZER_PRODUCTS = ((17, 16), (15, 16), (9, 24))
#: Multipliers of a pair of bytes of the resampler's rows, and of a channel of its columns.
RESAMPLER_PRODUCTS = ((25, 10), (17, 10))
#: Two int8 products share one of 25 x 8 bits.
PACKED_PRODUCT = (25, 8)

#: A block RAM's data bits by its depth, smallest first; what it is of 36 Kbit.
_XC7_RAMS = (
    (1.0, {512: 72, 1024: 36, 2048: 18, 4096: 9, 8192: 4, 16384: 2, 32768: 1}),
    (0.5, {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}),
)
_ECP5_RAMS = ((0.5, {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}),)
_RAMS = {"xc7": _XC7_RAMS, "ecp5": _ECP5_RAMS}
#: Words up to which a memory is made of LUTs.
_LUT_WORDS = {"xc7": 64, "ecp5": 32}

# What a block's LUTs and flip-flops grow with. N, I, P are tn, ti, tp; D and L the lanes of ti
# whose products DSP slices and LUTs make; A the bits of a scratchpad address, B its banks; R is 1
# with a resampler.
_Numbers = Mapping[str, float]
FEATURES: dict[str, tuple[Callable[[_Numbers], float], ...]] = {
    "compute": (lambda c: 1, lambda c: c["I"] * c["P"], lambda c: c["N"]),
    "compute.accumulators": (lambda c: c["N"], lambda c: c["N"] * c["P"]),
    "compute.array": (
        lambda c: c["N"] * c["P"] * c["D"],
        lambda c: c["N"] * c["P"] * c["L"],
        lambda c: c["I"] * (c["N"] + c["P"]),
    ),
    "compute.inputs": (lambda c: 1, lambda c: c["P"], lambda c: c["A"]),
    "compute.lanes": (
        lambda c: c["N"] * c["P"],
        lambda c: c["N"] * c["N"],
        lambda c: c["I"] * c["P"],
    ),
    "compute.outputs": (lambda c: 1, lambda c: c["A"]),
    "compute.requantizer": (lambda c: 1, lambda c: c["N"]),
    "compute.sequencer": (lambda c: 1,),
    "control": (lambda c: 1,),
    "dispatch": (lambda c: 1,),
    "load": (lambda c: 1, lambda c: c["I"], lambda c: c["R"]),
    "read_master": (lambda c: 1,),
    "registers": (lambda c: 1,),
    "scratchpad": (
        lambda c: c["B"] * c["P"],
        lambda c: c["B"] * c["I"],
        lambda c: c["I"] * c["P"] * c["P"],
    ),
    "store": (lambda c: 1, lambda c: c["I"]),
    "synapse_buffer": (lambda c: c["N"], lambda c: c["N"] * c["I"]),
    "tap_buffer": (lambda c: 1,),
    "top": (lambda c: 1,),
    "trace": (lambda c: 1,),
    "write_master": (lambda c: 1,),
}


def predict_resources(config: AcceleratorConfig, family: str = "xc7") -> Usage:
    """Return what `resources.estimate_resources` would count, without synthesis.

    `dsp` and `bram36` are exact for memories of more than 64 words (32 for ecp5), `lut` and `ff`
    within 10 % (`worst_error`); `lutram` and `carry` are 0, for they are not predicted.

    Raises
    ------
    ValueError
        If `family` is none of `FAMILIES`.
    """
    return sum(predict_blocks(config, family).values(), Usage())


def predict_blocks(config: AcceleratorConfig, family: str = "xc7") -> dict[str, Usage]:
    """Return `predict_resources` block by block."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, not {family!r}")
    numbers = _numbers(config)
    blocks = {}
    for block, each in _coefficients()[family]["blocks"].items():
        values = [feature(numbers) for feature in FEATURES[block]]
        lut, ff = (
            round(sum(k * v for k, v in zip(each[kind], values, strict=True)))
            for kind in ("lut", "ff")
        )
        blocks[block] = Usage(lut=lut, ff=ff)
    for block, depth, width, part, count in _memories(config):
        ram = count * block_rams(depth, width, family, part)
        blocks[block] = blocks.get(block, Usage()) + Usage(bram36=ram)
    in_dsp, _ = config.multiplier_lanes
    products = {
        "compute.array": (config.tn * config.tp * in_dsp // 2, (PACKED_PRODUCT,)),
        "compute.requantizer": (config.tn, REQUANTIZER_PRODUCTS),
    }
    if config.resampler_row_bytes:
        products["load"] = (resample.CHANNELS_MOST, RESAMPLER_PRODUCTS)
    for block, (count, shapes) in products.items():
        slices = count * sum(_slices(shape, family) for shape in shapes)
        blocks[block] = blocks.get(block, Usage()) + Usage(dsp=slices)
    return dict(sorted(blocks.items()))


def block_rams(depth: int, width: int, family: str = "xc7", part: int | None = None) -> float:
    """Return the 36 Kbit block RAMs of a memory with one read and one write port.

    `part` are the bits that are written together; the word is that wide if None. A block RAM holds
    bits of one part alone (bytes of several parts where that is no worse), in one shape for the
    whole memory; a shallower shape is stacked with a multiplexer where it wastes fewer bits.
    """
    if depth <= _LUT_WORDS[family]:
        return 0.0
    part = part or width
    found = []
    for size, shapes in _RAMS[family]:
        for words, bits in shapes.items():
            if words < depth and not _stacks(family, words, bits, width, part):
                continue
            rams = -(-depth // words) * (width // part) * -(-part // bits)
            found.append(size * rams)
            if bits >= 2 * part and part % 8 == 0:
                found.append(size * -(-depth // words) * -(-width // (bits // part * part)))
    return min(found)


def _stacks(family: str, words: int, bits: int, width: int, part: int) -> bool:
    """Say whether Yosys stacks a shape: one with parity bits, which narrower shapes lack."""
    return bits == 9 and part == width and family == "xc7"


def worst_error(family: str = "xc7") -> dict[str, float]:
    """Return the largest error in percent of the configurations that the model was made from."""
    return dict(_coefficients()[family]["worst_error_percent"])


def calibrate(
    samples: Iterable[tuple[AcceleratorConfig, Mapping[str, Usage]]],
) -> dict[str, Any]:
    """Return coefficients and their error from configurations with their blocks' usage.

    Coefficients are those of least squares of the relative error, none of them negative.
    """
    from scipy.optimize import nnls

    known = [(config, _numbers(config), blocks) for config, blocks in samples]
    found: dict[str, dict[str, list[float]]] = {}
    for block in sorted({name for _, _, blocks in known for name in blocks}):
        here = [(numbers, blocks[block]) for _, numbers, blocks in known if block in blocks]
        matrix = np.array([[feature(n) for feature in FEATURES[block]] for n, _ in here], float)
        found[block] = {}
        for kind in ("lut", "ff"):
            counts = np.array([getattr(usage, kind) for _, usage in here], float)
            weights = 1 / np.maximum(counts, 50)
            solved, _ = nnls(matrix * weights[:, None], counts * weights)
            found[block][kind] = [float(f"{value:.5g}") for value in solved]
    worst = dict.fromkeys(("lut", "ff"), 0.0)
    for _, numbers, blocks in known:
        for kind in worst:
            counted = sum(getattr(usage, kind) for usage in blocks.values())
            value = sum(
                coefficient * feature(numbers)
                for block in blocks
                for coefficient, feature in zip(found[block][kind], FEATURES[block], strict=True)
            )
            worst[kind] = max(worst[kind], round(100 * abs(value / counted - 1), 2))
    return {
        "worst_error_percent": worst,
        "samples": [config.to_dict() for config, _, _ in known],
        "blocks": found,
    }


@cache
def _coefficients() -> dict[str, Any]:
    return json.loads(COEFFICIENTS.read_text(encoding="utf-8"))


def _numbers(config: AcceleratorConfig) -> dict[str, float]:
    in_dsp, in_lut = config.multiplier_lanes
    return {
        "N": config.tn,
        "I": config.ti,
        "P": config.tp,
        "D": in_dsp,
        "L": in_lut,
        "A": config.scratchpad_address_bits,
        "B": config.scratchpad_banks,
        "R": int(config.resampler_row_bytes > 0),
    }


def _memories(config: AcceleratorConfig) -> list[tuple[str, int, int, int, int]]:
    """Return each block's memories: words, bits, bits written together, how many."""
    from rtl.layouts import TAP
    from rtl.resampler import SUM_BITS

    word, tap = 8 * config.ti, TAP.size
    slices = config.scratchpad_slices
    found = [
        (
            "scratchpad",
            config.scratchpad_bank_words // slices,
            word,
            8 * config.tn,
            config.scratchpad_banks * slices,
        ),
        ("synapse_buffer", config.synapse_rows, word, word, config.tn),
        ("tap_buffer", config.tap_entries, tap, tap, 1),
    ]
    found.append(("trace", config.trace_entries, TRACE_RECORD.bits, TRACE_RECORD.bits, 1))
    if config.resampler_row_bytes:
        steps, sums = 8 * BEAT_BYTES, BEAT_BYTES * SUM_BITS
        found.append(("load", 2 * resample.STEP_WORDS, steps, steps, 1))
        found.append(("load", config.resampler_row_bytes // BEAT_BYTES, sums, sums, 1))
    return found


def _slices(shape: tuple[int, int], family: str) -> int:
    """Return the DSP slices of a product of so many bits, signs included."""
    wide, narrow = max(shape), min(shape)
    if family == "xc7":
        return 1
    return -(-wide // 18) * -(-narrow // 18)
