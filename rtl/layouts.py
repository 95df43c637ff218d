# SPDX-License-Identifier: Apache-2.0
"""The hardware room: signal layouts and port signatures, derived from the contract."""

from __future__ import annotations

from amaranth.hdl import ShapeLike, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.fields import Layout
from hwgen.arch.registers import ErrorCode
from hwgen.arch.trace import INDEX_BITS

ADDRESS_BITS = 16
ERROR_BITS = 8


def struct_of(layout: Layout) -> data.StructLayout:
    """Return the struct of a contract layout: its fields from bit 0, without the unused rest."""
    return data.StructLayout(
        {
            field.name: signed(field.bits) if field.signed else unsigned(field.bits)
            for field in layout.fields
        }
    )


def int8_lanes(lanes: int) -> data.ArrayLayout:
    """Return the layout of `lanes` int8 values, lane 0 in the lowest byte."""
    return data.ArrayLayout(signed(8), lanes)


def synapse_row(config: AcceleratorConfig) -> data.ArrayLayout:
    """Return the layout of an SB row: tn slots of ti int8 weights."""
    return data.ArrayLayout(int8_lanes(config.ti), config.tn)


def lane_block(config: AcceleratorConfig) -> range:
    """Return the shape of a block's number in its word; a bit even where there is but one."""
    return range(max(config.ti // config.tn, 2))


COMPUTE = struct_of(isa.COMPUTE)
TAP = struct_of(isa.TAP)
CHANNEL_PARAMETERS = struct_of(isa.CHANNEL_PARAMETERS)


def indexed(fields: data.StructLayout) -> data.StructLayout:
    """Return an instruction's fields with the index that an error names it by."""
    return data.StructLayout({"fields": fields, "index": unsigned(INDEX_BITS)})


def read_port(address_bits: int, shape: ShapeLike) -> wiring.Signature:
    """Return a memory read port, seen from the reader.

    `address` is sampled in a cycle in which `enable` is high; `data` follows the memory's
    LATENCY later and lasts one cycle.
    """
    return wiring.Signature(
        {"enable": Out(1), "address": Out(address_bits), "data": wiring.In(shape)}
    )


def scratchpad_write(config: AcceleratorConfig) -> wiring.Signature:
    """Return the scratchpad's write port, seen from the writer: always accepted.

    `mask` has a bit for each block of tn lanes.
    """
    return wiring.Signature(
        {
            "enable": Out(1),
            "address": Out(config.scratchpad_address_bits),
            "mask": Out(config.ti // config.tn),
            "data": Out(8 * config.ti),
        }
    )


def completion() -> wiring.Signature:
    """Return an engine's completion pulse with the tokens that it gives."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "signal_load": Out(1),
            "signal_compute": Out(1),
            "signal_store": Out(1),
        }
    )


def error_report() -> wiring.Signature:
    """Return an engine's error pulse: an `ErrorCode` and the index of the instruction."""
    return wiring.Signature({"valid": Out(1), "code": Out(ERROR_BITS), "index": Out(INDEX_BITS)})


assert max(ErrorCode) < 1 << ERROR_BITS
