# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the board's end of the serial link, from packets to registers and memory."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import crc, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import link
from hwgen.arch.link import ANSWER_SYNC, REQUEST_SYNC, Command, LinkConfig, Status
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, BY_NAME
from rtl.axi import BEAT_BYTES_LOG2, DATA_BITS, LiteSignature, Response
from rtl.layouts import struct_of
from rtl.memory import PORT_MEMBERS, BlockMemory

_CRC_BYTES = link.CRC_BYTES
_STATUS = BY_NAME["STATUS"]


class Bridge(wiring.Component):
    """Carry out the requests of `hwgen.arch.link`, one after the other, and answer them.

    `received` is a receiver's bytes, which can't wait: a byte is kept for one byte's time, and
    nothing here takes longer while a packet comes in. While an answer goes out, what comes in is
    dropped. Data go to `memory`, and come from there, 8 bytes at a time.

    `axi` is an AXI4-Lite master with one access at a time; it waits for its slave, which must
    answer. Between packets it looks at the accelerator's STATUS every `POLL_CYCLES` cycles:
    `running` and `failed` are what it read. `packet` is high in one cycle for each answer, and
    `refused` then says that its status is not OK.
    """

    POLL_CYCLES = 1 << 16

    def __init__(self, config: LinkConfig) -> None:
        self.config = config
        super().__init__(
            {
                "received": In(
                    wiring.Signature(
                        {"valid": Out(1), "data": Out(8), "error": Out(1), "busy": Out(1)}
                    )
                ),
                "send": Out(stream.Signature(8)),
                "axi": Out(LiteSignature()),
                "memory": Out(wiring.Signature(PORT_MEMBERS)),
                "running": Out(1),
                "failed": Out(1),
                "packet": Out(1),
                "refused": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """SYNC, HEADER, CHECK; DATA, TRAILER, VERIFY, WRITE; HEAD, FETCH, BODY, STATUS, TAIL."""
        m = Module()
        config, received, send, port = self.config, self.received, self.send, self.memory
        m.submodules.checksum = check = crc.Processor(crc.catalog.CRC32_ETHERNET(8))

        # The byte that came last, until it is taken or the next one comes.
        have, byte, broken, take = Signal(), Signal(8), Signal(), Signal()
        with m.If(take):
            m.d.sync += have.eq(0)
        with m.If(received.valid):
            m.d.sync += [have.eq(1), byte.eq(received.data), broken.eq(received.error)]
        silence, quiet = Signal(range(config.quiet + 1)), Signal()
        m.d.comb += quiet.eq(silence == config.quiet)
        with m.If(received.busy | have):
            m.d.sync += silence.eq(0)
        with m.Elif(~quiet):
            m.d.sync += silence.eq(silence + 1)

        request = Signal(struct_of(link.REQUEST))
        word = Signal(DATA_BITS)
        count = Signal(range(link.REQUEST_BYTES + _CRC_BYTES))
        left = Signal(range(link.PAYLOAD_BYTES_MOST + 1))
        address = Signal(32)
        status, owed = Signal(Status), Signal()
        writes, memory = Signal(), Signal()
        last_tag, done, done_status = Signal(8), Signal(), Signal(Status)
        m.d.comb += [
            writes.eq(
                (request.command == Command.WRITE_REGISTER)
                | (request.command == Command.WRITE_MEMORY)
            ),
            memory.eq(
                (request.command == Command.READ_MEMORY) | (request.command == Command.WRITE_MEMORY)
            ),
            check.data.eq(byte),
        ]

        poll, polling = Signal(range(self.POLL_CYCLES)), Signal()
        with m.If(poll != self.POLL_CYCLES - 1):
            m.d.sync += poll.eq(poll + 1)

        flags = {"running": self.running, "error": self.failed}
        asked, told = Signal(), Signal()  # the address, and a write's data, were taken
        axi = self.axi
        m.d.comb += [
            axi.araddr.eq(Mux(polling, _STATUS.offset, address)),
            axi.awaddr.eq(address),
            axi.wdata.eq(word[-32:]),
            axi.wstrb.eq(0xF),
            port.address.eq((address - link.MEMORY_BASE)[BEAT_BYTES_LOG2:]),
            port.write_data.eq(word),
            self.refused.eq(status != Status.OK),
        ]

        def shift_in(value: Any) -> Any:
            return word.eq(Cat(word[8:], value))

        def refuse(reason: Any) -> None:
            """Throw away what follows, then answer with `reason`."""
            m.d.sync += [status.eq(reason), owed.eq(1), count.eq(0)]
            m.next = "SWALLOW"

        with m.FSM():
            with m.State("SYNC"):
                m.d.sync += [owed.eq(0), count.eq(0), status.eq(Status.OK)]
                with m.If(have):
                    m.d.comb += [take.eq(1), check.start.eq(1), check.valid.eq(1)]
                    m.d.sync += [request.eq(Cat(request.as_value()[8:], byte)), count.eq(1)]
                    m.next = "SWALLOW"
                    with m.If((byte == REQUEST_SYNC) & ~broken):
                        m.next = "HEADER"
                with m.Elif(poll == self.POLL_CYCLES - 1):
                    m.d.sync += [poll.eq(0), polling.eq(1)]
                    m.next = "READ"

            with m.State("HEADER"):
                with m.If(have):
                    m.d.comb += [take.eq(1), check.valid.eq(1)]
                    m.d.sync += count.eq(count + 1)
                    with m.If(count < link.REQUEST_BYTES):
                        m.d.sync += request.eq(Cat(request.as_value()[8:], byte))
                    with m.If(count == link.REQUEST_BYTES + _CRC_BYTES - 1):
                        m.next = "CHECK"
                    with m.If(broken):
                        m.next = "SWALLOW"
                with m.Elif(quiet):
                    m.next = "SYNC"

            with m.State("CHECK"):
                fault = self._fault(m, request, memory)
                m.d.sync += [
                    address.eq(request.address),
                    left.eq(request.length),
                    count.eq(0),
                ]
                with m.If(~check.match_detected):
                    m.next = "SWALLOW"
                with m.Else():
                    same = (request.tag == last_tag) & (request.command == Command.WRITE_REGISTER)
                    m.d.sync += [last_tag.eq(request.tag), done.eq(done & same)]
                    with m.If(fault != Status.OK):
                        with m.If(writes | (fault == Status.BAD_COMMAND)):
                            refuse(fault)
                        with m.Else():
                            m.d.sync += [status.eq(fault), left.eq(0)]
                            m.next = "HEAD"
                    with m.Elif(writes):
                        m.next = "DATA"
                    with m.Else():
                        m.next = "HEAD"

            with m.State("DATA"):
                m.d.comb += [port.write.eq(1)]
                with m.If(have):
                    m.d.comb += [take.eq(1), check.valid.eq(1), check.start.eq(count == 0)]
                    m.d.sync += [shift_in(byte), left.eq(left - 1), count.eq(1)]
                    with m.If(memory & (left[:BEAT_BYTES_LOG2] == 1)):
                        m.next = "STORE"
                    with m.Elif(left == 1):
                        m.d.sync += count.eq(0)
                        m.next = "TRAILER"
                    with m.If(broken):
                        refuse(Status.BAD_CHECKSUM)
                with m.Elif(quiet):
                    refuse(Status.TRUNCATED)

            with m.State("STORE"):
                m.d.comb += [port.write.eq(1), port.valid.eq(1)]
                m.d.sync += address.eq(address + (1 << BEAT_BYTES_LOG2))
                m.next = "DATA"
                with m.If(left == 0):
                    m.d.sync += count.eq(0)
                    m.next = "TRAILER"

            with m.State("TRAILER"):
                with m.If(have):
                    m.d.comb += [take.eq(1), check.valid.eq(1)]
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == _CRC_BYTES - 1):
                        m.next = "VERIFY"
                    with m.If(broken):
                        refuse(Status.BAD_CHECKSUM)
                with m.Elif(quiet):
                    refuse(Status.TRUNCATED)

            with m.State("VERIFY"):
                m.d.sync += [asked.eq(0), told.eq(0), count.eq(0)]
                m.next = "HEAD"
                with m.If(~check.match_detected):
                    m.d.sync += status.eq(Status.BAD_CHECKSUM)
                with m.Elif(~memory):
                    with m.If(done):
                        m.d.sync += status.eq(done_status)
                    with m.Else():
                        m.next = "WRITE"

            with m.State("WRITE"):
                m.d.comb += [axi.awvalid.eq(~asked), axi.wvalid.eq(~told), axi.bready.eq(1)]
                with m.If(axi.awready):
                    m.d.sync += asked.eq(1)
                with m.If(axi.wready):
                    m.d.sync += told.eq(1)
                with m.If(axi.bvalid):
                    outcome = Mux(axi.bresp == Response.OKAY, Status.OK, Status.BUS_ERROR)
                    m.d.sync += [status.eq(outcome), done_status.eq(outcome)]
                    m.d.sync += [done.eq(1), asked.eq(0), told.eq(0)]
                    m.next = "HEAD"

            with m.State("SWALLOW"):
                m.d.comb += take.eq(1)
                with m.If(quiet):
                    m.next = "SYNC"
                    with m.If(owed):
                        m.next = "HEAD"

            # The answer. `left` is the length that it tells; nothing is sent of a write.
            head = [
                ANSWER_SYNC,
                request.command,
                request.tag,
                Mux(writes | owed, 0, left[:8]),
                Mux(writes | owed, 0, left[8:]),
            ]
            with m.State("HEAD"):
                m.d.comb += [
                    take.eq(1),
                    send.valid.eq(1),
                    send.payload.eq(
                        Array(Const(h, 8) if isinstance(h, int) else h for h in head)[count]
                    ),
                    check.data.eq(send.payload),
                    check.start.eq(count == 0),
                    check.valid.eq(send.ready),
                ]
                with m.If(send.ready):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == len(head) - 1):
                        m.d.sync += count.eq(0)
                        m.next = "FETCH"
                        with m.If(writes | owed | (left == 0)):
                            m.next = "STATUS"

            with m.State("FETCH"):
                m.d.comb += [take.eq(1), port.valid.eq(memory & (count == 0))]
                m.d.sync += count.eq(count + 1)
                with m.If(~memory):
                    m.d.sync += count.eq(0)
                    m.next = "READ"
                    with m.If(request.command == Command.PING):
                        m.d.sync += word.eq(self._identity(address))
                        m.next = "BODY"
                with m.Elif(count == BlockMemory.READ_LATENCY):
                    m.d.sync += [word.eq(port.read_data), count.eq(0)]
                    m.next = "BODY"

            with m.State("READ"):
                m.d.comb += [axi.arvalid.eq(~asked), axi.rready.eq(1)]
                with m.If(axi.arready):
                    m.d.sync += asked.eq(1)
                with m.If(axi.rvalid):
                    m.d.sync += [asked.eq(0), polling.eq(0)]
                    with m.If(polling):
                        for field, low in _STATUS.layout.placed():
                            if field.name in flags:
                                m.d.sync += flags[field.name].eq(axi.rdata[low])
                        m.next = "SYNC"
                    with m.Else():
                        m.d.comb += take.eq(1)
                        m.d.sync += word.eq(axi.rdata)
                        with m.If(axi.rresp != Response.OKAY):
                            m.d.sync += status.eq(Status.BUS_ERROR)
                        m.next = "BODY"

            with m.State("BODY"):
                unit = Mux(request.command == Command.READ_REGISTERS, 4, 8)
                m.d.comb += [
                    take.eq(1),
                    send.valid.eq(1),
                    send.payload.eq(word[:8]),
                    check.data.eq(send.payload),
                    check.valid.eq(send.ready),
                ]
                with m.If(send.ready):
                    m.d.sync += [shift_in(0), left.eq(left - 1), count.eq(count + 1)]
                    with m.If(count == unit - 1):
                        m.d.sync += [count.eq(0), address.eq(address + unit)]
                        m.next = "FETCH"
                        with m.If(left == 1):
                            m.next = "STATUS"

            with m.State("STATUS"):
                m.d.comb += [
                    take.eq(1),
                    send.valid.eq(1),
                    send.payload.eq(status),
                    check.data.eq(send.payload),
                    check.valid.eq(send.ready),
                    self.packet.eq(send.ready),
                ]
                with m.If(send.ready):
                    m.next = "SEAL"

            with m.State("SEAL"):
                m.d.sync += [word.eq(check.crc), count.eq(0)]
                m.next = "TAIL"

            with m.State("TAIL"):
                m.d.comb += [take.eq(1), send.valid.eq(1), send.payload.eq(word[:8])]
                with m.If(send.ready):
                    m.d.sync += [shift_in(0), count.eq(count + 1)]
                    with m.If(count == _CRC_BYTES - 1):
                        m.next = "SYNC"
        return m

    def _identity(self, address: Signal) -> Any:
        """Return 8 bytes of IDENTITY, from `address` on."""
        whole = Const(link.IDENTITY.pack(self.config.identity()), link.IDENTITY.bits)
        return whole.word_select(address[BEAT_BYTES_LOG2:][:3], DATA_BITS)

    def _fault(self, m: Module, request: Any, memory: Any) -> Signal:
        """Return what is wrong with a request; as `link.fault_of`."""
        fault, odd = Signal(Status), Signal()
        offset = Signal(33)
        end = Signal(34)
        bytes_there = Mux(memory, self.config.memory_bytes, ADDRESS_SPACE_BYTES)
        writes_register = request.command == Command.WRITE_REGISTER
        m.d.comb += [
            offset.eq(request.address - Mux(memory, link.MEMORY_BASE, 0)),
            end.eq(offset + request.length),
            odd.eq(
                request.address[:2].any()
                | request.length[:2].any()
                | memory & (request.address[2] | request.length[2])
                | (request.length == 0)
                | (request.length > Mux(writes_register, 4, link.PAYLOAD_BYTES_MOST))
                | offset[-1]
                | (end > bytes_there)
            ),
        ]
        with m.If(request.command > max(Command)):
            m.d.comb += fault.eq(Status.BAD_COMMAND)
        with m.Elif(request.command == Command.PING):
            # Its answer walks IDENTITY by the address.
            with m.If((request.length != link.IDENTITY_BYTES) | (request.address != 0)):
                m.d.comb += fault.eq(Status.BAD_ADDRESS)
        with m.Elif(odd):
            m.d.comb += fault.eq(Status.BAD_ADDRESS)
        return fault
