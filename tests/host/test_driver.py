# SPDX-License-Identifier: Apache-2.0
"""Room tests: `host.Accelerator` on a device whose registers run the golden interpreter."""

from __future__ import annotations

import dataclasses
import gc
import threading

import numpy as np
import pytest

import host
from host.driver import DEFAULT_BASE_ADDRESS, find_base_address
from hwgen.arch.package import IP_VLNV
from hwgen.arch.registers import COUNTERS
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle


@pytest.fixture
def weight(rng):
    return rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


def test_codes_logits_and_pictures_agree(weight, device, rng) -> None:
    bundle = linear_bundle(weight)
    with host.Accelerator(bundle, device) as accelerator:
        for _ in range(5):
            picture = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            image = bundle.preprocess(picture)
            codes = bundle.quantize_input(image)
            right = expected(weight, codes)
            np.testing.assert_array_equal(accelerator.run_int8(codes), right)
            np.testing.assert_array_equal(accelerator.run(image), right * np.float32(0.5))
            np.testing.assert_array_equal(accelerator.run(image[None]), right * np.float32(0.5))
            np.testing.assert_array_equal(accelerator.run(picture), right * np.float32(0.5))
        assert accelerator.run(picture).dtype == np.float32


def test_every_grey_level_gets_the_code_of_the_float_path(weight, device) -> None:
    bundle = linear_bundle(weight)
    accelerator = host.Accelerator(bundle, device)
    for first in range(0, 256, 16):
        grey = np.arange(first, first + 16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
        np.testing.assert_array_equal(
            accelerator._quantize(grey), bundle.quantize_input(bundle.preprocess(grey))
        )
    accelerator.close()


def test_results_are_copies(weight, device, codes) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        first = accelerator.run_int8(codes)
        kept = first.copy()
        accelerator.run_int8(np.zeros_like(codes))
        np.testing.assert_array_equal(first, kept)
        assert first.base is None or type(first.base) is np.ndarray
    np.testing.assert_array_equal(first, kept)


def test_record_of_a_run(weight, device, codes) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        assert accelerator.last_run is None
        accelerator.run_int8(codes)
        record = accelerator.last_run
    assert set(record.counters) == set(COUNTERS)
    assert record.counters["STEPS"] == 16
    assert record.cycles == record.counters["CYCLES_TOTAL"] == 116
    assert record.attempts == 1 and record.errors == ()
    parts = ("pack_seconds", "setup_seconds", "device_seconds", "unpack_seconds")
    assert all(getattr(record, part) >= 0 for part in parts)
    assert sum(getattr(record, part) for part in parts) <= record.total_seconds


def test_batch_takes_arrays_and_generators(weight, device, rng) -> None:
    images = rng.normal(0, 1, (4, 3, 4, 4)).astype(np.float32)
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        logits = accelerator.run_batch(images)
        assert logits.shape == (4, 3)
        np.testing.assert_array_equal(logits, accelerator.run_batch(iter(images)))
        np.testing.assert_array_equal(logits[2], accelerator.run(images[2]))
        with pytest.raises(ValueError, match="at least one image"):
            accelerator.run_batch([])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"must have shape \(3, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.float32), r"must have shape \(3, 4, 4\)"),
        (np.zeros((3, 4, 4), np.float64), "must be float32, not float64"),
        (np.zeros((3, 4, 4), np.int32), "must be float32, not int32"),
        (np.full((3, 4, 4), np.nan, np.float32), "finite"),
        (np.full((3, 4, 4), np.inf, np.float32), "finite"),
        (np.zeros((3, 4, 4), np.uint8), r"must have shape \(4, 4, 3\)"),
    ],
)
def test_images_are_checked(weight, device, codes, image, message) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        with pytest.raises(ValueError, match=message):
            accelerator.run(image)
        np.testing.assert_array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_codes_are_checked(weight, device, codes) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        with pytest.raises(ValueError, match="must be int8"):
            accelerator.run_int8(codes.astype(np.int16))
        with pytest.raises(ValueError, match=r"\(4, 4, 3\)"):
            accelerator.run_int8(codes[:3])


def test_pictures_need_mean_and_std(weight, device) -> None:
    with host.Accelerator(linear_bundle(weight, pictures=False), device) as accelerator:
        with pytest.raises(ValueError, match="no mean and std"):
            accelerator.run(np.zeros((4, 4, 3), np.uint8))


