# SPDX-License-Identifier: Apache-2.0
"""The host room: one AXI DMA of an overlay, through pynq's own driver, with deadlines.

pynq's `DMA` starts transfers and knows buffers and caches. Its waits have no end and say nothing
of the other channel, so the waiting is done here, on the same registers (PG021, direct register
mode).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from host.board import RESET_TIMEOUT_S, import_pynq
from host.errors import AcceleratorError, AcceleratorTimeout, DeviceNotFound, WrongHardware

DMA_TYPE = "xilinx.com:ip:axi_dma"
MM2S, S2MM = 0x00, 0x30
"""Offsets of the channel that sends and of the one that receives."""

CONTROL, STATUS, LENGTH = 0x00, 0x04, 0x28
RUN, RESET = 1 << 0, 1 << 2
HALTED, IDLE = 1 << 0, 1 << 1
ERRORS: dict[int, tuple[str, str]] = {
    1 << 4: (
        "internal error",
        "the design sends more words than the result has; load the bitstream of the bundle",
    ),
    1 << 5: (
        "slave error",
        "the memory answered SLVERR; check the block design's way from the DMA to the DDR",
    ),
    1 << 6: (
        "decode error",
        "nothing answers at a buffer's address; its address map must hold all of the DDR",
    ),
}
"""Error bits of a status register: name and what to try."""

_NAMES = {HALTED: "halted", IDLE: "idle", **{bit: name for bit, (name, _) in ERRORS.items()}}
_ANY_ERROR = sum(ERRORS)
_SPIN_POLLS = 256
_SLEEP_FIRST_S, _SLEEP_MOST_S = 20e-6, 1e-3


@dataclass(frozen=True)
class DmaStatus:
    """Registers of both channels at one moment.

    Attributes
    ----------
    send, receive
        MM2S_DMASR and S2MM_DMASR.
    received
        S2MM_LENGTH: bytes that came, once the receiving channel is idle.
    """

    send: int
    receive: int
    received: int

    @property
    def done(self) -> bool:
        """Whether both transfers ended well."""
        return bool(self.send & self.receive & IDLE) and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a channel stopped."""
        return bool((self.send | self.receive) & (_ANY_ERROR | HALTED))

    @property
    def bits(self) -> dict[str, int]:
        """Every bit by channel and name, as ``mm2s_idle``."""
        return {
            f"{channel}_{name.replace(' ', '_')}": int(bool(value & bit))
            for channel, value in (("mm2s", self.send), ("s2mm", self.receive))
            for bit, name in _NAMES.items()
        }

    def __str__(self) -> str:
        def one(channel: str, value: int) -> str:
            names = ", ".join(name for bit, name in _NAMES.items() if value & bit)
            return f"{channel}_DMASR {value:#010x} ({names or 'busy'})"

        return f"{one('MM2S', self.send)}, {one('S2MM', self.receive)}"


class DmaTimeout(AcceleratorTimeout):
    """A transfer to or from a streaming design did not end in time.

    Attributes
    ----------
    dma
        Status of both channels when time was up.
    status
        Its bits by name.
    recovered
        Whether the design runs again. If not, load the bitstream again.
    """

    def __init__(self, what: str, seconds: float, dma: DmaStatus, trouble: str) -> None:
        self.dma, self.status, self.recovered, self.how = dma, dma.bits, not trouble, "polling"
        self.counters: dict[str, int] = {}
        self.code = self.queue = 0
        self.instruction, self.text = None, ""
        if not dma.send & IDLE:
            reason = "the design does not take its input: it stands still, or has no clock"
        else:
            reason = (
                "all input was taken and no TLAST came with the result: the design stands still, "
                "or is of another network, which needs more input or gives more output"
            )
        AcceleratorError.__init__(
            self, f"{what} did not end within {seconds:g} s: {dma}; {reason}; {after(trouble)}"
        )


class DmaError(AcceleratorError):
    """The DMA stopped with an error.

    Attributes
    ----------
    dma
        Status of both channels then.
    status
        Its bits by name.
    recovered
        Whether the design runs again. If not, load the bitstream again.
    """

    def __init__(self, what: str, dma: DmaStatus, trouble: str) -> None:
        self.dma, self.status, self.recovered = dma, dma.bits, not trouble
        found = [
            f"{name} of the {channel} channel: {hint}"
            for channel, value in (("sending", dma.send), ("receiving", dma.receive))
            for bit, (name, hint) in ERRORS.items()
            if value & bit
        ]
        reason = "; ".join(found) or (
            "a channel halted without an error; does something else use the DMA?"
        )
        super().__init__(f"{what} was stopped by the DMA: {dma}; {reason}; {after(trouble)}")


def after(trouble: str) -> str:
    """Say how it stands after a failure."""
    if not trouble:
        return "the DMA was reset and the design runs again"
    return f"it does not run again by itself ({trouble}); load the bitstream again"


