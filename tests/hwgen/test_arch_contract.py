# SPDX-License-Identifier: Apache-2.0
"""The tests room: layouts, configuration, instruction set, registers."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, isa, registers
from hwgen.arch.fields import Field, FieldRangeError, Layout
from hwgen.arch.isa import Opcode


def test_layout_round_trip_and_corners() -> None:
    """Packing and unpacking agree for random values and for both ends of every field."""
    rng = np.random.default_rng(1)
    for layout in (*isa.LAYOUTS.values(), isa.TAP, isa.CHANNEL_PARAMETERS):
        for pick in ("minimum", "maximum", "random"):
            values = {
                f.name: int(rng.integers(f.minimum, f.maximum + 1))
                if pick == "random"
                else getattr(f, pick)
                for f in layout.fields
            }
            word = layout.pack(values)
            assert word < 1 << layout.bits
            assert layout.unpack(word) == values


def test_layout_errors() -> None:
    """A value that won't fit, an unknown field and a layout too narrow are refused by name."""
    layout = Layout("L", (Field("a", 4, ""), Field("s", 4, "", signed=True)))
    with pytest.raises(FieldRangeError, match=r"L\.a must be 0 to 15 \(4 bits\), not 16"):
        layout.pack({"a": 16})
    with pytest.raises(FieldRangeError, match=r"L\.s must be -8 to 7 \(4 bits\), not -9"):
        layout.pack({"s": -9})
    with pytest.raises(KeyError, match="no field"):
        layout.pack({"b": 1})
    with pytest.raises(ValueError, match="fields take 4 bits, the layout has 3"):
        Layout("M", (Field("a", 4, ""),), 3)
    with pytest.raises(ValueError, match="distinct"):
        Layout("M", (Field("a", 4, ""), Field("a", 4, "")))


def test_instruction_round_trip() -> None:
    """An instruction is 64 bytes whose CRC-32 is zlib's, and decodes to what was encoded."""
    data = isa.encode(Opcode.COMPUTE, tap_count=9, origin_y=-1, lo=-128, hi=127, mode=2)
    assert len(data) == isa.INSTRUCTION_BYTES
    assert zlib.crc32(data[:-4]).to_bytes(4, "little") == data[-4:]
    opcode, fields = isa.decode(data)
    assert opcode == Opcode.COMPUTE
    assert (fields["tap_count"], fields["origin_y"], fields["lo"], fields["mode"]) == (
        9,
        -1,
        -128,
        2,
    )
    assert "COMPUTE" in isa.disassemble(data)


def test_instruction_errors() -> None:
    """A flipped bit is a checksum error, an opcode that does not exist is named."""
    data = bytearray(isa.encode(Opcode.END))
    data[3] ^= 1
    with pytest.raises(isa.DecodeError, match="checksum") as caught:
        isa.decode(bytes(data))
    assert caught.value.checksum
    body = isa.HEADER.pack({"opcode": 9}).to_bytes(60, "little")
    with pytest.raises(isa.DecodeError, match="opcode 9") as caught:
        isa.decode(body + zlib.crc32(body).to_bytes(4, "little"))
    assert not caught.value.checksum


def test_headers_share_their_bits() -> None:
    """Every instruction begins with the same header, which the dispatcher reads."""
    for layout in isa.LAYOUTS.values():
        assert layout.fields[: len(isa.HEADER.fields)] == isa.HEADER.fields
    assert set(isa.LOOP_NESTS) == set(isa.LAYOUTS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tn": 3}, "tn must be a power of two from 4 to ti"),
        ({"tn": 32}, "raise tp"),
        ({"ti": 12}, "ti must be 8, 16, 32 or 64, not 12"),
        ({"tp": 3}, "tp must be 1, 2 or 4, not 3"),
        ({"synapse_rows": 1000}, "synapse_rows must be a power of two"),
        ({"scratchpad_banks": 17}, "at most 65536 words, not 69632"),
        ({"synapse_rows": 1 << 15}, "at most 16384"),
        ({"max_burst_beats": 17}, "max_burst_beats must be 1 to 16, not 17"),
        ({"queue_depth": 0}, "queue_depth must be a positive integer, not 0"),
        ({"trace_entries": 8}, "trace_entries must be a power of two, 16 to 16384, not 8"),
        ({"trace_entries": 48}, "16 to 16384, not 48"),
        ({"dsp_lanes": -1}, "dsp_lanes must be 0 or a positive integer, not -1"),
        ({"dsp_lanes": True}, "dsp_lanes must be 0 or a positive integer, not True"),
        ({"tap_entries": 2.0}, "tap_entries must be a positive integer, not 2.0"),
    ],
)
def test_config_refuses(change: dict[str, int], text: str) -> None:
    """What cannot be built is refused with the number given."""
    with pytest.raises(ValueError, match=text):
        AcceleratorConfig(**change)


@pytest.mark.parametrize(
    ("dsp_lanes", "ti", "lanes"),
    [(0, 8, (0, 8)), (3, 8, (3, 5)), (8, 16, (8, 8)), (16, 8, (8, 0)), (16, 16, (16, 0))],
)
def test_config_divides_the_lanes(dsp_lanes: int, ti: int, lanes: tuple[int, int]) -> None:
    """DSP slices take as many lanes as are given to them, LUTs the others."""
    config = AcceleratorConfig(tn=4, ti=ti, dsp_lanes=dsp_lanes)
    assert config.multiplier_lanes == lanes


def test_config_digest_tells_configurations_apart() -> None:
    """Every field is in the digest, and plain data gives the same configuration back."""
    base = AcceleratorConfig()
    others = {"tn": 8, "ti": 32, "tp": 2, "scratchpad_banks": 2}
    for field in dataclasses.fields(base):
        value = others.get(field.name, getattr(base, field.name) // 2)
        assert dataclasses.replace(base, **{field.name: value}).digest() != base.digest()
    assert AcceleratorConfig.from_dict(base.to_dict()) == base
    with pytest.raises(ValueError, match="check"):
        AcceleratorConfig.from_dict({"tn": 16})


def test_registers_do_not_overlap() -> None:
    """Offsets are distinct, aligned and inside the address space; fields fit 32 bits."""
    offsets = [r.offset for r in registers.REGISTERS]
    assert len(set(offsets)) == len(offsets)
    assert all(o % 4 == 0 and o < registers.ADDRESS_SPACE_BYTES for o in offsets)
    assert all(r.layout.bits == 32 for r in registers.REGISTERS)
    assert registers.COUNTERS[0] == "CYCLES_TOTAL" and registers.COUNTERS[-1] == "CYCLES_WAIT_BANK"
    assert set(registers.ERROR_HINTS) == set(registers.ErrorCode)
