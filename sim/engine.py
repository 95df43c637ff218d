# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the compute engine with its memories, and random work for it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from numpy.typing import NDArray

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import Interpreter, Memory
from hwgen.arch.isa import Mode, Opcode
from rtl.compute import ComputeEngine
from rtl.scratchpad import Scratchpad
from rtl.synapse_buffer import SynapseBuffer
from rtl.tap_buffer import TapBuffer


class EngineWithMemories(wiring.Component):
    """ComputeEngine joined to Scratchpad, SB and tap buffer, as the top joins them."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.engine = ComputeEngine(config)
        self.scratchpad = Scratchpad(config)
        self.synapse = SynapseBuffer(config)
        self.taps = TapBuffer(config)
        engine = self.engine.signature.members
        scratchpad = self.scratchpad.signature.members
        super().__init__(
            {
                **{
                    name: engine[name]
                    for name in ("instruction", "complete", "error", "busy", "step", "clear")
                },
                **{name: scratchpad[name] for name in ("load", "store", "store_data")},
                "synapse_write": self.synapse.signature.members["write"],
                "tap_write": self.taps.signature.members["write"],
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Connect."""
        m = Module()
        engine, scratchpad = self.engine, self.scratchpad
        m.submodules.engine = engine
        m.submodules.scratchpad = scratchpad
        m.submodules.synapse = self.synapse
        m.submodules.taps = self.taps
        for p in range(self.config.tp):
            wiring.connect(m, engine.read[p], scratchpad.read[p])
        for name in ("residual", "write"):
            wiring.connect(m, getattr(engine, name), getattr(scratchpad, name))
        wiring.connect(m, engine.synapse, self.synapse.read)
        wiring.connect(m, engine.taps, self.taps.read)
        m.d.comb += [
            engine.conflict.eq(scratchpad.conflict),
            engine.clash.eq(scratchpad.clash),
        ]
        wiring.connect(m, wiring.flipped(self.instruction), engine.instruction)
        wiring.connect(m, wiring.flipped(self.complete), engine.complete)
        wiring.connect(m, wiring.flipped(self.error), engine.error)
        m.d.comb += [
            self.busy.eq(engine.busy),
            self.step.eq(engine.step),
            engine.clear.eq(self.clear),
        ]
        wiring.connect(m, wiring.flipped(self.load), scratchpad.load)
        wiring.connect(m, wiring.flipped(self.store), scratchpad.store)
        wiring.connect(m, wiring.flipped(self.store_data), scratchpad.store_data)
        wiring.connect(m, wiring.flipped(self.synapse_write), self.synapse.write)
        wiring.connect(m, wiring.flipped(self.tap_write), self.taps.write)
        return m


@dataclass
class EngineWork:
    """Memory contents, instructions, and the scratchpad that the interpreter leaves."""

    scratchpad: NDArray[np.int8]
    synapse: NDArray[np.int8]
    taps: NDArray[np.uint64]
    computes: list[dict[str, int]]
    expected: NDArray[np.int8]


def safe_start_delay(config: AcceleratorConfig) -> int:
    """Return the least start_delay with which a COMPUTE may read what the one before it wrote."""
    return ComputeEngine.step_to_write(config) - ComputeEngine.READ_STAGE