class Dma:
    """The DMA around a streaming design.

    Parameters
    ----------
    name, entry
        Key and entry of the DMA in the overlay's ip_dict.
    device
        The pynq Device.

    Attributes
    ----------
    most_bytes
        Longest transfer: what the DMA's length register holds.

    Raises
    ------
    WrongHardware
        When its parameters are others than this driver is for.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], device: Any, word_bytes: int) -> None:
        self.name = name
        self._entry, self._device = entry, device
        self.most_bytes = check_parameters(name, entry.get("parameters") or {}, word_bytes)
        pynq = import_pynq()
        self.base_address = int(entry["phys_addr"])
        self._mmio = pynq.MMIO(self.base_address, int(entry["addr_range"]), device=device)
        self._driver: Any = None

    def status(self) -> DmaStatus:
        """Read both channels."""
        read = self._mmio.read
        return DmaStatus(
            int(read(MM2S + STATUS)), int(read(S2MM + STATUS)), int(read(S2MM + LENGTH))
        )

    @property
    def untouched(self) -> bool:
        """Whether nobody transferred anything since the last reset or bitstream."""
        status = self.status()
        lengths = status.received, int(self._mmio.read(MM2S + LENGTH))
        return not any(lengths) and not (status.send | status.receive) & _ANY_ERROR

    @property
    def ready(self) -> bool:
        """Whether pynq's driver can start transfers, as after one that ended well."""
        return self._driver is not None and self.status().done

    def reset(self) -> bool:
        """Stop both channels, whatever they are at; returns whether that worked."""
        self._driver = None
        self._mmio.write(MM2S + CONTROL, RESET)  # one channel's resets both
        return self._until(lambda: not self._control() & RESET, RESET_TIMEOUT_S)

    def start(self) -> None:
        """Reset both channels and start them.

        Raises
        ------
        WrongHardware
            When the DMA does not answer as one.
        """
        if not self.reset():
            raise WrongHardware(
                f"the reset of DMA {self.name!r} at {self.base_address:#010x} must end, and did "
                f"not within {RESET_TIMEOUT_S:g} s; load the bitstream again"
            )
        for channel in (MM2S, S2MM):
            self._mmio.write(channel + CONTROL, RUN)
        # pynq's driver waits for this too, but for ever.
        running = self._until(
            lambda: not (self.status().send | self.status().receive) & HALTED, RESET_TIMEOUT_S
        )
        if not running:
            raise WrongHardware(
                f"DMA {self.name!r} at {self.base_address:#010x} must run once it is started, and "
                f"stays at {self.status()}; load the bitstream again"
            )
        driver = importlib.import_module("pynq.lib.dma").DMA
        # Without interrupts: pynq would open a UIO device for each. This driver polls.
        self._driver = driver({**self._entry, "device": self._device, "interrupts": {}, "gpio": {}})

    def exchange(
        self, sent: Any, sent_bytes: int, received: Any, received_bytes: int, timeout_s: float
    ) -> DmaStatus:
        """Send the first bytes of one buffer while the other receives; return how it ended.

        The receiving channel is started first. `received` has been invalidated when all is well.
        """
        self._driver.recvchannel.transfer(received, 0, received_bytes)
        self._driver.sendchannel.transfer(sent, 0, sent_bytes)
        status = self.status()

        def over() -> bool:
            nonlocal status
            status = self.status()
            return status.done or status.failed

        self._until(over, timeout_s)
        if status.done:
            received.invalidate()
        return status

    def _control(self) -> int:
        return int(self._mmio.read(MM2S + CONTROL)) | int(self._mmio.read(S2MM + CONTROL))

    @staticmethod
    def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
        """Poll; spin first, then sleep. Looks once more after the deadline."""
        deadline = time.monotonic() + timeout_s
        polls = 0
        while True:
            late = time.monotonic() >= deadline
            if condition():
                return True
            if late:
                return False
            polls += 1
            if polls > _SPIN_POLLS:
                time.sleep(min(_SLEEP_FIRST_S * (polls - _SPIN_POLLS), _SLEEP_MOST_S))


def find_dma(ip_dict: Mapping[str, Any], name: str | None = None) -> str:
    """Return the name of the AXI DMA in an overlay's ip_dict.

    Raises
    ------
    DeviceNotFound
        When `name` is no DMA there, or without a name when not exactly one is.
    """
    found = [
        key for key, entry in ip_dict.items() if str(entry.get("type")).startswith(f"{DMA_TYPE}:")
    ]
    if name is not None:
        if name not in found:
            raise DeviceNotFound(f"dma must be one of {found}, not {name!r}")
        return name
    if len(found) != 1:
        raise DeviceNotFound(
            f"the overlay must hold one AXI DMA, not {len(found)} {found} among {sorted(ip_dict)}; "
            "load the bitstream of the hls4ml project, or name the DMA with dma="
        )
    return found[0]


def check_parameters(name: str, parameters: Mapping[str, Any], word_bytes: int) -> int:
    """Insist on a DMA for streams of such words; return the longest transfer in bytes.

    Raises
    ------
    WrongHardware
        Naming every parameter that is another.
    """
    bits = str(8 * word_bytes)
    wanted = {
        "c_include_sg": "0",
        "c_micro_dma": "0",
        "c_include_mm2s": "1",
        "c_include_s2mm": "1",
        "c_m_axis_mm2s_tdata_width": bits,
        "c_s_axis_s2mm_tdata_width": bits,
    }
    given = {"c_micro_dma": "0", **{key: str(value) for key, value in parameters.items()}}
    wrong = [
        f"{key} {value}, not {given.get(key, 'missing')}"
        for key, value in wanted.items()
        if given.get(key) != value
    ]
    width = given.get("c_sg_length_width", "missing")
    if not width.isdecimal() or not 8 <= int(width) <= 26:
        wrong.append(f"c_sg_length_width 8 to 26, not {width}")
    if wrong:
        raise WrongHardware(
            f"DMA {name!r} of the overlay must have {'; '.join(wrong)}; use the block design of "
            "the hls4ml project (design.tcl) and the .hwh file beside its bitstream"
        )
    return (1 << int(width)) - 1
