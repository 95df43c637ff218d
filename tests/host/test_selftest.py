# SPDX-License-Identifier: Apache-2.0
"""Room tests: the self test passes on hardware that works, and names what does not.

Faults are put into the golden model behind a fake device; the RTL runs the same programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pynq
import pytest

import host
import sim
from host import selftest, selftest_programs
from host.selftest import FAIL, PASS, SKIP, SelfTest, main
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import Interpreter, Memory
from hwgen.arch.isa import LoadTarget, Mode
from hwgen.arch.registers import BY_NAME, ErrorCode
from hwgen.boards import load_board
from tests.host.fake_device import HANG, FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle
from tests.host.test_interrupts import PIN, InterruptDevice
from tests.support.simulators import SMALL_BOARD

Edit = Callable[["FaultyMachine", dict[str, int]], None]
BANK = CONFIG.scratchpad_bank_words


class FaultyMachine(Interpreter):
    """The golden model with something broken.

    Attributes
    ----------
    after
        Called after each LOAD and COMPUTE with the machine and the instruction's fields.
    received
        Called with the rows that a LOAD fetches for the scratchpad, to spoil them.
    """

    after: Edit | None = None
    received: Callable[[list[np.ndarray], dict[str, int]], None] | None = None

    def _load(self, memory: Memory, bases: list[int], f: dict[str, int]) -> None:
        super()._load(memory, bases, f)
        if self.after is not None:
            self.after(self, f)

    def _load_words(self, rows: list[np.ndarray], f: dict[str, int]) -> None:
        rows = [row.copy() for row in rows]
        if self.received is not None:
            self.received(rows, f)
        super()._load_words(rows, f)

    def _compute(self, f: dict[str, int]) -> None:
        super()._compute(f)
        if self.after is not None:
            self.after(self, f)


def statuses(device: Any, config: AcceleratorConfig = CONFIG, **options: Any) -> dict[str, str]:
    checks = SelfTest(config, device, timeout_s=0.3, **options).run()
    for check in checks:
        assert bool(check.hint) == (check.status == FAIL), check
        assert check.detail
    return {check.name: check.status for check in checks}


def failed(found: dict[str, str]) -> list[str]:
    return [name for name, status in found.items() if status == FAIL]


def test_a_good_board_passes_and_stays_usable(rng) -> None:
    device = FakeDevice(CONFIG)
    weight = rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)
    codes = rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        before = dict(device.allocated)
        assert np.array_equal(accelerator.run_int8(codes), expected(weight, codes))
        for seed in range(3):
            found = statuses(device, seed=seed)
            assert set(found.values()) == {PASS, SKIP} and found["interrupt"] == SKIP
            assert list(found.values()).count(SKIP) == 1
        assert device.allocated == before  # what it took it gave back
        assert np.array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_the_rtl_passes() -> None:
    with sim.SimulatedBoard(SMALL_BOARD, memory_latency_cycles=5, stall_percent=20) as board:
        found = statuses(board, SMALL_BOARD)
        assert not failed(found) and list(found.values()).count(SKIP) == 1
        assert board.allocated_bytes == 0
        other = statuses(board, replace(SMALL_BOARD, queue_depth=8))
        assert failed(other) == ["digest"] and set(other.values()) == {PASS, FAIL, SKIP}
        # A memory that answers wrongly where buffers are: nothing gets through, nothing hangs.
        board.inject_fault("read_slverr", board.harness.memory_base, 1 << 20)
        found = statuses(board, SMALL_BOARD)
        assert failed(found) == ["program fetch"] and found["data lines"] == SKIP
        board.clear_faults()
        assert not failed(statuses(board, SMALL_BOARD))


@pytest.mark.parametrize(
    "config",
    [
        load_board("pynq-z2").config,
        load_board("ulx3s-85f").config,
        replace(CONFIG, tp=4, tn=8, scratchpad_bank_words=256),
        replace(CONFIG, ti=64, scratchpad_bank_words=256, synapse_rows=512, tap_entries=128),
        replace(CONFIG, tp=2, scratchpad_banks=1, scratchpad_bank_words=256),
        replace(CONFIG, tn=16, ti=32, scratchpad_banks=2, scratchpad_bank_words=512),
    ],
    ids=["pynq-z2", "ulx3s-85f", "tp 4", "ti 64", "one bank", "two banks"],
)
def test_programs_are_legal_on_any_machine(config: AcceleratorConfig) -> None:
    found = statuses(FakeDevice(config, ddr_bytes=1 << 22), config)
    skipped = [name for name, status in found.items() if status == SKIP]
    layers = ["known-answer layer", "known-answer network"]
    assert not failed(found)
    none = ["resampler"] * (not config.resampler_row_bytes)
    assert skipped == ["interrupt"] + none + layers * (config.scratchpad_banks < 3)


def test_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    device = InterruptDevice()
    monkeypatch.setattr(pynq.Device, "_active_device", device, raising=False)
    device.interrupts.connect()
    assert set(statuses(device, interrupt_pin=PIN).values()) == {PASS}
    device.connected = False
    assert failed(statuses(device, interrupt_pin=PIN)) == ["interrupt"]
    device.interrupts.disconnect()
    checks = SelfTest(CONFIG, device, interrupt_pin=PIN).run()
    (line,) = (check for check in checks if check.status == FAIL)
    assert "pynq gives no interrupt" in line.detail and "UIO" in line.hint
    device.interrupts.close()


def stuck_line(rows: list[np.ndarray], f: dict[str, int]) -> None:
    """Hold bit 3 of the bus's byte lane 2 low."""
    for row in rows:
        row[2::8] &= 0xF7


