# SPDX-License-Identifier: Apache-2.0
"""The simulation room: run states, first error, watchdog, counters and soft reset."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch.registers import BY_NAME, COUNTERS, QUEUE_NAMES, ErrorCode
from rtl.control import COUNTED
from rtl.layouts import INDEX_BITS
from sim.benches.memory import reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
EVENTS = [event for event, _ in COUNTED.values() if event != "active"]
PROGRESS = ("step", "read_beat", "write_beat", "dispatched", "completed")
LEVELS = ("start", "soft_reset", "bus_idle", "finished", *EVENTS, "completed")


class Model:
    """What `Control`'s docstring says, a cycle at a time."""

    def __init__(self, watchdog: int) -> None:
        self.watchdog = watchdog
        self.state = "IDLE"
        self.done = self.error = False
        self.report: tuple[int, int, int] = (ErrorCode.NONE, 0, 0)
        self.reported: tuple[int, int, int] | None = None  # in the cycle before, while running
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.quiet = 0  # cycles without progress before this one
        self.events = (False, False)

    @property
    def active(self) -> bool:
        """STATUS.running."""
        return self.state in ("RUN", "END", "STOP")

    def cycle(
        self, inputs: dict[str, int], errors: dict[int, tuple[int, int]], oldest: Any
    ) -> None:
        """Advance by a cycle with these inputs; `errors` maps a queue to (code, index)."""
        # The comparison is a cycle late.
        expired = self.watchdog > 0 and self.quiet > self.watchdog
        drained, state, reported = inputs["bus_idle"], self.state, self.reported
        first = reported or ((ErrorCode.NO_PROGRESS, *oldest) if expired else None)
        self.reported = None
        if errors and state == "RUN":
            queue = min(errors)
            code, index = errors[queue]
            where = inputs["dispatcher_error_queue"] if queue == 3 else queue
            self.reported = (code, where, index)

        behind_end = self.counters["INSTRUCTIONS"] % (1 << INDEX_BITS)
        if self.active:
            for name, (event, worth) in COUNTED.items():
                self.counters[name] += worth * (event == "active" or inputs[event])
        done = state == "END" and drained and not reported
        stopped = state == "STOP" and (drained or expired)
        self.done, self.error = self.done or bool(done), self.error or bool(stopped)
        clear = state == "RESET"
        following = state
        if state == "IDLE" and inputs["start"] and drained:
            clear, following = True, "RUN"
        elif state == "RUN" and first or state == "END" and reported:
            assert first
            self.report, following = first, "STOP"
        elif state == "END" and not drained and expired:
            self.report, following = (ErrorCode.NO_PROGRESS, 3, behind_end), "STOP"
        elif state == "RUN" and inputs["finished"]:
            following = "END"
        elif done or stopped or state == "RESET" and drained:
            following = "IDLE"
        if state != "RESET" and inputs["soft_reset"]:
            following = "RESET"
        if clear:
            self.done = self.error = False
            self.report = (ErrorCode.NONE, 0, 0)
            self.counters = dict.fromkeys(COUNTERS, 0)
        moved = clear or first is not None or any(inputs[name] for name in PROGRESS)
        self.quiet = 0 if moved else self.quiet + 1
        self.state = following

    def irq(self, inputs: dict[str, int]) -> tuple[bool, bool]:
        """Return the events of this cycle: done, error."""
        expired = self.watchdog > 0 and self.quiet > self.watchdog
        drained = bool(inputs["bus_idle"])
        ends = self.state == "END" and drained and not self.reported
        return ends, self.state == "STOP" and (drained or expired)


class Bench:
    """Drives a cycle of inputs and compares every output with the model."""

    def __init__(self, dut: Any, rng: random.Random, watchdog: int) -> None:
        self.dut, self.rng, self.model = dut, rng, Model(watchdog)

    async def start(self) -> None:
        """Reset."""
        quiet = {name: 0 for name in LEVELS}
        await reset(self.dut, **quiet, watchdog=self.model.watchdog, dispatcher_error_queue=0)
        # The cycles of the reset were quiet ones, and there was one after it.
        for name in PROGRESS:
            getattr(self.dut, name).value = 1
        await RisingEdge(self.dut.clk)

    async def cycle(self, errors: dict[int, tuple[int, int]], **high: int) -> None:
        """Run a cycle with these inputs high."""
        dut, model, rng = self.dut, self.model, self.rng
        inputs = {name: high.get(name, 0) for name in LEVELS}
        inputs["dispatcher_error_queue"] = rng.randrange(4)
        oldest = rng.randrange(4), rng.getrandbits(INDEX_BITS)
        for name, value in inputs.items():
            getattr(dut, name).value = value
        dut.oldest_queue.value, dut.oldest_index.value = oldest
        for number, queue in enumerate(QUEUE_NAMES):
            code, index = errors.get(number, (rng.randrange(14), rng.getrandbits(INDEX_BITS)))
            getattr(dut, f"{queue}_error__valid").value = int(number in errors)
            getattr(dut, f"{queue}_error__code").value = code
            getattr(dut, f"{queue}_error__index").value = index
        await ReadOnly()
        idle = model.state == "IDLE" and inputs["bus_idle"]
        status = BY_NAME["STATUS"].layout.pack(
            {
                "idle": int(idle),
                "running": int(model.active),
                "done": int(model.done),
                "error": int(model.error),
                "resetting": int(model.state == "RESET"),
            }
        )
        assert int(dut.status.value) == status, (model.state, hex(int(dut.status.value)))
        assert int(dut.halt.value) == (model.state != "RUN"), model.state
        done, stopped = model.irq(inputs)
        assert int(dut.irq_status_set.value) == done | stopped << 1, model.state
        code, number, index = model.report
        assert int(dut.error.value) == code | number << 8
        assert int(dut.error_instruction.value) == index
        for name, value in model.counters.items():
            assert int(getattr(dut, name.lower()).value) == value, name
        model.cycle(inputs, errors, oldest)
        await RisingEdge(dut.clk)


