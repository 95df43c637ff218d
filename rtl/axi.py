# SPDX-License-Identifier: Apache-2.0
"""The hardware room: AXI bus signatures, seen from the master, with the names Vivado expects."""

from __future__ import annotations

import enum

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.isa import BEAT_BYTES
from hwgen.arch.registers import ADDRESS_SPACE_BYTES

ADDRESS_BITS = 32
DATA_BITS = 8 * BEAT_BYTES
BEAT_BYTES_LOG2 = BEAT_BYTES.bit_length() - 1
LITE_ADDRESS_BITS = ADDRESS_SPACE_BYTES.bit_length() - 1

BURST_INCR = 1
CACHE_MODIFIABLE_BUFFERABLE = 3


class Response(enum.IntEnum):
    """AXI response codes."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def _address_channel(prefix: str) -> dict[str, Out]:
    return {
        f"{prefix}id": Out(1),
        f"{prefix}addr": Out(ADDRESS_BITS),
        f"{prefix}len": Out(8),
        f"{prefix}size": Out(3, init=BEAT_BYTES_LOG2),
        f"{prefix}burst": Out(2, init=BURST_INCR),
        f"{prefix}cache": Out(4, init=CACHE_MODIFIABLE_BUFFERABLE),
        f"{prefix}prot": Out(3),
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
    }


READ_MEMBERS = {
    **_address_channel("ar"),
    "rid": In(1),
    "rdata": In(DATA_BITS),
    "rresp": In(2),
    "rlast": In(1),
    "rvalid": In(1),
    "rready": Out(1),
}

WRITE_MEMBERS = {
    **_address_channel("aw"),
    "wdata": Out(DATA_BITS),
    "wstrb": Out(BEAT_BYTES),
    "wlast": Out(1),
    "wvalid": Out(1),
    "wready": In(1),
    "bid": In(1),
    "bresp": In(2),
    "bvalid": In(1),
    "bready": Out(1),
}

LITE_MEMBERS = {
    "awaddr": Out(LITE_ADDRESS_BITS),
    "awprot": Out(3),
    "awvalid": Out(1),
    "awready": In(1),
    "wdata": Out(32),
    "wstrb": Out(4),
    "wvalid": Out(1),
    "wready": In(1),
    "bresp": In(2),
    "bvalid": In(1),
    "bready": Out(1),
    "araddr": Out(LITE_ADDRESS_BITS),
    "arprot": Out(3),
    "arvalid": Out(1),
    "arready": In(1),
    "rdata": In(32),
    "rresp": In(2),
    "rvalid": In(1),
    "rready": Out(1),
}


class ReadSignature(wiring.Signature):
    """AR and R of a 64 bit AXI4 master; the one ID is 0, so responses come in order."""

    def __init__(self) -> None:
        super().__init__(READ_MEMBERS)


class WriteSignature(wiring.Signature):
    """AW, W and B of a 64 bit AXI4 master; the one ID is 0."""

    def __init__(self) -> None:
        super().__init__(WRITE_MEMBERS)


class LiteSignature(wiring.Signature):
    """AXI4-Lite, 32 bit data."""

    def __init__(self) -> None:
        super().__init__(LITE_MEMBERS)


def flat_members(prefix: str, members: dict[str, In | Out], *, slave: bool = False) -> dict:
    """Ports `<prefix>_<name>` of a top module: Vivado infers the interface from these names."""
    return {
        f"{prefix}_{name}": member.flip() if slave else member for name, member in members.items()
    }