def spoiled_beat(rows: list[np.ndarray], f: dict[str, int]) -> None:
    """Corrupt a byte of the second beat of the third row."""
    if len(rows) > 2:
        rows[2][9] ^= 0x40


def stuck_cell(machine: FaultyMachine, f: dict[str, int]) -> None:
    machine.scratchpad[2 * BANK + 40, 3] |= 4


def aliased_words(machine: FaultyMachine, f: dict[str, int]) -> None:
    """Let an address line of the scratchpad be stuck: bank 2 is bank 1."""
    if f.get("target") == LoadTarget.SCRATCHPAD and f["destination"] == 2 * BANK:
        machine.scratchpad[BANK : 2 * BANK] = machine.scratchpad[2 * BANK :]


def stuck_weight(machine: FaultyMachine, f: dict[str, int]) -> None:
    machine.synapse[61, 3, 7] &= ~2


def stuck_first_row(machine: FaultyMachine, f: dict[str, int]) -> None:
    """Spoil a weight where channel parameters are unless the test moves them."""
    machine.synapse[0, 2, 7] |= 1


def stuck_tap(bit: int) -> Edit:
    def edit(machine: FaultyMachine, f: dict[str, int]) -> None:
        machine.taps[50] |= np.uint64(1 << bit)

    return edit


def stuck_step(machine: FaultyMachine, f: dict[str, int]) -> None:
    machine.tables[1] |= np.uint64(1 << 9)


def stuck_code(machine: FaultyMachine, f: dict[str, int]) -> None:
    machine.tables[-3] ^= np.uint64(1 << 21)


def wrong_residual(machine: FaultyMachine, f: dict[str, int]) -> None:
    if f.get("residual") and f["lane_block"] == 0:
        machine.scratchpad[f["output_address"], 1] ^= 1


def wrong_pool(machine: FaultyMachine, f: dict[str, int]) -> None:
    if f.get("mode") == Mode.MAXIMUM and f["tap_count"] > 1:
        machine.scratchpad[f["output_address"]] ^= 0x55


@pytest.mark.parametrize(
    ("received", "after", "lines"),
    [
        (
            stuck_line,
            None,
            ["data lines", "dma loopback", *(f"scratchpad bank {i}" for i in "012")],
        ),
        (spoiled_beat, None, ["dma loopback"]),
        (None, stuck_cell, ["scratchpad bank 2"]),
        (None, aliased_words, ["scratchpad bank 1"]),
        (None, stuck_weight, ["synapse buffer"]),
        (None, stuck_first_row, ["synapse buffer"]),
        (None, stuck_tap(2), ["tap buffer"]),
        (None, stuck_tap(15), ["tap buffer"]),
        (None, stuck_tap(17), ["tap buffer"]),
        (None, stuck_tap(27), ["tap buffer"]),
        (None, stuck_step, ["resampler"]),
        (None, stuck_code, ["resampler"]),
        (None, wrong_residual, ["known-answer layer", "known-answer network"]),
        (None, wrong_pool, ["known-answer network"]),
    ],
)
def test_the_right_line_fails(received, after, lines) -> None:
    device = FakeDevice(CONFIG)
    device.machine = FaultyMachine(CONFIG)
    device.machine.received, device.machine.after = received, after
    assert failed(statuses(device)) == lines
    device.machine = FaultyMachine(CONFIG)
    assert not failed(statuses(device))
    assert not device.allocated


def test_a_stuck_line_is_named() -> None:
    device = FakeDevice(CONFIG)
    device.machine = FaultyMachine(CONFIG)
    device.machine.received = stuck_line
    lines = {check.name: check for check in SelfTest(CONFIG, device).run()}
    assert "bits 0x08 in byte lanes [2]" in lines["data lines"].detail
    assert "64 bits on both sides" in lines["data lines"].hint
    assert lines["synapse buffer"].detail == "needs 'data lines'"


class StuckRegister(FakeDevice):
    """Bit 9 of one register reads 0; or writing a read-only register changes it."""

    broken = ""

    def read_registers(self, address: int, length: int) -> bytes:
        data = super().read_registers(address, length)
        if self.broken and address - self.base_address == BY_NAME[self.broken].offset:
            return (int.from_bytes(data, "little") & ~0x200).to_bytes(4, "little")
        return data


class WritableRegister(FakeDevice):
    def write_registers(self, address: int, data: bytes) -> None:
        if address - self.base_address == BY_NAME["STEPS"].offset:
            self.registers["STEPS"] = 77
        super().write_registers(address, data)


