# SPDX-License-Identifier: Apache-2.0
"""The tests room: the contract of the serial link."""

from __future__ import annotations

import zlib

import pytest

from hwgen.arch import link
from hwgen.arch.link import Command, LinkConfig, PacketError, Status


def test_layouts_are_whole_bytes() -> None:
    for layout in (link.REQUEST, link.ANSWER, link.IDENTITY):
        assert layout.bits % 8 == 0 and sum(f.bits for f in layout.fields) == layout.bits
    assert link.IDENTITY_BYTES % link.MEMORY_BYTES == 0  # it is sent in words
    assert (link.REQUEST_BYTES, link.ANSWER_BYTES, link.IDENTITY_BYTES) == (9, 5, 24)


def test_a_request_on_the_wire() -> None:
    """Header, its checksum, data, their checksum; reads have no data."""
    packet = link.request(Command.WRITE_MEMORY, 7, 0x1000_0040, 8, b"12345678")
    assert packet[:9] == bytes.fromhex("a5 04 07 08 00 40 00 00 10")
    assert packet[9:13] == zlib.crc32(packet[:9]).to_bytes(4, "little")
    assert packet[13:] == b"12345678" + zlib.crc32(b"12345678").to_bytes(4, "little")
    assert len(link.request(Command.READ_MEMORY, 7, 0x1000_0040, 8)) == 13


@pytest.mark.parametrize("data", [b"", b"\x5a", bytes(range(256)) * 16])
def test_an_answer_there_and_back(data: bytes) -> None:
    packet = link.answer(Command.READ_MEMORY, 255, Status.OK, data)
    assert link.answer_length(packet) == len(packet) == 10 + len(data)
    assert link.parse_answer(packet) == link.Answer(3, 255, 0, data)
    for position in range(len(packet)):
        damaged = bytearray(packet)
        damaged[position] ^= 0x40
        with pytest.raises(PacketError):
            link.parse_answer(bytes(damaged))
    for count in (0, 4, len(packet) - 1):
        with pytest.raises(PacketError):
            link.parse_answer(packet[:count])


def test_every_status_has_a_hint_and_one_byte() -> None:
    assert set(link.STATUS_HINTS) == set(Status)
    assert max(Status) < 256 and max(Command) < 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baud": 3_000_000}, r"within 2 %, not 3000000; try \[3076923, 2857142\]"),
        ({"baud": 20_000_000}, "divided by a whole number, 4 or more"),
        ({"baud": 0}, "baud must be positive, not 0"),
        ({"memory_bytes": 5000}, "memory_bytes must be a multiple of 4096"),
        ({"memory_bytes": 1 << 29}, "at most 268435456, not 536870912"),
        ({"quiet_cycles": 10}, r"two bytes' time \(400\) or more, not 10"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, int], message: str) -> None:
    good = {"clock_hz": 40_000_000, "baud": 2_000_000, "memory_bytes": 196_608}
    assert LinkConfig(**good).divider == 20
    assert LinkConfig(**good).quiet == 2_000_000  # 50 ms
    with pytest.raises(ValueError, match=message):
        LinkConfig(**{**good, **changes})