@cocotb.test()
@cocotb.parametrize(watchdog=[0, 1, 25])
async def lives(dut: Any, watchdog: int) -> None:
    """Random starts, ends, errors, several at once, and resets: every output in every cycle."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {watchdog}")
    bench = Bench(dut, rng, watchdog)
    await bench.start()
    seen: dict[tuple[str, str], int] = {}
    for cycle in range(PARAMETERS["count"]):
        if cycle % 50 == 0:  # a new temper: how often each input is high
            often = {name: rng.choice([0.0, 0.02, 0.5, 0.9]) for name in LEVELS}
            often |= {name: rng.choice([0.0, 0.1]) for name in ("start", "finished", *PROGRESS)}
            often["start"], often["soft_reset"] = 0.2, rng.choice([0.0, 0.02, 0.1])
            often["bus_idle"] = rng.choice([0.02, 0.3, 1.0])
            failing = rng.choice([0.0, 0.002, 0.05])
        errors = {
            queue: (rng.randint(1, max(ErrorCode)), rng.getrandbits(INDEX_BITS))
            for queue in range(4)
            if rng.random() < failing
        }
        before = bench.model.state
        await bench.cycle(errors, **{n: int(rng.random() < p) for n, p in often.items()})
        change = before, bench.model.state
        seen[change] = seen.get(change, 0) + 1
    for change in (
        ("IDLE", "RUN"), ("RUN", "END"), ("RUN", "STOP"), ("END", "IDLE"), ("STOP", "IDLE"),
        ("IDLE", "RESET"), ("RUN", "RESET"), ("STOP", "RESET"), ("RESET", "IDLE"),
    ):  # fmt: skip
        assert seen.get(change), (change, seen)


@cocotb.test()
@cocotb.parametrize(watchdog=[1, 30])
async def watchdogs(dut: Any, watchdog: int) -> None:
    """Progress just in time keeps a run alive; silence ends it, on a bus that never answers too."""
    bench = Bench(dut, random.Random(SEED), watchdog)
    await bench.start()
    for last in PROGRESS:
        await bench.cycle({}, start=1, bus_idle=1)
        for _ in range(5):
            await bench.cycle({}, **{last: 1})
            for _ in range(watchdog):
                await bench.cycle({})
        assert bench.model.state == "RUN"
        for _ in range(2 * (watchdog + 2) + 2):
            await bench.cycle({})
        assert bench.model.state == "IDLE" and bench.model.error
        assert bench.model.report[0] == ErrorCode.NO_PROGRESS
        await bench.cycle({}, bus_idle=1)


@cocotb.test()
async def dead_bus_behind_end(dut: Any) -> None:
    """End the run with NO_PROGRESS when the bus dies with instructions fetched beyond END."""
    bench = Bench(dut, random.Random(SEED), 30)
    await bench.start()
    await bench.cycle({}, start=1, bus_idle=1)
    for _ in range(2):
        await bench.cycle({}, dispatched=1)
    await bench.cycle({}, finished=1)
    assert bench.model.state == "END"
    for _ in range(100):
        await bench.cycle({})
    assert bench.model.error and not bench.model.done
    assert bench.model.report == (ErrorCode.NO_PROGRESS, 3, 2)


@cocotb.test()
async def first_error_wins(dut: Any) -> None:
    """Of errors in one cycle the first queue's is kept; later ones change nothing."""
    bench = Bench(dut, random.Random(SEED), 0)
    await bench.start()
    for mask in range(1, 16):
        errors = {q: (2 + q, 100 + q) for q in range(4) if mask >> q & 1}
        await bench.cycle({}, start=1, bus_idle=1)
        await bench.cycle({}, step=1)
        await bench.cycle(errors)
        await bench.cycle({0: (9, 9)}, finished=1)
        first = min(errors)
        assert bench.model.report[::2] == (2 + first, 100 + first)
        for late in range(4):
            await bench.cycle({late: (9, 9)})
        await bench.cycle({}, bus_idle=1)
        assert bench.model.state == "IDLE" and bench.model.error


@cocotb.test()
async def an_error_of_the_last_cycle_counts(dut: Any) -> None:
    """End a run with the error that was reported in the cycle in which it finished."""
    bench = Bench(dut, random.Random(SEED), 0)
    await bench.start()
    await bench.cycle({}, start=1, bus_idle=1)
    await bench.cycle({2: (5, 7)}, finished=1)
    await bench.cycle({}, bus_idle=1)
    assert bench.model.state == "STOP" and bench.model.report == (5, 2, 7)
    await bench.cycle({}, bus_idle=1)
    assert bench.model.error and not bench.model.done
