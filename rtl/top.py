# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the accelerator, wired up."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, ResetInserter, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Queue
from hwgen.arch.registers import BASE_COUNT, COUNTERS, QUEUE_NAMES
from hwgen.arch.trace import TRACE_WORDS, WORD_BITS
from rtl.axi import LITE_MEMBERS, READ_MEMBERS, WRITE_MEMBERS, flat_members
from rtl.compute import ComputeEngine
from rtl.control import Control
from rtl.dispatch import Dispatch
from rtl.load import LoadEngine
from rtl.read_master import ReadMaster
from rtl.registers import Registers
from rtl.scratchpad import Scratchpad
from rtl.store import StoreEngine
from rtl.synapse_buffer import SynapseBuffer
from rtl.tap_buffer import TapBuffer
from rtl.trace import Trace
from rtl.write_master import WriteMaster


class Accelerator(wiring.Component):
    """The machine. Ports by their Vivado names: `s_axi_*`, `m_axi_*`, `irq` (a level).

    The engines and the dispatcher are held in reset unless a run is in progress; the bus masters
    are never reset but drained, so that no soft reset breaks an AXI rule. On-chip memories keep
    their contents from run to run and through a soft reset.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                **flat_members("s_axi", LITE_MEMBERS, slave=True),
                **flat_members("m_axi", {**READ_MEMBERS, **WRITE_MEMBERS}),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Make the blocks and connect what belongs together."""
        m = Module()
        config = self.config
        control, registers = Control(), Registers(config)
        read_master, write_master = ReadMaster(config), WriteMaster(config)
        dispatch, load = Dispatch(config), LoadEngine(config)
        store, compute = StoreEngine(config), ComputeEngine(config)
        scratchpad, synapse, taps = Scratchpad(config), SynapseBuffer(config), TapBuffer(config)
        trace, halt = Trace(config), control.halt
        m.submodules.control = control
        m.submodules.registers = registers
        m.submodules.read_master = read_master
        m.submodules.write_master = write_master
        m.submodules.dispatch = ResetInserter(halt)(dispatch)
        m.submodules.load = ResetInserter(halt)(load)
        m.submodules.store = ResetInserter(halt)(store)
        m.submodules.compute = compute
        m.submodules.scratchpad = scratchpad
        m.submodules.synapse_buffer = synapse
        m.submodules.tap_buffer = taps
        m.submodules.trace = trace

        for bus, members, prefix in (
            (registers.axi, LITE_MEMBERS, "s_axi"),
            (read_master.axi, READ_MEMBERS, "m_axi"),
            (write_master.axi, WRITE_MEMBERS, "m_axi"),
        ):
            for name, member in members.items():
                outer, inner = getattr(self, f"{prefix}_{name}"), getattr(bus, name)
                outwards = (member.flow == Out) == (prefix == "m_axi")
                m.d.comb += outer.eq(inner) if outwards else inner.eq(outer)

        connect = wiring.connect
        connect(m, dispatch.request, read_master.fetch_request)
        connect(m, read_master.fetch_data, dispatch.data)
        connect(m, load.request, read_master.load_request)
        connect(m, read_master.load_data, load.data)
        connect(m, store.request, write_master.request)
        connect(m, store.data, write_master.data)
        connect(m, dispatch.load, load.instruction)
        connect(m, dispatch.compute, compute.instruction)
        connect(m, dispatch.store, store.instruction)
        connect(m, load.complete, dispatch.load_complete)
        connect(m, compute.complete, dispatch.compute_complete)
        connect(m, store.complete, dispatch.store_complete)
        connect(m, load.scratchpad, scratchpad.load)
        connect(m, load.synapse, synapse.write)
        connect(m, load.taps, taps.write)
        connect(m, store.scratchpad, scratchpad.store)
        connect(m, scratchpad.store_data, store.word)
        connect(m, compute.taps, taps.read)
        connect(m, compute.synapse, synapse.read)
        for p in range(config.tp):
            connect(m, compute.read[p], scratchpad.read[p])
        connect(m, compute.residual, scratchpad.residual)
        connect(m, compute.write, scratchpad.write)
        engines: dict[str, Any] = {
            "load": load,
            "compute": compute,
            "store": store,
            "dispatcher": dispatch,
        }
        for name in QUEUE_NAMES:
            connect(m, engines[name].error, getattr(control, f"{name}_error"))

        m.d.comb += [
            compute.clear.eq(halt),
            compute.conflict.eq(scratchpad.conflict),
            compute.clash.eq(scratchpad.clash),
            read_master.drain.eq(halt),
            write_master.drain.eq(halt),
            store.bus_idle.eq(write_master.idle),
            store.slverr.eq(write_master.slverr),
            store.decerr.eq(write_master.decerr),
            dispatch.address.eq(registers.program_address.value),
            dispatch.length.eq(registers.program_length.value),
            control.start.eq(registers.control.start),
            control.soft_reset.eq(registers.control.soft_reset),
            control.watchdog.eq(registers.watchdog.value),
            control.bus_idle.eq(read_master.idle & write_master.idle),
            control.finished.eq(dispatch.finished),
            control.dispatcher_error_queue.eq(dispatch.error_queue),
            control.oldest_queue.eq(dispatch.oldest_queue),
            control.oldest_index.eq(dispatch.oldest_index),
            control.completed.eq(
                load.complete.valid | compute.complete.valid | store.complete.valid
            ),
            control.computing.eq(compute.busy),
            control.step.eq(compute.step),
            control.wait_load.eq(dispatch.wait_load),
            control.wait_store.eq(dispatch.wait_store),
            control.loading.eq(dispatch.load_running),
            control.storing.eq(dispatch.store_running),
            control.read_beat.eq(read_master.beat),
            control.write_beat.eq(write_master.beat),
            control.dispatched.eq(dispatch.dispatched),
            registers.status.eq(control.status),
            registers.error.eq(control.error),
            registers.error_instruction.value.eq(control.error_instruction),
            registers.irq_status_set.eq(control.irq_status_set),
        ]
        for name in COUNTERS:
            port = getattr(registers, name.lower())
            m.d.comb += port.value.eq(getattr(control, name.lower()))
        wait_bank = Signal()
        m.d.sync += wait_bank.eq(
            (scratchpad.load.valid & ~scratchpad.load.ready)
            | (scratchpad.store.valid & ~scratchpad.store.ready)
        )
        m.d.comb += control.wait_bank.eq(wait_bank)
        self._trace(m, trace, dispatch, control, registers)
        for i in range(BASE_COUNT):
            base = getattr(registers, f"base{i}").value
            m.d.comb += [load.bases[i].eq(base), store.bases[i].eq(base)]
        irq = Signal()
        m.d.sync += irq.eq(
            (registers.irq_status.as_value() & registers.irq_enable.as_value()).any()
        )
        m.d.comb += self.irq.eq(irq)
        return m

    @staticmethod
    def _trace(
        m: Module, trace: Trace, dispatch: Dispatch, control: Control, registers: Registers
    ) -> None:
        """Let the trace see what starts and ends, and software see the trace."""
        m.d.comb += [
            trace.clear.eq(control.clear),
            trace.cycle.eq(control.cycles_total),
            trace.first.eq(registers.trace_first.index),
            trace.address.eq(registers.trace_index.value),
            registers.trace_count.value.eq(trace.count),
            registers.trace_dropped.value.eq(trace.dropped),
        ]
        for name in QUEUE_NAMES[: len(Queue)]:
            events, queue = getattr(trace, name), getattr(dispatch, name)
            m.d.comb += [
                events.started.eq(queue.valid & queue.ready),
                events.index.eq(queue.payload.index),
                events.missing.eq(getattr(dispatch, f"{name}_missing")),
                events.complete.eq(getattr(dispatch, f"{name}_complete").valid),
            ]
        record = Value.cast(trace.record)
        for i in range(TRACE_WORDS):
            port = getattr(registers, f"trace_data{i}")
            m.d.comb += port.value.eq(record[WORD_BITS * i : WORD_BITS * (i + 1)])