def test_several_outputs(weight, device, codes) -> None:
    bundle = linear_bundle(weight)
    second = dataclasses.replace(bundle.outputs[0], name="z", lanes=(2, 0, 1))
    bundle = dataclasses.replace(bundle, outputs=(*bundle.outputs, second))
    with host.Accelerator(bundle, device) as accelerator:
        y, z = accelerator.run_outputs_int8(codes)
        np.testing.assert_array_equal(y[[2, 0, 1]], z)
        for method in (accelerator.run, accelerator.run_int8):
            with pytest.raises(ValueError, match="one output, not 2; try run_outputs_int8"):
                method(codes)


def test_arguments_are_checked(weight, device) -> None:
    with pytest.raises(TypeError, match=r"must be a Bundle, not str; try Bundle.load"):
        host.Accelerator("folder", device)
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        host.Accelerator(linear_bundle(weight), device, timeout_s=0)
    with pytest.raises(ValueError, match="watchdog_cycles"):
        host.Accelerator(linear_bundle(weight), device, watchdog_cycles=1 << 32)
    assert not device.allocated


def test_close_frees_and_forbids(weight, device, codes) -> None:
    accelerator = host.Accelerator(linear_bundle(weight), device)
    assert device.allocated
    accelerator.close()
    accelerator.close()
    assert not device.allocated
    for action in (lambda: accelerator.run_int8(codes), accelerator.load):
        with pytest.raises(host.AcceleratorClosed, match="after close"):
            action()


def test_buffers_do_not_outlive_a_forgotten_accelerator(weight, device) -> None:
    accelerator = host.Accelerator(linear_bundle(weight), device)
    del accelerator
    gc.collect()
    assert not device.allocated


def test_another_configuration_is_refused(weight) -> None:
    other = dataclasses.replace(CONFIG, tp=2)
    device = FakeDevice(other)
    with pytest.raises(host.DigestMismatch) as caught:
        host.Accelerator(linear_bundle(weight), device)
    assert caught.value.hardware == other.digest() and caught.value.bundle == CONFIG.digest()
    assert f"{other.digest():016x}" in str(caught.value)
    assert f"{CONFIG.digest():016x}" in str(caught.value)
    assert not device.allocated and device.starts == 0


@pytest.mark.parametrize(("register", "message"), [("ID", "base address"), ("VERSION", "release")])
def test_foreign_hardware_is_refused(weight, device, register, message) -> None:
    device.registers[register] = 0xFFFFFFFF
    with pytest.raises(host.WrongHardware, match=message):
        host.Accelerator(linear_bundle(weight), device)
    assert device.starts == 0


def test_no_memory_names_what_was_asked(weight) -> None:
    device = FakeDevice(CONFIG, ddr_bytes=3 * 4096)
    with pytest.raises(host.AllocationError, match=r"for the input of 'linear': 128 bytes"):
        host.Accelerator(linear_bundle(weight), device)
    assert not device.allocated


def test_no_memory_names_what_is_free(weight, tmp_path, monkeypatch) -> None:
    device = FakeDevice(CONFIG, ddr_bytes=8 * 4096)
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nCmaTotal: 131072 kB\nCmaFree: 96 kB\n")
    monkeypatch.setattr("host.driver.MEMORY_INFO", str(tmp_path / "meminfo"))
    with host.Accelerator(linear_bundle(weight, "first"), device) as first:
        size = sum(buffer.nbytes for buffer in first._buffers.values())
        with pytest.raises(host.AllocationError) as caught:
            host.Accelerator(linear_bundle(weight, "second"), device)
        text = str(caught.value)
        assert "CMA has 98304 of 134217728 bytes free" in text
        assert f"bundles loaded here hold 'first' {size}" in text and f"needs {size} bytes" in text
    monkeypatch.setattr("host.driver.MEMORY_INFO", str(tmp_path / "none"))
    small = FakeDevice(CONFIG, ddr_bytes=4096)
    with pytest.raises(host.AllocationError, match="in all .*; bundles loaded here hold nothing;"):
        host.Accelerator(linear_bundle(weight), small)