@pytest.mark.parametrize("name", ["BASE3", "PROGRAM_ADDRESS", "WATCHDOG"])
def test_a_register_bit_that_is_stuck(name: str) -> None:
    device = StuckRegister(CONFIG)
    device.broken = name
    checks = SelfTest(CONFIG, device).run()
    (line,) = (check for check in checks if check.status == FAIL)
    assert line.name == "registers hold values"
    assert f"{name} must read 0xffffffff" in line.detail and "bits 0x00000200" in line.detail


def test_a_read_only_register_that_changes() -> None:
    checks = SelfTest(CONFIG, WritableRegister(CONFIG)).run()
    (line,) = (check for check in checks if check.status == FAIL)
    assert line.name == "registers are read only" and "STEPS must not change" in line.detail


def test_foreign_hardware() -> None:
    device = FakeDevice(CONFIG)
    device.registers["ID"] = 0xFFFFFFFF
    found = statuses(device)
    assert failed(found) == ["identity"] and list(found.values()).count(SKIP) == len(found) - 1
    device.reset_registers()
    device.registers["VERSION"] = 1
    assert failed(statuses(device)) == ["identity"]


def test_a_reset_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.board.RESET_TIMEOUT_S", 0.05)
    device = FakeDevice(CONFIG)
    device.stuck_reset = True
    assert failed(statuses(device)) == ["soft reset"] and not device.allocated


@pytest.mark.parametrize("fault", [HANG, ErrorCode.READ_DECERR, ErrorCode.INSTRUCTION_CHECKSUM])
def test_a_first_program_that_does_not_run(fault) -> None:
    device = FakeDevice(CONFIG)
    device.faults.append(fault)
    found = statuses(device)
    assert failed(found) == ["program fetch"] and found["registers hold values"] == PASS
    assert not device.allocated


def test_an_error_that_is_not_reported() -> None:
    device = FakeDevice(CONFIG)
    device.faults.extend([None, ErrorCode.PROGRAM_OVERRUN])
    assert failed(statuses(device)) == ["errors stop a run"]
    device.faults.extend([None, HANG])
    assert failed(statuses(device)) == ["errors stop a run"]


def test_a_trace_that_loses_records() -> None:
    device = FakeDevice(CONFIG)
    device.trace_lost = 1
    assert failed(statuses(device)) == ["trace buffer"]


def test_no_memory_and_a_device_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(CONFIG, ddr_bytes=4096)
    checks = SelfTest(CONFIG, device).run()
    first = next(check for check in checks if check.status == FAIL)
    assert first.name == "program fetch" and "no DMA memory for the self test's" in first.detail
    assert not device.allocated

    def gone(address: int, length: int) -> bytes:
        raise OSError("device removed")

    monkeypatch.setattr(device, "read_registers", gone)
    assert failed(statuses(device)) == ["identity"]


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_no_constants(seed: int) -> None:
    """A layer whose results were all at the clamp would tell little."""
    for config in (CONFIG, SMALL_BOARD, AcceleratorConfig(tp=2), AcceleratorConfig(tn=8, ti=32)):
        rng = np.random.default_rng(seed)
        layer = selftest_programs.known_layer(config, rng)
        network = selftest_programs.known_network(config, rng)
        assert layer is not None and network is not None
        codes = layer.wanted.view(np.int8)
        assert len(np.unique(codes)) > 60 and (np.abs(codes) > 85).mean() < 0.5
        assert len(np.unique(network.wanted)) >= min(6, config.ti // 2)


def test_memories_too_small_for_the_network_are_said() -> None:
    tiny = replace(CONFIG, scratchpad_bank_words=32)
    found = statuses(FakeDevice(tiny), tiny)
    assert found["known-answer layer"] == found["known-answer network"] == SKIP
    assert found["scratchpad bank 2"] == PASS and not failed(found)


def test_the_command(tmp_path, capsys, monkeypatch, rng) -> None:
    device = FakeDevice(CONFIG)
    bundle = linear_bundle(rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8))
    bundle.save(tmp_path / "bundle")
    options = ["--bundle", str(tmp_path / "bundle"), "--seed", "7"]
    assert main([*options, "--json", str(tmp_path / "report.json")], device) == 0
    out = capsys.readouterr().out
    assert "pass  dma loopback" in out and "18 passed, 0 failed, 1 skipped" in out
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["passed"] and written["seed"] == 7
    assert written["digest"] == f"{CONFIG.digest():016x}"
    device.trace_lost = 1
    assert main([*options, "--json", "-"], device) == 1
    printed = json.loads(capsys.readouterr().out)
    assert not printed["passed"]
    (line,) = (check for check in printed["checks"] if check["status"] == FAIL)
    assert line["name"] == "trace buffer" and "look at the build's timing report" in line["hint"]
    assert main([], device) == 1
    assert "--overlay FILE.bit or --bundle FOLDER must be given" in capsys.readouterr().err


def test_a_line_and_its_hint() -> None:
    check = selftest.Check("x", FAIL, "broken", "the cable", 0.1)
    assert str(check).splitlines() == [f"fail  {'x':24s} broken", "      look at: the cable"]
