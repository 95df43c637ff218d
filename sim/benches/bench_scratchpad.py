# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the scratchpad under random traffic on all of its ports at once."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch.config import AcceleratorConfig
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
LATENCY = PARAMETERS.get("latency", 3)


@cocotb.test()
@cocotb.parametrize(busy=[0.2, 0.9])
async def traffic(dut: Any, busy: float) -> None:
    """Check every word read, and that load and store wait for exactly what they must."""
    rng = random.Random(f"{PARAMETERS['seed']} {busy}")
    bits, bank_bits = CONFIG.scratchpad_address_bits, CONFIG.bank_address_bits
    block_bits, blocks = 8 * CONFIG.tn, CONFIG.ti // CONFIG.tn
    memory = [0] * CONFIG.scratchpad_words  # meaningful once filled
    # Per read port and cycle of arrival: the word that must be there.
    expected: dict[int, list[tuple[Any, int]]] = {}
    stored: list[int] = []
    conflict = clash = 0
    reads = [
        tuple(getattr(dut, f"read__{p}__{name}") for name in ("enable", "address", "data"))
        for p in range(CONFIG.tp)
    ]
    residual = tuple(getattr(dut, f"residual__{name}") for name in ("enable", "address", "data"))
    controls = [port[0] for port in (*reads, residual)]
    for signal in (*controls, dut.load__valid, dut.store__valid, dut.write__enable):
        signal.value = 0
    dut.rst.value = 0
    Clock(dut.clk, 10, "ns").start()
    for _ in range(LATENCY + 2):  # what an earlier test left in the pipeline
        await RisingEdge(dut.clk)

    def word() -> int:
        return rng.randrange(1 << (8 * CONFIG.ti))

    def address() -> int:
        return rng.randrange(CONFIG.scratchpad_words)

    for cycle in range(PARAMETERS["count"] + CONFIG.scratchpad_words):
        filling = cycle < CONFIG.scratchpad_words
        asked = []
        for port in (*reads, residual):
            enable, where = rng.random() < busy and not filling, address()
            port[0].value, port[1].value = int(enable), where
            asked.append((port, enable, where))
        writing, target, data = rng.random() < busy and not filling, address(), word()
        mask = rng.randrange(1 << blocks)
        dut.write__enable.value, dut.write__address.value = int(writing), target
        dut.write__data.value, dut.write__mask.value = data, mask
        loading, load_to, load_data = filling or rng.random() < 0.5, address(), word()
        load_to = cycle if filling else load_to
        dut.load__valid.value, dut.load__payload.value = int(loading), load_data << bits | load_to
        storing, store_from = rng.random() < 0.5 and not filling, address()
        dut.store__valid.value, dut.store__payload.value = int(storing), store_from
        await ReadOnly()

        def bank(where: int) -> int:
            return where >> bank_bits

        def memory_of(where: int) -> tuple[int, int]:
            return bank(where), where % CONFIG.scratchpad_slices

        for output, value in expected.pop(cycle, []):
            assert int(output.value) == value, f"cycle {cycle}"
        assert int(dut.conflict.value) == conflict
        assert int(dut.clash.value) == clash
        if int(dut.store_data__valid.value):
            assert int(dut.store_data__data.value) == stored.pop(0), f"cycle {cycle}"
        # What must happen in this cycle.
        wants, wants_at = asked[-1][1:]
        pixels = [where for _, enable, where in asked[:-1] if enable]
        conflict = int(wants and bank(wants_at) in map(bank, pixels))
        clash = int(len(set(map(memory_of, pixels))) < len(pixels))
        taken = set()
        for i, (port, enable, where) in enumerate(asked):
            lost = i == len(asked) - 1 and conflict
            if enable and not lost and memory_of(where) not in taken:
                expected.setdefault(cycle + LATENCY, []).append((port[2], memory[where]))
            if enable:
                taken.add(memory_of(where))
        store_free = memory_of(store_from) not in taken
        if storing:
            assert int(dut.store__ready.value) == store_free
            if store_free:
                stored.append(memory[store_from])
        load_free = not (writing and memory_of(target) == memory_of(load_to))
        if loading:
            assert int(dut.load__ready.value) == load_free
        if writing:
            for b in range(blocks):
                if mask >> b & 1:
                    field = ((1 << block_bits) - 1) << (b * block_bits)
                    memory[target] = memory[target] & ~field | data & field
        if loading and load_free:
            memory[load_to] = load_data
        await RisingEdge(dut.clk)
