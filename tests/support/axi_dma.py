# SPDX-License-Identifier: Apache-2.0
"""The tests room: a board with an AXI DMA and an hls4ml design behind it, as a pynq Device.

The DMA has the registers of PG021's direct register mode; pynq's own `pynq.lib.dma.DMA` drives
them, and the real `pynq.Overlay` finds them in the .hwh that `handoff` writes.

The design counts words as hls4ml's AXI wrapper does: N_IN words make an image, and its last word
has TLAST when one of the image's input words had it. It forgets what it holds only when a
bitstream is loaded. Time passes when a register is read.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from pynq.buffer import PynqBuffer

from hwgen.arch.hls_bundle import HlsBundle
from tests.host.fake_device import DDR_BASE, MemoryDevice

BASE = 0x4040_0000
SLCR, SLCR_BYTES = 0xF800_0000, 0x1000  # the processing system's clocks, which pynq sets
CHANNELS = {0x00: "mm2s", 0x30: "s2mm"}
CONTROL, STATUS, ADDRESS, ADDRESS_HIGH, LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28
HALTED, IDLE = 1, 2
INTERNAL, SLAVE, DECODE, COMPLETE, ERROR = 1 << 4, 1 << 5, 1 << 6, 1 << 12, 1 << 14
ERROR_BITS = {"internal": INTERNAL, "slave": SLAVE, "decode": DECODE}

Codes = NDArray[np.int8]


class Channel:
    """One direction: registers, and the transfer under way."""

    def __init__(self) -> None:
        self.control, self.status = 0x0001_0002, 0x0001_0000 | HALTED
        self.address = self.length = 0
        self.active = False
        self.moved = 0

    def finish(self) -> None:
        self.active = False
        self.length = self.moved
        self.status |= IDLE | COMPLETE

    def fail(self, bit: int) -> None:
        """Stop with an error, as for ever until the reset."""
        self.active = False
        self.control &= ~1
        self.status = self.status & ~IDLE | bit | ERROR | HALTED


class Design:
    """The network: words in, words out, both with TLAST."""

    def __init__(self, bundle: HlsBundle, network: Callable[[Codes], Codes]) -> None:
        self.bundle, self.network = bundle, network
        self.words_in = bundle.input.image_bytes // 4
        self.waiting: list[tuple[int, bool]] = []
        self.results: deque[tuple[int, bool]] = deque()
        self.images = 0

    def step(self, fault: str | None) -> None:
        """Compute one image, if there is one."""
        if len(self.waiting) < self.words_in:
            return
        image, self.waiting = self.waiting[: self.words_in], self.waiting[self.words_in :]
        raw = np.array([word for word, _ in image], dtype=np.uint32).view(np.float32)
        channels, height, width = self.bundle.input.shape
        # The wrapper's cast to ap_fixed cuts off bits; a word of our driver has none to lose.
        codes = np.floor(np.ldexp(raw.astype(np.float64), -self.bundle.input.scale_log2))
        result = self.network(codes.astype(np.int8).reshape(1, height, width, channels))
        words = np.ldexp(result.astype(np.float32).reshape(-1), self.bundle.output.scale_log2)
        if fault == "wrong":
            words[0] += self.bundle.output.scale
        elif fault == "no code":
            words[0] += self.bundle.output.scale / 2
        elif fault == "short":
            words = words[:-1]
        elif fault == "long":
            words = np.append(words, words[-1])
        last = any(flag for _, flag in image) and fault != "no last"
        ends = [last and i == len(words) - 1 for i in range(len(words))]
        self.results.extend(zip(words.view(np.uint32).tolist(), ends, strict=True))
        self.images += 1


class StreamingBoard(MemoryDevice):
    """A Zynq with hls4ml's block design of `bundle`, whose network is a function of codes.

    Attributes
    ----------
    faults
        What happens to the next transfers, one entry each: None; "hang", "no last", "short",
        "long", "wrong" or "no code" of the design; "mm2s slave" and the like of the DMA, when half
        of the words have passed.
    stuck_reset
        A reset of the DMA never ends while this is set.
    dead
        The DMA never starts.
    transfers
        (bytes sent, bytes asked for) of each start.
    """

    arch = "armv7l"

    def __init__(
        self,
        bundle: HlsBundle,
        network: Callable[[Codes], Codes],
        ddr_bytes: int = 1 << 20,
        length_bits: int = 26,
    ) -> None:
        super().__init__("streaming", BASE, ddr_bytes)
        self.name = "streaming"
        self.slcr = dict.fromkeys((0x100, 0x104, 0x108), 20 << 12)
        self.slcr |= dict.fromkeys((0x170, 0x180, 0x190, 0x1A0), 1 << 20 | 10 << 8)
        self.bundle, self.network = bundle, network
        self.length_bits = length_bits
        self.faults: deque[str | None] = deque()
        self.stuck_reset = self.dead = False
        self.downloads = 0
        self.transfers: list[tuple[int, int]] = []
        self.caches: dict[int, NDArray[np.uint8]] = {}
        self.reset_design()

    def reset_design(self) -> None:
        """Do what loading the bitstream does."""
        self.design = Design(self.bundle, self.network)
        self.channels = {name: Channel() for name in CHANNELS.values()}
        self.fault: str | None = None

    # Memory behind a cache at its worst: nothing passes but by flush and invalidate.

    def allocate(self, shape: Any, dtype: Any, **kwargs: Any) -> PynqBuffer:
        inner = super().allocate(shape, dtype, **kwargs)
        (start,) = pointer = inner.pointer
        inner.pointer = 0
        cache = self.caches[start] = np.full(inner.nbytes, 0x5A, np.uint8)
        buffer = PynqBuffer(
            shape,
            dtype,
            buffer=cache.data,
            bo=start,
            device=self,
            device_address=DDR_BASE + start,
            coherent=False,
        )
        buffer.memory, buffer.pointer, buffer.return_to, buffer.freed = self, pointer, self, True
        return buffer

    def flush(self, bo: int, offset: int, pointer: int, size: int) -> None:
        start = bo + offset
        self.ddr[start : start + size] = self.caches[bo][offset : offset + size]

    def invalidate(self, bo: int, offset: int, pointer: int, size: int) -> None:
        start = bo + offset
        self.caches[bo][offset : offset + size] = self.ddr[start : start + size]

    # Overlays: what pynq.Overlay calls.

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        from pynq.pl_server.hwh_parser import get_hwh_name
        from pynqmetadata.frontends import Metadata
        from pynqmetadata.views.runtime import RuntimeMetadataParser

        return RuntimeMetadataParser(Metadata(input=get_hwh_name(bitfile_name)))

    def download(self, bitstream: Any, parser: Any = None) -> None:
        self.downloads += 1
        self.reset_design()
        self.post_download(bitstream, parser)

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Do nothing."""

    # Registers.

    def _at(self, address: int) -> tuple[Channel, int]:
        offset = address - self.base_address
        first = 0x30 if offset >= 0x30 else 0x00
        return self.channels[CHANNELS[first]], offset - first

    def read_registers(self, address: int, length: int) -> bytes:
        assert length == 4
        if SLCR <= address < SLCR + SLCR_BYTES:
            return struct.pack("<I", self.slcr.get(address - SLCR, 0))
        channel, offset = self._at(address)
        if offset == STATUS:
            self._tick()
        values = {
            CONTROL: channel.control,
            STATUS: channel.status,
            ADDRESS: channel.address,
            ADDRESS_HIGH: channel.address >> 32,
            LENGTH: channel.length,
        }
        return struct.pack("<I", values[offset] & 0xFFFF_FFFF)

    def write_registers(self, address: int, data: bytes) -> None:
        (value,) = struct.unpack("<I", bytes(data))
        if SLCR <= address < SLCR + SLCR_BYTES:
            self.slcr[address - SLCR] = value
            return
        channel, offset = self._at(address)
        if offset == CONTROL:
            if value & 4:
                self._reset()
            elif value & 1 and not self.dead:
                channel.control |= 1
                channel.status &= ~HALTED
            elif not value & 1:
                channel.control &= ~1
                channel.status |= HALTED
                channel.active = False
        elif offset == STATUS:
            channel.status &= ~(value & 0x7000)
        elif offset == ADDRESS:
            channel.address = channel.address >> 32 << 32 | value
        elif offset == ADDRESS_HIGH:
            channel.address = channel.address & 0xFFFF_FFFF | value << 32
        elif offset == LENGTH and channel.control & 1:
            self._start(channel, value & ((1 << self.length_bits) - 1))

    def _reset(self) -> None:
        """Forget both channels; the design notices nothing."""
        self.channels = {name: Channel() for name in CHANNELS.values()}
        if self.stuck_reset:
            self.channels["mm2s"].control |= 4

    def _start(self, channel: Channel, length: int) -> None:
        assert not channel.active, "LENGTH must not be written during a transfer"
        channel.length, channel.moved = length, 0
        channel.status &= ~IDLE
        if not length:
            channel.fail(INTERNAL)
        elif not 0 <= channel.address - DDR_BASE <= len(self.ddr) - length:
            channel.fail(DECODE)
        else:
            channel.active = True
        if channel is self.channels["mm2s"]:
            self.fault = self.faults.popleft() if self.faults else None
            self.transfers.append((length, self.channels["s2mm"].length))

    def _tick(self) -> None:
        send, receive = self.channels["mm2s"], self.channels["s2mm"]
        if send.active and self.fault != "hang":
            self._send(send)
        self.design.step(self.fault)
        if receive.active:
            self._receive(receive)

    def _broken(self, channel: Channel, name: str) -> bool:
        """Let a fault strike a channel that has moved half of its words."""
        which, _, error = (self.fault or "").partition(" ")
        if which != name or 2 * channel.moved < channel.length:
            return False
        channel.fail(ERROR_BITS[error])
        return True

    def _send(self, channel: Channel) -> None:
        """Send half of a transfer, in whole words."""
        if self._broken(channel, "mm2s"):
            return
        size = min(channel.length - channel.moved, -(-channel.length // 8) * 4)
        start = channel.address - DDR_BASE + channel.moved
        words = self.ddr[start : start + size].view("<u4").tolist()
        channel.moved += size
        end = channel.moved == channel.length
        self.design.waiting += [(w, end and i == len(words) - 1) for i, w in enumerate(words)]
        if end:
            channel.finish()

    def _receive(self, channel: Channel) -> None:
        while self.design.results:
            if self._broken(channel, "s2mm"):
                return
            if channel.moved == channel.length:
                channel.fail(INTERNAL)  # more than asked for, and no TLAST yet
                return
            word, last = self.design.results.popleft()
            start = channel.address - DDR_BASE + channel.moved
            self.ddr[start : start + 4] = np.frombuffer(struct.pack("<I", word), np.uint8)
            channel.moved += 4
            if last:
                channel.finish()
                return


def dma_parameters(length_bits: int = 26) -> dict[str, str]:
    """Return what hls4ml's design.tcl gives the DMA, and the defaults that pynq reads."""
    return {
        "c_include_sg": "0",
        "c_sg_length_width": str(length_bits),
        "c_include_mm2s": "1",
        "c_include_s2mm": "1",
        "c_include_mm2s_dre": "0",
        "c_include_s2mm_dre": "0",
        "c_m_axi_mm2s_data_width": "32",
        "c_m_axi_s2mm_data_width": "32",
        "c_m_axis_mm2s_tdata_width": "32",
        "c_s_axis_s2mm_tdata_width": "32",
        "c_mm2s_burst_size": "256",
        "c_s2mm_burst_size": "256",
    }


class HlsOverlay:
    """What the driver needs of a `pynq.Overlay` of hls4ml's block design."""

    def __init__(self, device: StreamingBoard, **parameters: str) -> None:
        self.device = device
        self.downloads = 0
        self.ip_dict: dict[str, dict[str, Any]] = {
            "processing_system7_0": {"type": "xilinx.com:ip:processing_system7:5.5"},
            "hier_0/axi_dma_0": {
                "type": "xilinx.com:ip:axi_dma:7.1",
                "fullpath": "hier_0/axi_dma_0",
                "phys_addr": BASE,
                "addr_range": 0x10000,
                "interrupts": {},
                "gpio": {},
                "parameters": {**dma_parameters(device.length_bits), **parameters},
            },
        }

    def download(self) -> None:
        self.downloads += 1
        self.device.reset_design()


def handoff(name: str) -> str:
    """Return hls4ml's block design for pynq-z2 as a .hwh file: what pynq's parsers read of it."""
    add = ElementTree.SubElement
    root = ElementTree.Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="2020.1")
    system = {"ARCH": "zynq", "DEVICE": "7z020", "NAME": "design_1", "PACKAGE": "clg400"}
    add(root, "SYSTEMINFO", system, SPEEDGRADE="-1")
    add(root, "EXTERNALPORTS")
    add(root, "EXTERNALINTERFACES")
    modules = add(root, "MODULES")
    # FCLK0 at 100 MHz; the second name is the one that pynq 4.0.0 asks every board for.
    clocks = {"PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ": "100"}
    clocks["PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ"] = "100"
    for i in range(4):
        clocks[f"PCW_FPGA_FCLK{i}_ENABLE"] = "0" if i else "1"
        clocks[f"PCW_FCLK{i}_PERIPHERAL_CLKSRC"] = "IO PLL"
        clocks[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR0"] = "1" if i else "10"
        clocks[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR1"] = "1"
    aximm, stream = "xilinx.com:interface:aximm:1.0", "xilinx.com:interface:axis:1.0"
    cells = {
        "processing_system7_0": (
            "xilinx.com:ip:processing_system7:5.5",
            clocks,
            [("M_AXI_GP0", "MASTER", aximm, "control")],
        ),
        "hier_0/axi_dma_0": (
            "xilinx.com:ip:axi_dma:7.1",
            dma_parameters(),
            [
                ("S_AXI_LITE", "SLAVE", aximm, "control"),
                ("M_AXIS_MM2S", "MASTER", stream, "in"),
                ("S_AXIS_S2MM", "SLAVE", stream, "out"),
            ],
        ),
        f"hier_0/{name}_axi_0": (
            f"xilinx.com:hls:{name}_axi:1.0",
            {},
            [("in_r", "SLAVE", stream, "in"), ("out_r", "MASTER", stream, "out")],
        ),
    }
    for path, (vlnv, parameters, buses) in cells.items():
        _, _, kind, version = vlnv.split(":")
        module = add(
            modules,
            "MODULE",
            FULLNAME=f"/{path}",
            HWVERSION=version,
            INSTANCE=path.replace("/", "_"),
            IPTYPE="PERIPHERAL",
            IS_ENABLE="1",
            MODCLASS="PERIPHERAL",
            MODTYPE=kind,
            VLNV=vlnv,
        )
        add(module, "DOCUMENTS")
        listed = add(module, "PARAMETERS")
        for key, value in parameters.items():
            add(listed, "PARAMETER", NAME=key, VALUE=value)
        ports, interfaces = add(module, "PORTS"), add(module, "BUSINTERFACES")
        for bus, way, protocol, net in buses:
            signal = f"{bus}_valid"
            add(ports, "PORT", DIR="O" if way == "MASTER" else "I", NAME=signal, SIGIS="undef")
            facts = {"NAME": bus, "TYPE": way, "VLNV": protocol, "BUSNAME": net}
            maps = add(add(interfaces, "BUSINTERFACE", facts), "PORTMAPS")
            logical = "ARVALID" if protocol == aximm else "TVALID"
            add(maps, "PORTMAP", LOGICAL=logical, PHYSICAL=signal)
        if kind == "processing_system7":
            add(
                add(module, "MEMORYMAP"),
                "MEMRANGE",
                ADDRESSBLOCK="Reg",
                BASENAME="C_BASEADDR",
                BASEVALUE=f"0x{BASE:08X}",
                HIGHNAME="C_HIGHADDR",
                HIGHVALUE=f"0x{BASE + 0xFFFF:08X}",
                INSTANCE="hier_0_axi_dma_0",
                IS_DATA="TRUE",
                IS_INSTRUCTION="TRUE",
                MASTERBUSINTERFACE="M_AXI_GP0",
                MEMTYPE="REGISTER",
                SLAVEBUSINTERFACE="S_AXI_LITE",
            )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
