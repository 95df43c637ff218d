# SPDX-License-Identifier: Apache-2.0
"""Room tests: frames in DMA memory, and networks that look at boxes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import host
from host.cropped import choose_resizer
from host.driver import FRAME_PROGRAMS_MOST
from host.frames import FramePool
from hwgen.arch.crop import resize
from hwgen.arch.registers import ErrorCode
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle


@pytest.fixture
def weights(rng):
    return rng.integers(-40, 40, (4, 3, 5, 5)).astype(np.int8)


@pytest.fixture
def bundle(weights):
    return linear_bundle(weights, "network")


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


def by_hand(bundle, weights, picture):
    """Logits of a picture that is resized here."""
    codes = bundle.quantize_input(bundle.preprocess(resize(picture, 5)))
    return bundle.dequantize_output(0, expected(weights, codes))


def test_a_box_equals_the_resized_picture(bundle, weights, device, rng) -> None:
    picture = rng.integers(0, 256, (20, 31, 3)).astype(np.uint8)
    with host.Accelerator(bundle, device) as accelerator, host.Frame(20, 31, 3, device) as frame:
        frame.write(picture)
        before = device.starts
        for y0, x0, height, width in (
            (0, 0, 20, 31),
            (4, 7, 10, 10),
            (9, 3, 10, 10),
            (19, 30, 1, 1),
        ):
            found = accelerator.run_box(frame, y0, x0, height, width)
            box = picture[y0 : y0 + height, x0 : x0 + width]
            np.testing.assert_array_equal(found, by_hand(bundle, weights, box))
        assert device.starts == before + 4
        assert accelerator.last_run is not None and accelerator.last_run.attempts == 1
    assert not device.allocated


def test_a_frame_keeps_its_rows_apart(device) -> None:
    with host.Frame(3, 5, 3, device) as frame:
        assert frame.pitch_bytes == 16 and frame.pixels.shape == (3, 5, 3)
        frame.pixels[:] = np.arange(45).reshape(3, 5, 3)
        frame.flush()
        start = frame.address - 0x1000_0000
        np.testing.assert_array_equal(device.ddr[start + 16 : start + 31], np.arange(15, 30))
        with pytest.raises(ValueError, match=r"uint8 \(3, 5, 3\) \(H, W, C\), not float64"):
            frame.write(np.zeros((3, 5, 3)))
        with pytest.raises(ValueError, match=r"not uint8 \(3, 5\)"):
            frame.write(np.zeros((3, 5), dtype=np.uint8))
    frame.close()  # again
    for use in (lambda: frame.address, frame.flush):
        with pytest.raises(ValueError, match=r"must not be used after close"):
            use()
    with pytest.raises(ValueError, match="at least one pixel"):
        host.Frame(0, 5, 3, device)
    with pytest.raises(host.AllocationError, match="no DMA memory for a frame of 999 x 9999 x 3"):
        host.Frame(999, 9999, 3, device)


def test_boxes_that_cannot_be(bundle, device) -> None:
    with host.Accelerator(bundle, device) as accelerator, host.Frame(8, 9, 3, device) as frame:
        for box in ((-1, 0, 4, 4), (0, 6, 4, 4), (5, 0, 4, 4), (0, 0, 0, 4), (0, 0, 9, 4)):
            with pytest.raises(ValueError, match="must lie inside the frame of 8 x 9 pixels"):
                accelerator.run_box(frame, *box)
        with (
            host.Frame(8, 8, 1, device) as grey,
            pytest.raises(ValueError, match="3 channels, not 1"),
        ):
            accelerator.run_box(grey, 0, 0, 8, 8)
        accelerator.close()
        with pytest.raises(host.AcceleratorClosed):
            accelerator.run_box(frame, 0, 0, 8, 8)


def test_without_a_resampler(weights) -> None:
    config = replace(CONFIG, resampler_row_bytes=0)
    bundle = replace(linear_bundle(weights, "network"), config=config)
    device = FakeDevice(config)
    with host.Accelerator(bundle, device) as accelerator, host.Frame(8, 9, 3, device) as frame:
        with pytest.raises(host.FrameError, match="has no resampler"):
            accelerator.run_box(frame, 0, 0, 8, 8)
    with pytest.raises(ValueError, match=r"resampler_row_bytes is 0\).*; try resize='host'"):
        choose_resizer("accelerator", [bundle])
    with pytest.raises(ValueError, match="resize must be one of"):
        choose_resizer("camera", [bundle])
    able = replace(bundle, config=CONFIG)
    assert choose_resizer("auto", [bundle]) == "host"
    assert choose_resizer("auto", [able]) == "accelerator"
    assert choose_resizer("host", [able]) == "host"


def test_few_programs_are_kept(bundle, weights, device, rng) -> None:
    picture = rng.integers(0, 256, (30, 30, 3)).astype(np.uint8)
    with host.Accelerator(bundle, device) as accelerator, host.Frame(30, 30, 3, device) as frame:
        frame.write(picture)
        held = len(device.allocated)
        for size in [*range(3, 4 + FRAME_PROGRAMS_MOST), 3]:
            found = accelerator.run_box(frame, 1, 2, size, size)
            box = picture[1 : 1 + size, 2 : 2 + size]
            np.testing.assert_array_equal(found, by_hand(bundle, weights, box))
        assert len(device.allocated) == held + FRAME_PROGRAMS_MOST


def test_a_program_for_boxes_is_copied_again_after_damage(bundle, weights, device, rng) -> None:
    picture = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    with host.Accelerator(bundle, device) as accelerator, host.Frame(9, 9, 3, device) as frame:
        frame.write(picture)
        accelerator.run_box(frame, 0, 0, 9, 9)
        name = next(name for name in accelerator._buffers if "boxes of 9 x 9" in name)
        accelerator._buffers[name][3] ^= 1
        device.faults.append(ErrorCode.INSTRUCTION_CHECKSUM)
        found = accelerator.run_box(frame, 0, 0, 9, 9)
        np.testing.assert_array_equal(found, by_hand(bundle, weights, picture))
        record = accelerator.last_run
        assert record is not None and record.attempts == 2
        assert (
            "boxes of 9 x 9 pixels" in record.errors[0]
            and "1 bytes, first at 3" in record.errors[0]
        )


def test_no_memory_for_a_program(bundle, device) -> None:
    with host.Accelerator(bundle, device) as accelerator, host.Frame(9, 9, 3, device) as frame:
        rest = device.allocate((len(device.ddr) - sum(device.allocated.values()),), "u1")
        with pytest.raises(host.AllocationError, match="program for boxes of 9 x 9 pixels"):
            accelerator.run_box(frame, 0, 0, 9, 9)
        rest.freebuffer()
        accelerator.run_box(frame, 0, 0, 9, 9)


def test_the_pool_keeps_one_frame(device) -> None:
    pool = FramePool(device)
    with pool.borrowed() as copy:
        first = copy(np.zeros((4, 4, 3), dtype=np.uint8))
        second = copy(np.zeros((4, 4, 3), dtype=np.uint8))
        assert first is not second and len(device.allocated) == 2
    assert len(device.allocated) == 1
    with pool.borrowed() as copy:
        assert copy(np.ones((4, 4, 3), dtype=np.uint8)) is first
    with pytest.raises(OSError, match="meanwhile"), pool.borrowed() as copy:
        copy(np.zeros((5, 4, 3), dtype=np.uint8))
        assert len(device.allocated) == 1
        raise OSError("meanwhile")
    pool.close()
    assert not device.allocated


def test_who_borrows_beside_another_takes_nothing_away(device) -> None:
    pool = FramePool(device)
    with pool.borrowed() as copy:
        mine = copy(np.full((4, 4, 3), 7, dtype=np.uint8))
        with pool.borrowed() as copy_too:  # as another thread would
            other = copy_too(np.zeros((4, 4, 3), dtype=np.uint8))
        assert other is not mine and mine.pixels.min() == 7
        with pool.borrowed() as copy_too:
            copy_too(np.zeros((9, 4, 3), dtype=np.uint8))
        assert mine.address and mine.pixels.min() == 7
    pool.close()
    assert not device.allocated


def test_a_frame_of_another_device(bundle, device) -> None:
    with (
        host.Accelerator(bundle, device) as accelerator,
        host.Frame(8, 9, 3, FakeDevice(CONFIG)) as frame,
    ):
        with pytest.raises(ValueError, match="must be on its device"):
            accelerator.run_box(frame, 0, 0, 8, 8)


def test_boxes_are_integers(bundle, device) -> None:
    with host.Accelerator(bundle, device) as accelerator, host.Frame(8, 250, 3, device) as frame:
        with pytest.raises(ValueError, match="must lie inside"):  # and no sum of bytes wraps
            accelerator.run_box(frame, 0, np.uint8(200), 8, np.uint8(100))
        with pytest.raises(TypeError):
            accelerator.run_box(frame, 0, 0.5, 8, 8)


def test_the_host_sees_what_a_camera_wrote(bundle, weights, device, rng) -> None:
    picture = rng.integers(0, 256, (9, 8, 3)).astype(np.uint8)
    with host.Frame(9, 8, 3, device) as frame:
        start = frame.address - 0x1000_0000
        device.ddr[start : start + 9 * 24] = picture.reshape(-1)
        frame.invalidate()
        np.testing.assert_array_equal(frame.pixels, picture)
    with pytest.raises(ValueError, match="must not be used after close"):
        frame.invalidate()


def test_a_frame_beyond_the_addresses(device, monkeypatch) -> None:
    monkeypatch.setattr("tests.host.fake_device.DDR_BASE", (1 << 32) - 4096)
    with host.Frame(64, 21, 3, device) as frame:
        assert frame.address + 64 * 64 == 1 << 32
    with pytest.raises(host.AllocationError, match="below 4 GiB, not at 0xfffff000"):
        host.Frame(65, 21, 3, device)
    assert not device.allocated