def compute_cycles(config: AcceleratorConfig, computes: list[dict[str, int]]) -> int:
    """Return the cycles from acceptance of the first instruction to the last completion pulse.

    The others must be offered at once. `rtl.sequencer` and `rtl.compute` say why.
    """
    cycle, last_step = 2, -1000
    for fields in computes:
        start = max(cycle + config.parameter_rows, last_step + fields["start_delay"])
        pixels = fields["output_height"] * -(-fields["output_width"] // config.tp)
        cycle = start + pixels * max(fields["tap_count"], config.tp)
        last_step = cycle - 1
    return last_step + ComputeEngine.step_to_write(config)


def golden(config: AcceleratorConfig, work: EngineWork) -> NDArray[np.int8]:
    """Run the work on the interpreter; raises its MachineError."""
    machine = Interpreter(config)
    machine.scratchpad[:] = work.scratchpad
    machine.synapse[:] = work.synapse
    machine.taps[:] = work.taps
    program = b"".join(isa.encode(Opcode.COMPUTE, **fields) for fields in work.computes)
    program += isa.encode(Opcode.END)
    machine.execute(
        Memory(np.frombuffer(bytearray(program), dtype=np.uint8)),
        0,
        len(program) // isa.INSTRUCTION_BYTES,
        {},
    )
    return machine.scratchpad


def random_work(
    config: AcceleratorConfig,
    seed: int,
    count: int,
    modes: tuple[Mode, ...] = tuple(Mode),
    dependent: bool = True,
) -> EngineWork:
    """Make `count` random legal COMPUTEs.

    Input, residual and output of one lie in three banks, chosen anew for each, so that later ones
    read what earlier ones wrote, as early as is safe; unless not `dependent`: then everybody
    writes to the last bank and starts at once.
    """
    rng, values = random.Random(seed), np.random.default_rng(seed)
    scratchpad = values.integers(-128, 128, (config.scratchpad_words, config.ti)).astype(np.int8)
    synapse = values.integers(-128, 128, (config.synapse_rows, config.tn, config.ti))
    taps = np.zeros(config.tap_entries, dtype=np.uint64)
    work = EngineWork(scratchpad, synapse.astype(np.int8), taps, [], scratchpad)
    tap_next = row_next = 0
    for _ in range(count):
        mode = rng.choice(modes)
        fields = _random_geometry(config, rng, mode, dependent)
        entries = fields.pop("entries")
        held = bool(work.computes and work.computes[-1]["hold"])
        if held:  # the other half of the taps of the COMPUTE before
            mode, fields = Mode.DENSE, {**work.computes[-1], "hold": 0, "resume": 1}
            entries = entries[:1]
            fields |= {"tap_count": 1, "start_delay": 0}
        elif mode == Mode.DENSE and rng.random() < 0.3:
            fields |= {"hold": 1, "output_height": 1}
            fields["output_width"] = rng.randint(1, config.tp)
        rows = config.parameter_rows + (
            0 if mode > Mode.DEPTHWISE else -(-len(entries) // (config.tn if mode else 1))
        )
        if row_next + rows > config.synapse_rows or tap_next + len(entries) > config.tap_entries:
            break
        work.taps[tap_next : tap_next + len(entries)] = [isa.TAP.pack(e) for e in entries]
        for n in range(config.tn):
            slot = _random_parameters(rng).to_bytes(config.parameter_rows * config.ti, "little")
            work.synapse[row_next : row_next + config.parameter_rows, n] = np.frombuffer(
                slot, dtype=np.int8
            ).reshape(-1, config.ti)
        work.computes.append(
            {
                **fields,
                "tap_address": tap_next,
                "synapse_address": row_next,
                "weight_address": row_next + config.parameter_rows,
                "mode": int(mode),
            }
        )
        tap_next += len(entries)
        row_next += rows
    work.expected = golden(config, work)
    return work


def _random_parameters(rng: random.Random) -> int:
    """Return packed channel parameters, mostly of a size that leaves interesting codes."""
    magnitude = rng.choice((4, 12, 20, 26))
    shift = rng.choice((rng.randrange(48), min(47, 16 + magnitude - rng.randrange(4, 9))))
    return isa.CHANNEL_PARAMETERS.pack(
        {
            "bias": rng.randrange(-(1 << magnitude), 1 << magnitude),
            "multiplier": rng.choice((0, 1, 65535, rng.randrange(65536))),
            "shift": shift,
            "residual_multiplier": rng.choice((0, (1 << 24) - 1, rng.randrange(1 << 24))),
        }
    )


def _random_geometry(
    config: AcceleratorConfig, rng: random.Random, mode: Mode, dependent: bool
) -> dict:
    """Return a COMPUTE's fields with its taps under `entries`."""
    bank = config.scratchpad_bank_words
    banks = list(range(config.scratchpad_banks))
    if dependent:
        rng.shuffle(banks)
    tiles = rng.randint(1, 2)
    while True:
        height, width = rng.randint(1, 6), rng.randint(1, 6)
        stride_y, stride_x = rng.randint(1, 3), rng.randint(1, 3)
        planar = rng.random() < 0.5
        out_h, out_w = rng.randint(1, 5), rng.randint(1, 7)
        out_tiles = rng.randint(1, 2)
        if height * width * tiles <= bank and out_h * out_w * out_tiles <= bank:
            break
    # A tile's words lie in a plane of their own, or side by side where tp allows.
    planar |= not config.pixels_apart(stride_x * tiles)
    pixel, plane = (1, height * width) if planar else (tiles, 1)
    origin_y, origin_x = rng.randint(-3, 1), rng.randint(-3, 1)
    input_address = banks[0] * bank + rng.randint(0, bank - height * width * tiles)
    start = input_address + (origin_y * width + origin_x) * pixel
    taps = rng.choice((1, 2, 3, rng.randint(1, 9), config.tn + rng.randint(-1, 3)))
    entries = []
    for _ in range(taps):
        dy, dx, tile = rng.randint(0, 4), rng.randint(0, 4), rng.randrange(tiles)
        offset = ((dy * width + dx) * pixel + tile * plane) & 0xFFFF
        entries.append({"offset": offset, "dy": dy, "dx": dx})
    place = bank - out_h * out_w * out_tiles
    return {
        "entries": entries,
        "tap_count": taps,
        "resume": 0,
        "hold": 0,
        "residual": rng.randint(0, 1),
        "start_delay": safe_start_delay(config) if dependent else 0,
        "input_start": start & 0xFFFF,
        "input_pixel_step": stride_x * pixel,
        "input_row_step": stride_y * width * pixel,
        "input_height": height,
        "input_width": width,
        "origin_y": origin_y,
        "origin_x": origin_x,
        "stride_y": stride_y,
        "stride_x": stride_x,
        "pad_value": rng.randint(-128, 127),
        "output_address": banks[2] * bank + rng.randint(0, place),
        "output_pixel_step": out_tiles,
        "output_row_step": out_tiles * out_w,
        "output_height": out_h,
        "output_width": out_w,
        "lane_block": rng.randrange(config.ti // config.tn),
        "residual_address": banks[1] * bank + rng.randint(0, place),
        "residual_zero_point": rng.randint(-128, 127),
        "zero_point": rng.randint(-128, 127),
        "lo": rng.choice((-128, rng.randint(-128, 0))),
        "hi": rng.choice((127, rng.randint(1, 127))),
    }
