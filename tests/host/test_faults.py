# SPDX-License-Identifier: Apache-2.0
"""Room tests: what the driver makes of errors, hangs and damage. Afterwards the board works."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest

import host
from host.board import board_at
from host.errors import FAMILIES, instruction_text
from hwgen.arch import isa
from hwgen.arch.registers import BY_NAME, ERROR_HINTS, ErrorCode
from tests.host.fake_device import HANG, FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle

CODES = [code for code in ErrorCode if code != ErrorCode.NONE]
TRANSIENT = [code for code in CODES if FAMILIES[code].transient]


@pytest.fixture
def weight(rng):
    return rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


@pytest.fixture
def accelerator(weight, device):
    with host.Accelerator(linear_bundle(weight), device, timeout_s=0.1) as accelerator:
        yield accelerator
    assert not device.allocated


def works(accelerator, weight, codes) -> bool:
    return np.array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_every_code_has_a_family() -> None:
    assert set(FAMILIES) == set(CODES)
    assert {FAMILIES[code] for code in TRANSIENT} == {
        host.BusError,
        host.ChecksumError,
        host.NoProgress,
    }


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_each_error_is_typed_and_the_board_usable_afterwards(
    code, accelerator, device, weight, codes
) -> None:
    # A transient error is retried, setup first: starts are program, setup, program.
    device.faults.extend([code, None, code] if FAMILIES[code].transient else [code])
    with pytest.raises(FAMILIES[code]) as caught:
        accelerator.run_int8(codes)
    error = caught.value
    assert isinstance(error, host.AcceleratorError) and type(error) is FAMILIES[code]
    assert error.code is code and error.queue == "compute" and error.instruction == 2
    assert error.hint == ERROR_HINTS[code] and error.hint in str(error)
    assert error.text.startswith("STORE wait_compute=1") and error.text in str(error)
    assert code.name in str(error) and "program of 'linear'" in str(error)
    assert not device.faults
    assert works(accelerator, weight, codes)
    assert accelerator.last_run.attempts == 1


@pytest.mark.parametrize("code", TRANSIENT, ids=lambda code: code.name)
def test_transient_errors_are_tried_once_more(
    code, accelerator, device, weight, codes, caplog
) -> None:
    device.faults.append(code)
    with caplog.at_level(logging.WARNING, "shears.host"):
        assert works(accelerator, weight, codes)
    record = accelerator.last_run
    assert record.attempts == 2 and len(record.errors) == 1 and code.name in record.errors[0]
    assert "trying once more" in caplog.text
    assert works(accelerator, weight, codes) and accelerator.last_run.attempts == 1


def test_a_code_of_a_later_version_is_not_hidden(accelerator, device, weight, codes) -> None:
    device.faults.append(200)
    with pytest.raises(host.RunStopped, match=r"error 200 \(unknown\)"):
        accelerator.run_int8(codes)
    assert works(accelerator, weight, codes)


def test_a_hang_ends_in_a_timeout_that_tells(accelerator, device, weight, codes) -> None:
    device.faults.append(HANG)
    started = time.monotonic()
    with pytest.raises(host.AcceleratorTimeout) as caught:
        accelerator.run_int8(codes)
    assert time.monotonic() - started < 2
    error = caught.value
    assert error.recovered and error.status["running"] and error.code == 0
    assert set(error.counters) > {"CYCLES_TOTAL", "INSTRUCTIONS"}
    for part in ("0.1 s", "STATUS running", "INSTRUCTIONS=", "soft reset brought it back"):
        assert part in str(error)
    assert works(accelerator, weight, codes)


def test_a_reset_that_hangs_keeps_the_buffers(weight, device, codes, monkeypatch, caplog) -> None:
    monkeypatch.setattr("host.board.RESET_TIMEOUT_S", 0.05)
    accelerator = host.Accelerator(linear_bundle(weight), device, timeout_s=0.05)
    device.faults.append(HANG)
    device.stuck_reset = True
    with pytest.raises(host.AcceleratorTimeout, match="load the bitstream again") as caught:
        accelerator.run_int8(codes)
    assert not caught.value.recovered
    with pytest.raises(host.AcceleratorTimeout, match="soft reset before a run"):
        accelerator.run_int8(codes)
    accelerator.close()
    # The hardware may still write there, so the memory must not be given to anybody else.
    assert device.allocated and "does not stop" in caplog.text
    device.stuck_reset = False
    assert board_at(device, device.base_address).soft_reset()
    assert not device.allocated
    with host.Accelerator(linear_bundle(weight), device) as again:
        assert works(again, weight, codes)


def test_an_interrupted_wait_stops_the_hardware(accelerator, device, weight, codes) -> None:
    device.faults.append(HANG)
    read = device.read_registers
    accelerator.timeout_s = 30

    def interrupt(address: int, length: int) -> bytes:
        if device.status["running"]:
            device.read_registers = read
            raise KeyboardInterrupt
        return read(address, length)

    device.read_registers = interrupt
    with pytest.raises(KeyboardInterrupt):
        accelerator.run_int8(codes)
    assert not device.status["running"]
    assert works(accelerator, weight, codes)


def test_a_status_read_that_overtakes_the_start_is_not_believed(
    accelerator, device, weight, codes
) -> None:
    read, stale = device.read_registers, dict(device.status)
    assert stale["done"]  # of the setup program
    reads = []

    def overtake(address: int, length: int) -> bytes:
        status = address - device.base_address == BY_NAME["STATUS"].offset
        if status and device.status["running"] and len(reads) < 3:
            reads.append(address)
            return BY_NAME["STATUS"].layout.pack(stale).to_bytes(4, "little")
        return read(address, length)

    device.read_registers = overtake
    assert works(accelerator, weight, codes)
    assert len(reads) == 3 and accelerator.last_run.attempts == 1


def test_a_device_that_went_away_can_be_closed(weight, device, codes, monkeypatch) -> None:
    accelerator = host.Accelerator(linear_bundle(weight), device)

    def gone(address: int, length: int) -> bytes:
        raise OSError("device removed")

    monkeypatch.setattr(device, "read_registers", gone)
    with pytest.raises(host.TransportError, match="OSError: device removed"):
        accelerator.run_int8(codes)
    accelerator.close()
    assert not device.allocated


def test_a_run_left_behind_by_another_process_is_reset(weight, device, codes) -> None:
    device.status.update(idle=0, running=1)
    device._outcome = HANG
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        assert works(accelerator, weight, codes)


@pytest.mark.parametrize("region", ["program", "setup", "constants"])
def test_damage_in_ddr_is_found_repaired_and_reported(
    region, accelerator, device, weight, codes, rng
) -> None:
    buffer = accelerator._buffers[region]
    device.reset_registers()  # setup must run again, so that its damage matters
    buffer[int(rng.integers(len(buffer) if region != "constants" else 64))] ^= 0x10
    assert works(accelerator, weight, codes)
    (message,) = accelerator.last_run.errors
    assert (
        "CHECKSUM" in message and f"{region} in DDR differs from the bundle in 1 bytes" in message
    )


def test_setup_errors_surface_from_the_constructor(weight, device) -> None:
    device.faults.append(ErrorCode.BAD_OPCODE)
    with pytest.raises(host.ProgramError, match="setup of 'linear'"):
        host.Accelerator(linear_bundle(weight), device)
    assert not device.allocated
    device.faults.append(ErrorCode.READ_SLVERR)
    host.Accelerator(linear_bundle(weight), device).close()


def test_a_program_that_writes_elsewhere_is_stopped(weight, device, codes) -> None:
    import dataclasses

    bundle = linear_bundle(weight)
    far = isa.encode(isa.Opcode.STORE, base=2, offset_bytes=1 << 31, rows=1, words_per_row=1)
    wild = dataclasses.replace(bundle, program=far + isa.encode(isa.Opcode.END))
    with host.Accelerator(wild, device) as accelerator:
        with pytest.raises(host.BusError, match="DECERR") as caught:
            accelerator.run_int8(codes)
        assert caught.value.queue == "store" and caught.value.instruction == 0
    endless = dataclasses.replace(bundle, program=bundle.program[: -isa.INSTRUCTION_BYTES])
    with host.Accelerator(endless, device) as accelerator:
        with pytest.raises(host.ProgramError, match="behind the program's 3 instructions"):
            accelerator.run_int8(codes)
    with host.Accelerator(bundle, device) as accelerator:
        assert works(accelerator, weight, codes)


def test_instruction_text_of_garbage() -> None:
    assert "checksum does not match" in instruction_text(bytes(64), 0)
    assert instruction_text(isa.encode(isa.Opcode.END), 0) == "END"
