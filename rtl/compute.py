# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the compute engine, from an instruction to words in the scratchpad."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from hwgen.arch.registers import ErrorCode
from rtl.addresses import InputAddresses, OutputAddresses
from rtl.lanes import Lanes
from rtl.layouts import (
    CHANNEL_PARAMETERS,
    COMPUTE,
    TAP,
    completion,
    error_report,
    indexed,
    int8_lanes,
    lane_block,
    read_port,
    scratchpad_write,
    synapse_row,
)
from rtl.pe_array import Accumulators, PEArray
from rtl.pipeline import Pipeline
from rtl.requantizer import Requantizer
from rtl.scratchpad import Scratchpad
from rtl.sequencer import Sequencer
from rtl.synapse_buffer import SynapseBuffer

IN_FLIGHT_BITS = 6  # the pipeline holds fewer instructions of two cycles than 2^6


class ComputeEngine(wiring.Component):
    """The sequencer and the free-running pipeline behind it.

    A step issued in cycle 0 reaches, in cycle:

    - READ_STAGE: its scratchpad and SB reads (the tap was read in cycle 0)
    - WORD_STAGE: the words, the pad in place of those outside
    - `sum_stage`: the sums over ti; accumulators
    - `handed_stage`: with `last`, the sums at NFU-3, pixel p of tp after p more cycles
    - `write_stage`: the write

    so that a read issued `step_to_write` cycles after the step sees all its pixels. A COMPUTE that
    reads what the one before it wrote is safe with
    ``start_delay >= step_to_write(config) - READ_STAGE``.

    Ports: `instruction` is accepted ahead of execution, one deep; `complete` pulses when the last
    word is in the scratchpad; `busy` from acceptance to completion; `step` counts. `error` pulses
    once, and nothing is written or completed after it until `clear`, which resets all control.
    `taps`, `synapse`, `read`, `residual`, `write`, `conflict` and `clash` go to the memories.
    """

    READ_STAGE = InputAddresses.LATENCY
    WORD_STAGE = READ_STAGE + Scratchpad.LATENCY

    @classmethod
    def sum_stage(cls, config: AcceleratorConfig) -> int:
        """Return the cycle in which a step's sums over ti are accumulated."""
        return cls.WORD_STAGE + PEArray.latency(config)

    @classmethod
    def handed_stage(cls, config: AcceleratorConfig) -> int:
        """Return the cycle in which NFU-3 takes the sums of pixel 0."""
        return cls.sum_stage(config) + Accumulators.LATENCY

    @classmethod
    def write_stage(cls, config: AcceleratorConfig) -> int:
        """Return the cycle in which pixel 0 is at the scratchpad's write port."""
        return cls.handed_stage(config) + Requantizer.LATENCY

    @classmethod
    def step_to_write(cls, config: AcceleratorConfig) -> int:
        """Return the cycles from a last step to the first in which a read sees all its pixels."""
        return cls.write_stage(config) + config.tp

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        address = config.scratchpad_address_bits
        word = 8 * config.ti
        super().__init__(
            {
                "instruction": In(stream.Signature(indexed(COMPUTE))),
                "complete": Out(completion()),
                "error": Out(error_report()),
                "busy": Out(1),
                "step": Out(1),
                "clear": In(1),
                "taps": Out(read_port(config.tap_address_bits, TAP)),
                "synapse": Out(read_port(config.synapse_address_bits, synapse_row(config))),
                "read": Out(read_port(address, word)).array(config.tp),
                "residual": Out(read_port(address, word)),
                "write": Out(scratchpad_write(config)),
                "conflict": In(1),
                "clash": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Join the blocks, each value delayed to the stage that needs it."""
        m = Module()
        config, at = self.config, Pipeline(m).at
        tn, tp = config.tn, config.tp
        sum_stage, handed_stage = self.sum_stage(config), self.handed_stage(config)

        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.inputs = inputs = InputAddresses(config)
        m.submodules.outputs = outputs = OutputAddresses(config)
        m.submodules.array = array = PEArray(config)
        m.submodules.lanes = lanes = Lanes(config)
        m.submodules.accumulators = accumulators = Accumulators(config)
        m.submodules.requantizer = requantizer = Requantizer(tn)
        wiring.connect(m, sequencer.instruction, wiring.flipped(self.instruction))
        issue, fields, word = sequencer.issue, sequencer.issue.fields, outputs.word

        def local(name: str, value: object, shape: object) -> Signal:
            signal = Signal(shape, name=name)
            m.d.comb += signal.eq(value)
            return signal

        # Cycle 0: read the tap.
        m.d.comb += [
            self.step.eq(issue.step),
            self.taps.enable.eq(issue.step),
            self.taps.address.eq(issue.tap_pointer),
            inputs.issue.eq(issue),
            inputs.tap.eq(self.taps.data),
            outputs.issue.eq(issue),
        ]

        # READ_STAGE: read the input words; the SB row, so that it arrives with them.
        row = local("row", issue.synapse_pointer, config.synapse_address_bits)
        uses_row = local("uses_row", issue.step | issue.parameter, 1)
        row_stage = self.WORD_STAGE - SynapseBuffer.LATENCY
        m.d.comb += [
            self.synapse.address.eq(at(row, row_stage)),
            self.synapse.enable.eq(at(uses_row, row_stage, control=True)),
        ]
        for p, port in enumerate(self.read):
            m.d.comb += [port.address.eq(inputs.address[p]), port.enable.eq(inputs.enable[p])]

        # WORD_STAGE: the pad where the tap is outside; the array and the lanes start.
        pad = local("pad", fields.pad_value, 8)
        inside = local("inside", inputs.enable, tp)
        mode = local("mode", fields.mode, Mode)
        step = local("step_issued", issue.step, 1)
        first = local("first", issue.first, 1)
        fresh = local("fresh", issue.first & ~fields.resume, 1)
        last = local("last", issue.last, 1)
        slot = local("slot", issue.slot, range(tn))
        block = local("block", fields.lane_block, lane_block(config))
        for p, port in enumerate(self.read):
            pads = at(pad, self.WORD_STAGE).replicate(config.ti)
            seen = Mux(at(inside, Scratchpad.LATENCY)[p], port.data, pads)
            m.d.comb += [array.words[p].eq(seen), lanes.words[p].eq(seen)]
        m.d.comb += [
            array.weights.eq(self.synapse.data),
            lanes.weights.eq(self.synapse.data),
            lanes.mode.eq(at(mode, self.WORD_STAGE - Lanes.LEAD)),
            lanes.slot.eq(at(slot, self.WORD_STAGE - Lanes.LEAD)),
            lanes.block.eq(at(block, self.WORD_STAGE - Lanes.LEAD)),
            lanes.first.eq(at(first, self.WORD_STAGE)),
        ]

        # WORD_STAGE too: channel parameters, slot n of the rows joined, kept until the next ones.
        parameters = Signal(data.ArrayLayout(CHANNEL_PARAMETERS, tn), reset_less=True)
        parameter_last = local("parameter_last", issue.parameter_last, 1)
        slots = [[self.synapse.data[n]] for n in range(tn)]
        for _ in range(config.parameter_rows - 1):
            before = Signal(synapse_row(config), reset_less=True)
            m.d.sync += before.eq(Cat(rows[0] for rows in slots))
            slots = [[before[n], *rows] for n, rows in enumerate(slots)]
        with m.If(at(parameter_last, self.WORD_STAGE, control=True)):
            m.d.sync += [parameters[n].eq(Cat(*rows)) for n, rows in enumerate(slots)]

        # sum_stage: accumulate. The parameters arrive a cycle later than an instruction's first
        # step could, at the earliest: its parameter rows came before it.
        travelled = at(parameters, sum_stage - self.WORD_STAGE)
        sum_ahead = sum_stage - Accumulators.LEAD
        lane_terms = local("lane_terms", lanes.terms, lanes.terms.shape())
        wait = PEArray.latency(config) - Lanes.LATENCY
        waited = Pipeline(m, shift_registers=False).at(lane_terms, wait)
        m.d.comb += [
            accumulators.trees.eq(array.sums),
            accumulators.lanes.eq(waited),
            accumulators.step.eq(at(step, sum_ahead, control=True)),
            accumulators.dense.eq(at(mode, sum_ahead) == Mode.DENSE),
            accumulators.clear.eq(at(mode, sum_ahead) == Mode.MAXIMUM),
            accumulators.first.eq(at(fresh, sum_ahead)),
            accumulators.last.eq(at(last, sum_stage, control=True)),
            accumulators.parameters.eq(travelled),
        ]

        # handed_stage: NFU-3, a pixel a cycle; its residual was read in time to meet the sums.
        def word_at(stage: int) -> data.View:
            return at(word, stage - OutputAddresses.LATENCY)

        errored = Signal()
        legal = local("legal", word.valid & ~outputs.out_of_range, 1)
        done = local("done", word.done, 1)

        def legal_at(stage: int) -> Signal:
            return at(legal, stage - OutputAddresses.LATENCY, control=True)

        read_stage = handed_stage - Scratchpad.LATENCY
        handed = word_at(handed_stage)
        residuals = data.View(data.ArrayLayout(int8_lanes(tn), config.ti // tn), self.residual.data)
        m.d.comb += [
            self.residual.address.eq(word_at(read_stage).source),
            self.residual.enable.eq(legal_at(read_stage) & word_at(read_stage).residual),
            requantizer.sums.eq(accumulators.sums),
            requantizer.parameters.eq(accumulators.sums_parameters),
            requantizer.residual.eq(residuals[handed.lane_block[: len(block)]]),
            requantizer.has_residual.eq(handed.residual),
            requantizer.residual_zero_point.eq(handed.residual_zero_point),
            requantizer.zero_point.eq(handed.zero_point),
            requantizer.lo.eq(handed.lo),
            requantizer.hi.eq(handed.hi),
        ]

        # write_stage, and completion a cycle later.
        write_stage = self.write_stage(config)
        written = word_at(write_stage)
        completed = word_at(write_stage + 1)
        m.d.comb += [
            self.write.enable.eq(legal_at(write_stage) & ~errored),
            self.write.address.eq(written.output),
            self.write.mask.eq(1 << written.lane_block[: len(block)]),
            self.write.data.eq(requantizer.result.as_value().replicate(config.ti // tn)),
            self.complete.valid.eq(
                at(done, write_stage + 1 - OutputAddresses.LATENCY, control=True) & ~errored
            ),
            *(
                getattr(self.complete, name).eq(completed[name])
                for name in ("signal_load", "signal_compute", "signal_store")
            ),
        ]
        in_flight = Signal(IN_FLIGHT_BITS)
        accepted = self.instruction.valid & self.instruction.ready
        m.d.sync += in_flight.eq(in_flight + accepted - self.complete.valid)
        m.d.comb += self.busy.eq(in_flight != 0)

        # Errors, the oldest step's first.
        index = local("index", issue.index, len(issue.index))
        m.d.sync += self.error.valid.eq(0)
        m.d.comb += sequencer.stop.eq(errored)
        for found, code, where in (
            (sequencer.error.valid, sequencer.error.code, sequencer.error.index),
            (outputs.out_of_range, ErrorCode.ADDRESS_RANGE, word.index),
            (inputs.out_of_range, ErrorCode.ADDRESS_RANGE, at(index, self.READ_STAGE)),
            (self.clash, ErrorCode.BANK_CONFLICT, at(index, self.READ_STAGE + 1)),
            (self.conflict, ErrorCode.BANK_CONFLICT, word_at(read_stage + 1).index),
        ):
            with m.If(found & ~errored):
                m.d.sync += [
                    errored.eq(1),
                    self.error.valid.eq(1),
                    self.error.code.eq(code),
                    self.error.index.eq(where),
                ]
        return ResetInserter(self.clear)(m)
