# SPDX-License-Identifier: Apache-2.0
"""The tests room: the fast harness around a small bus master that can misbehave."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from sim.harness import DDR_BASE, Harness, ProtocolViolation, RegisterAccessError, SimulationError
from sim.simulator import BuildError, build_library, check_tools, compact

STAND_IN = Path(__file__).with_name("stand_in.v").read_text()
ADDRESS, BEATS, COMMAND, ERRORS, LAST_WORD = 0x0, 0x4, 0x8, 0xC, 0x10
ALL_STROBES = 0xFF00
GOOD, FALLING_VALID, MOVING_ADDRESS, WRONG_LAST, WRONG_SIZE, MOVING_DATA, DEAF = range(7)


def copy(
    harness: Harness, address: int = DDR_BASE, beats: int = 16, command: int = ALL_STROBES
) -> bool:
    """Let the stand-in copy words, 4096 bytes up; return whether it finished in time."""
    harness.write_register(ADDRESS, address)
    harness.write_register(BEATS, beats)
    harness.write_register(COMMAND, command)
    return harness.run_until_irq(20_000)


@pytest.mark.parametrize("stall", [0, 30, 80])
def test_a_copy_arrives(stall: int, rng: np.random.Generator, seed: int) -> None:
    with Harness(STAND_IN, stall_percent=stall, seed=seed) as harness:
        for beats in (1, 2, 16, 256):
            data = rng.integers(0, 256, 8 * beats)
            harness.memory[: 8 * beats] = data
            harness.memory[4096:8192] = 0
            assert copy(harness, beats=beats)
            assert np.array_equal(harness.memory[4096 : 4096 + 8 * beats], data)
            assert not harness.memory[4096 + 8 * beats : 8192].any()
        assert harness.read_register(ERRORS) == 0
        counts = harness.counts
        assert (counts.read_beats, counts.write_beats) == (275, 275)
        assert (counts.read_bursts, counts.write_bursts) == (4, 4)


@pytest.mark.parametrize("latency", [1, 30, 100])
def test_latency_and_a_beat_a_cycle(latency: int) -> None:
    with Harness(
        STAND_IN, read_latency_cycles=latency, write_latency_cycles=2 * latency
    ) as harness:
        assert copy(harness, beats=1)
        harness.write_register(BEATS, 1)
        cycles = []
        for beats in (1, 17):
            harness.write_register(BEATS, beats)
            harness.write_register(COMMAND, ALL_STROBES)
            start = harness.cycles
            assert harness.run_until_irq(10_000)
            cycles.append(harness.cycles - start)
        # 16 beats more each way; and each latency once.
        assert cycles[1] - cycles[0] == 32
        assert 0 <= cycles[0] - 3 * latency <= 4


def test_strobes_choose_bytes() -> None:
    with Harness(STAND_IN) as harness:
        harness.memory[:8] = range(1, 9)
        assert copy(harness, beats=1, command=0b10100101 << 8)
        assert harness.memory[4096:4104].tolist() == [1, 0, 3, 0, 0, 6, 0, 8]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (FALLING_VALID, "AR: valid fell before ready"),
        (MOVING_ADDRESS, "AR: payload changed before ready"),
        (WRONG_LAST, "W: WLAST is 1 on beat 1 of 16"),
        (WRONG_SIZE, "AR: size is 2"),
        (MOVING_DATA, "W: payload changed before ready"),
    ],
)
def test_a_broken_rule_is_an_error_with_its_cycle(wrong: int, message: str) -> None:
    with Harness(STAND_IN, stall_percent=90, seed=3) as harness:
        with pytest.raises(ProtocolViolation, match=rf"cycle \d+: {message}"):
            copy(harness, command=ALL_STROBES | wrong)
        with pytest.raises(ProtocolViolation, match=message):
            harness.run(1)


def test_a_burst_across_4_kib_is_an_error() -> None:
    with Harness(STAND_IN) as harness:
        with pytest.raises(ProtocolViolation, match="AR: 16 beats at 0x10000ff8 cross 4 KiB"):
            copy(harness, DDR_BASE + 4096 - 8)


@pytest.mark.parametrize("kind", ["read_slverr", "read_decerr", "write_slverr", "write_decerr"])
def test_injected_responses(kind: str) -> None:
    with Harness(STAND_IN) as harness:
        harness.memory[:128] = 7
        where = DDR_BASE + (8 if kind.startswith("read") else 4096 + 8)
        harness.inject_fault(kind, where, 16, count=1)
        assert copy(harness)
        # Two beats of a read fail each by themselves, a write has one response.
        assert harness.read_register(ERRORS) == (2 if kind.startswith("read") else 1)
        written = harness.memory[4096 : 4096 + 128].reshape(16, 8)
        assert (written[3:] == 7).all() and (written[0] == 7).all() and (written[1:3] != 7).all()
        assert copy(harness)
        assert harness.read_register(ERRORS) == (2 if kind.startswith("read") else 1)
        assert (harness.memory[4096 : 4096 + 128] == 7).all()


@pytest.mark.parametrize("kind", ["read_hang", "write_hang"])
def test_a_hang_lasts_until_faults_are_cleared(kind: str) -> None:
    with Harness(STAND_IN) as harness:
        harness.inject_fault(kind, DDR_BASE, 8192)
        assert not copy(harness)
        harness.clear_faults()
        assert harness.run_until_irq(1000)
        assert harness.read_register(ERRORS) == 0


def test_outside_of_memory_is_decerr() -> None:
    with Harness(STAND_IN, memory_bytes=8192) as harness:
        assert copy(harness, DDR_BASE + 4096)  # reads inside, writes outside
        assert harness.read_register(ERRORS) == 1
        assert copy(harness, 0x0)
        assert harness.read_register(ERRORS) == 1 + 16 + 1
        assert not harness.memory.any()


def test_register_errors() -> None:
    with Harness(STAND_IN) as harness:
        with pytest.raises(RegisterAccessError, match="read of register 0x800.*SLVERR"):
            harness.read_register(0x800)
        with pytest.raises(RegisterAccessError, match="write of register 0x800.*SLVERR"):
            harness.write_register(0x800, 1)
        harness.write_register(COMMAND, DEAF)
        with pytest.raises(RegisterAccessError, match="not answered in 10000 cycles"):
            harness.read_register(ADDRESS)


def test_harnesses_share_nothing(rng: np.random.Generator) -> None:
    with Harness(STAND_IN) as a, Harness(STAND_IN) as b:
        a.write_register(ADDRESS, 1)
        b.write_register(ADDRESS, 2)
        a.memory[0] = 9
        assert (a.read_register(ADDRESS), b.read_register(ADDRESS), b.memory[0]) == (1, 2, 0)
        a.run(1000)
        assert a.cycles > b.cycles + 900


def test_reset_and_close() -> None:
    harness = Harness(STAND_IN)
    harness.inject_fault("read_hang", DDR_BASE, 8)
    assert not copy(harness)
    harness.clear_faults()
    harness.reset()
    assert not harness.irq and copy(harness)
    harness.close()
    harness.close()
    with pytest.raises(SimulationError, match="closed"):
        harness.run(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_latency_cycles": 0}, "read_latency_cycles must be 1 or more, not 0"),
        ({"stall_percent": 100}, "stall_percent must be 0 to 99, not 100"),
        ({"memory_bytes": 100}, "multiples of 4096"),
        ({"memory_base": 0xFFFF_F000, "memory_bytes": 8192}, "below 4 GiB"),
        ({"threads": 0}, "threads must be 1 or more"),
    ],
)
def test_wrong_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Harness(STAND_IN, **options)


def test_wrong_faults() -> None:
    with Harness(STAND_IN) as harness:
        with pytest.raises(ValueError, match="kind must be read_ or write_ with one of"):
            harness.inject_fault("read_okay", 0, 8)
        with pytest.raises(ValueError, match="size_bytes must be 1 or more"):
            harness.inject_fault("read_hang", 0, 0)
        with pytest.raises(ValueError, match="trace=True"):
            harness.trace_to("x.vcd")


@pytest.mark.slow
def test_trace(tmp_path: Path) -> None:
    with Harness(STAND_IN, trace=True) as harness:
        harness.trace_to(tmp_path / "copy.vcd")
        assert copy(harness)
        harness.trace_to(None)
        harness.run(10)
        text = (tmp_path / "copy.vcd").read_text()
        assert "m_axi_araddr" in text and text.count("\n#") > 50
        with pytest.raises(OSError, match="cannot be written"):
            harness.trace_to(tmp_path / "no" / "such.vcd")


def test_compact_keeps_what_is_not_a_run_of_zeros() -> None:
    lines = [f"    mem[{i}] = 8'h00;\n" for i in range(100)]
    looped = compact("  initial begin\n" + "".join(lines) + "  end\n")
    assert "shears_i < 100" in looped and looped.count("mem[") == 1
    odd = [*lines[:20], "    mem[20] = 8'h01;\n", *lines[22:24]]
    assert "mem[20] = 8'h01;" in compact("".join(odd))
    assert compact("".join(lines[:50:2])) == "".join(lines[:50:2])


def test_missing_tools_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"g\+\+ \(Debian package g\+\+\).*make.*perl"):
        check_tools()


def test_a_design_that_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="verilator failed"):
        build_library("module shears; nonsense", tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def _build(cache: str) -> str:
    with Harness(STAND_IN, cache_dir=cache) as harness:
        return f"{harness.library_path} {(harness.library_path.stat()).st_mtime_ns}"


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_build, [str(tmp_path)] * 2)
    assert first == second
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 1