def test_every_buffer_is_freed_once(weight, codes, monkeypatch) -> None:
    """However many are allocated before something goes wrong."""
    device = FakeDevice(CONFIG)
    made, freed = [], []
    allocate, give_back = device.allocate, device.return_pointer

    def counted(*arguments, **options):
        if len(made) == limit:
            raise RuntimeError("Failed to allocate")
        made.append(None)
        return allocate(*arguments, **options)

    def returned(pointer) -> None:
        freed.append(pointer)
        give_back(pointer)

    monkeypatch.setattr(device, "allocate", counted)
    monkeypatch.setattr(device, "return_pointer", returned)
    limit = -1
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        needed = len(made)
        for _ in range(20):
            accelerator.run_int8(codes)
        accelerator.load()
        assert len(made) == needed == len(accelerator._buffers) and not freed
    assert len(freed) == needed and not device.allocated
    for limit in range(needed):
        made.clear()
        freed.clear()
        with pytest.raises(host.AllocationError):
            host.Accelerator(linear_bundle(weight), device)
        gc.collect()
        assert len(made) == limit == len(freed) and not device.allocated


def test_memory_out_of_reach_is_refused(weight, device, monkeypatch) -> None:
    monkeypatch.setattr("tests.host.fake_device.DDR_BASE", (1 << 32) - 4096)
    with pytest.raises(host.AllocationError, match="below 4 GiB"):
        host.Accelerator(linear_bundle(weight), device)
    assert not device.allocated


def test_base_address_comes_from_the_overlay(weight, codes) -> None:
    class Overlay:
        device = FakeDevice(CONFIG, base_address=0x43C1_0000)
        ip_dict = {
            "ps7": {"type": "xilinx.com:ip:processing_system7:5.5"},
            "a/shears_0": {"type": IP_VLNV, "phys_addr": 0x43C1_0000},
        }

    with host.Accelerator(linear_bundle(weight), overlay=Overlay()) as accelerator:
        np.testing.assert_array_equal(accelerator.run_int8(codes), expected(weight, codes))
    assert find_base_address(Overlay.ip_dict, "a/shears_0") == 0x43C1_0000
    with pytest.raises(host.DeviceNotFound, match="must hold 'b'"):
        find_base_address(Overlay.ip_dict, "b")
    with pytest.raises(host.DeviceNotFound, match="one Shears accelerator, not 0"):
        find_base_address({})
    two = {**Overlay.ip_dict, "b": {"type": IP_VLNV, "phys_addr": 0}}
    with pytest.raises(host.DeviceNotFound, match="not 2"):
        find_base_address(two)


def test_default_base_address_is_gp0s() -> None:
    assert FakeDevice(CONFIG).base_address == DEFAULT_BASE_ADDRESS


def test_without_a_board_pynq_says_so(weight, monkeypatch) -> None:
    import pynq

    meta = type(pynq.Device)
    monkeypatch.setattr(meta, "_subclasses", {})
    for name in ("_devices", "_active_device"):
        monkeypatch.delattr(pynq.Device, name, raising=False)
    with pytest.raises(host.DeviceNotFound, match="pass device= a sim.SimulatedBoard"):
        host.Accelerator(linear_bundle(weight))


def test_the_active_device_is_the_default(weight, device, codes, monkeypatch) -> None:
    import pynq

    monkeypatch.setattr(pynq.Device, "_active_device", device, raising=False)
    with host.Accelerator(linear_bundle(weight)) as accelerator:
        np.testing.assert_array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_threads_take_turns(rng, device) -> None:
    weights = rng.integers(-128, 128, (2, 3, 3, 4, 4)).astype(np.int8)
    inputs = rng.integers(-128, 128, (2, 8, 4, 4, 3)).astype(np.int8)
    wrong: list[str] = []

    def work(accelerator: host.Accelerator, weight, images) -> None:
        for image in images:
            if not np.array_equal(accelerator.run_int8(image), expected(weight, image)):
                wrong.append(accelerator.bundle.name)

    # Both bundles want the same rows of SB, so a run between setup and run would show.
    accelerators = [
        host.Accelerator(linear_bundle(w, f"net{i}"), device) for i, w in enumerate(weights)
    ]
    threads = [
        threading.Thread(target=work, args=(accelerators[i % 2], weights[i % 2], inputs[i % 2]))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads) and not wrong
    for accelerator in accelerators:
        accelerator.close()
