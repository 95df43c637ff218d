# SPDX-License-Identifier: Apache-2.0
"""Room tests: `host.Hls4mlAccelerator` through pynq's own DMA driver, on a DMA that can fail."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import re
import threading
from pathlib import Path

import numpy as np
import pynq
import pytest
import torch
from torch import nn

import host
from host.dma import find_dma
from hwgen.arch import BundleError, HlsBundle, StreamTensor
from hwgen.backends import hls4ml
from hwgen.ir import Graph, evaluate_integer
from hwgen.quantize import quantize_model
from tests.support.axi_dma import HlsOverlay, StreamingBoard, handoff

ROOT = Path(__file__).parents[2]
SHAPE = (3, 5, 5)
TIMEOUT_S = 0.05


def quantized(*layers: nn.Module) -> Graph:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, *SHAPE, generator=generator)
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return quantize_model(model, images[:1], images, scheme="power_of_two")


def network_of(graph: Graph):
    return lambda codes: evaluate_integer(graph, codes)[graph.outputs[0]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return quantized(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, 3)
    )


@pytest.fixture(scope="module")
def project(graph, tmp_path_factory) -> hls4ml.HlsProject:
    folder = tmp_path_factory.mktemp("hls") / "project"
    project = hls4ml.emit(graph, folder, name="net", backend="VivadoAccelerator")
    project.write()
    return project


@pytest.fixture(scope="module")
def bundle(project) -> HlsBundle:
    return HlsBundle.load(project.folder / "bundle.json")


@pytest.fixture
def device(bundle, graph) -> StreamingBoard:
    return StreamingBoard(bundle, network_of(graph))


@pytest.fixture
def overlay(device) -> HlsOverlay:
    return HlsOverlay(device)


@pytest.fixture
def accelerator(bundle, overlay, device):
    with host.Hls4mlAccelerator(bundle, overlay=overlay, timeout_s=TIMEOUT_S) as accelerator:
        yield accelerator
    assert not device.allocated


def codes_for(rng, *count: int) -> np.ndarray:
    return rng.integers(-128, 128, (*count, 5, 5, 3)).astype(np.int8)


def right(graph: Graph, codes: np.ndarray) -> np.ndarray:
    """Codes (n, classes) that the integers give."""
    return network_of(graph)(codes.reshape(-1, 5, 5, 3)).reshape(-1, 3)


def works(accelerator, graph, rng) -> bool:
    codes = codes_for(rng)
    return np.array_equal(accelerator.run_int8(codes), right(graph, codes)[0])


# The bundle.


def test_a_project_writes_its_bundle(project, bundle, graph) -> None:
    """Sizes are those of the wrapper that hls4ml wrote; words are its T_in and T_out."""
    header = (project.folder / "firmware" / "net_axi.h").read_text(encoding="utf-8")
    sizes = {name: int(n) for name, n in re.findall(r"unsigned (N_\w+) = (\d+);", header)}
    assert bundle.input.image_bytes == 4 * sizes["N_IN"] == 4 * 75
    assert bundle.output.image_bytes == 4 * sizes["N_OUT"] == 4 * 3
    assert re.findall(r"typedef (\w+) (T_\w+);", header) == [("float", "T_in"), ("float", "T_out")]
    widths = re.findall(r"bit_width_\w+ (\d+)", (project.folder / "project.tcl").read_text())
    assert widths == ["32", "32"]
    assert bundle.ip == "xilinx.com:hls:net_axi"
    assert "xilinx.com:hls:${project_name}_axi" in (project.folder / "design.tcl").read_text()
    assert (bundle.input.scale, bundle.output.scale) == project._scales
    assert (bundle.cycles, bundle.interval) == (project.estimate.cycles, project.estimate.interval)
    assert bundle.layers == len(project.ops)
    np.testing.assert_array_equal(bundle.check_output, network_of(graph)(bundle.check_input))


def test_bundle_round_trip(project, tmp_path, rng) -> None:
    labels, preprocess = ("a", "b", "c"), ((0.5, 0.25, 0.5), (0.5, 0.5, 1))
    file = project.save_bundle(tmp_path / "x.json", preprocess=preprocess, labels=labels)
    assert list(tmp_path.iterdir()) == [file]
    bundle = HlsBundle.load(file)
    assert (bundle.labels, (bundle.mean, bundle.std)) == (labels, preprocess)
    bundle.save(tmp_path / "y.json")
    assert (tmp_path / "y.json").read_bytes() == file.read_bytes()
    for wrong in ({"labels": ("a",)}, {"preprocess": ((0.5,) * 2, (1.0,) * 2)}, {"images": 0}):
        with pytest.raises(ValueError, match=r"must (be (3|1 or more)|have as many)"):
            project.save_bundle(file, **wrong)


def test_damaged_bundles_are_refused(project, tmp_path) -> None:
    file = tmp_path / "bundle.json"

    def refused(text: str, message: str) -> None:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match=message):
            HlsBundle.load(file)

    good = (project.folder / "bundle.json").read_text(encoding="utf-8")
    refused(good[:-20], "is damaged")
    refused(good.replace('"scale_log2": -', '"scale_log2": -1', 1), "checksum does not match")
    refused("[]", "is no hls4ml bundle")
    refused(json.dumps({"format_version": 2}), "is no hls4ml bundle")
    from hwgen.arch.hls_bundle import _digest

    for change, message in (
        ({"format_version": 9}, "format version 9"),
        ({"word": "int8"}, "int8 words"),
        ({"mean": [1.0]}, "does not fit together: mean and std"),
        ({"layers": None, "check": {}}, "does not fit together"),
    ):
        body = {**json.loads(good), **change}
        del body["sha256"]
        refused(json.dumps({**body, "sha256": _digest(body)}), message)
    with pytest.raises(BundleError, match=r"a folder, not an hls4ml bundle; Bundle.load"):
        HlsBundle.load(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        HlsBundle.load(tmp_path / "none.json")


def test_only_projects_with_a_dma_have_a_bundle(graph, tmp_path) -> None:
    project = hls4ml.emit(graph, tmp_path / "hls", backend="Vitis")
    with pytest.raises(hls4ml.HlsError, match="backend='VivadoAccelerator'"):
        project.save_bundle()
    project.write()
    assert not (tmp_path / "hls" / "bundle.json").exists()


@pytest.mark.parametrize("scale_log2", [-126, -7, 0, 120])
def test_words_lose_no_bit(scale_log2: int) -> None:
    tensor = StreamTensor("x", (256, 1, 1), scale_log2, vector=True)
    codes = np.arange(-128, 128).astype(np.int8)
    words = tensor.to_words(codes[None])
    assert words.dtype == np.float32 and np.isfinite(words).all()
    assert [float(w) for w in words[0]] == [int(c) * 2.0**scale_log2 for c in codes]
    np.testing.assert_array_equal(tensor.to_codes(words)[0], codes)


@pytest.mark.parametrize("value", [128.0, -129.0, 0.5, np.nan, np.inf])
def test_words_that_are_no_codes(value: float) -> None:
    words = np.zeros((1, 4), np.float32)
    words[0, 2] = value * 2.0**-7
    tensor = StreamTensor("x", (4, 1, 1), -7)
    with pytest.raises(ValueError, match=r"1 of 4 words are no codes .* word 2"):
        tensor.to_codes(words)
    words.view(np.uint32)[0, 2] = 0xFF80_0001  # a NaN that a cast to float64 complains of
    with pytest.raises(ValueError, match="word 2, nan"):
        tensor.to_codes(words)


def test_scales_that_float32_does_not_hold() -> None:
    for scale_log2 in (-127, 121):
        with pytest.raises(ValueError, match="-126 to 120"):
            StreamTensor("x", (1, 1, 1), scale_log2)


# Runs.


def test_codes_images_and_pictures_agree(project, graph, device, overlay, tmp_path, rng) -> None:
    file = project.save_bundle(tmp_path / "b.json", preprocess=((0.5,) * 3, (0.25,) * 3))
    bundle = HlsBundle.load(file)
    with host.Hls4mlAccelerator(bundle, overlay=overlay) as accelerator:
        for _ in range(5):
            picture = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
            image = bundle.preprocess(picture)
            codes = bundle.quantize_input(image)
            expected = right(graph, codes)[0]
            real = expected * np.float32(bundle.output.scale)
            np.testing.assert_array_equal(accelerator.run_int8(codes), expected)
            np.testing.assert_array_equal(accelerator.run_outputs_int8(codes)[0], expected)
            for given in (image, image[None], picture):
                found = accelerator.run(given)
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, real)
            np.testing.assert_array_equal(asyncio.run(accelerator.run_async(image)), real)
    assert not device.allocated


def test_maps_come_out_as_maps(tmp_path, rng) -> None:
    graph = quantized(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 2))
    project = hls4ml.emit(graph, tmp_path / "hls", name="map", backend="VivadoAccelerator")
    bundle = HlsBundle.load(project.save_bundle())
    overlay = HlsOverlay(StreamingBoard(bundle, network_of(graph)))
    codes = codes_for(rng)
    with host.Hls4mlAccelerator(bundle, overlay=overlay) as accelerator:
        found = accelerator.run_int8(codes)
    assert found.shape == (4, 4, 2)
    np.testing.assert_array_equal(found, network_of(graph)(codes[None])[0])


def test_batches_go_in_pieces(bundle, graph, overlay, device, rng) -> None:
    codes = codes_for(rng, 7)
    images = codes.transpose(0, 3, 1, 2) * np.float32(bundle.input.scale)
    real = right(graph, codes) * np.float32(bundle.output.scale)
    with host.Hls4mlAccelerator(bundle, overlay=overlay, most_images=3) as accelerator:
        device.transfers.clear()
        np.testing.assert_array_equal(accelerator.run_batch(images), real)
        np.testing.assert_array_equal(accelerator.run_batch(iter(images)), real)
        assert device.transfers == [(900, 36), (900, 36), (300, 12)] * 2
        assert accelerator.last_run.counters["IMAGES"] == 1
        with pytest.raises(ValueError, match="at least one image"):
            accelerator.run_batch([])


def test_pieces_stay_within_the_length_register(bundle, graph, rng) -> None:
    """300 bytes an image: three in the 1023 of a register of 10 bits, none in 255."""
    device = StreamingBoard(bundle, network_of(graph), length_bits=10)
    codes = codes_for(rng, 4)
    images = codes.transpose(0, 3, 1, 2) * np.float32(bundle.input.scale)
    with host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(device)) as accelerator:
        device.transfers.clear()
        found = accelerator.run_batch(images)
    np.testing.assert_array_equal(found, right(graph, codes) * np.float32(bundle.output.scale))
    assert device.transfers == [(900, 36), (300, 12)]
    narrow = StreamingBoard(bundle, network_of(graph), length_bits=8)
    with pytest.raises(host.WrongHardware, match=r"300 bytes .* at most 255; raise c_sg_length"):
        host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(narrow))
    assert not narrow.allocated and not narrow.transfers


def test_results_and_images_are_copies(accelerator, bundle, rng) -> None:
    codes = codes_for(rng)
    given = codes.copy()
    first = accelerator.run_int8(codes)
    kept = first.copy()
    np.testing.assert_array_equal(codes, given)
    first[:] = 0
    codes[:] = 0
    again = accelerator.run_int8(given)
    accelerator.run_int8(codes)
    np.testing.assert_array_equal(again, kept)
    assert type(again) is np.ndarray
    assert not any(np.shares_memory(again, b) for b in accelerator._buffers.values())


def test_record_of_a_run(accelerator, rng) -> None:
    assert accelerator.last_run is None
    accelerator.run_int8(codes_for(rng))
    record = accelerator.last_run
    assert record.counters == {"BYTES_SENT": 300, "BYTES_RECEIVED": 12, "IMAGES": 1}
    parts = ("pack_seconds", "setup_seconds", "device_seconds", "unpack_seconds")
    assert all(getattr(record, part) >= 0 for part in parts)
    assert sum(getattr(record, part) for part in parts) <= record.total_seconds
    assert (record.attempts, record.errors, record.waited) == (1, (), "polling")
    with pytest.raises(AttributeError, match="counts no cycles"):
        _ = record.cycles


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 3), np.float32), r"must have shape \(3, 5, 5\)"),
        (np.zeros((2, 3, 5, 5), np.float32), r"must have shape \(3, 5, 5\)"),
        (np.zeros((3, 5, 5), np.float64), "must be float32, not float64"),
        (np.full((3, 5, 5), np.nan, np.float32), "finite"),
        (np.zeros((3, 5, 5), np.uint8), r"must have shape \(5, 5, 3\)"),
        (np.zeros((5, 5, 3), np.uint8), r"no mean and std; write it with save_bundle"),
    ],
)
def test_images_are_checked(accelerator, device, graph, rng, image, message) -> None:
    device.transfers.clear()
    with pytest.raises(ValueError, match=message):
        accelerator.run(image)
    with pytest.raises(ValueError, match=message):
        accelerator.run_batch([image])
    assert not device.transfers
    assert works(accelerator, graph, rng)


def test_codes_are_checked(accelerator, device, rng) -> None:
    codes = codes_for(rng)
    device.transfers.clear()
    for wrong in (codes.astype(np.int16), codes[:4], codes[None]):
        with pytest.raises(ValueError, match=r"must be int8 of shape \(5, 5, 3\) \(H, W, C\)"):
            accelerator.run_int8(wrong)
    assert not device.transfers


def test_arguments_are_checked(bundle, overlay, device) -> None:
    make = host.Hls4mlAccelerator
    with pytest.raises(TypeError, match=r"must be an HlsBundle, not str; try HlsBundle.load"):
        make("bundle.json", overlay=overlay)
    for options, message in (
        ({"overlay": overlay, "timeout_s": 0}, "timeout_s must be above 0"),
        ({"overlay": overlay, "most_images": 0}, "most_images must be 1 or more"),
        ({}, "overlay must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make(bundle, **options)
    assert not device.allocated and not device.transfers


def test_close_frees_and_forbids(bundle, overlay, device, rng) -> None:
    accelerator = host.Hls4mlAccelerator(bundle, overlay=overlay)
    assert len(device.allocated) == 2
    accelerator.close()
    accelerator.close()
    assert not device.allocated
    for action in (lambda: accelerator.run_int8(codes_for(rng)), accelerator.load):
        with pytest.raises(host.AcceleratorClosed, match="after close"):
            action()
    forgotten = host.Hls4mlAccelerator(bundle, overlay=overlay)
    del forgotten
    gc.collect()
    assert not device.allocated


def test_no_memory_names_what_was_asked(bundle, graph) -> None:
    device = StreamingBoard(bundle, network_of(graph), ddr_bytes=4 * 4096)
    with pytest.raises(host.AllocationError, match=r"output of 32 images .* 9984 bytes .* smaller"):
        device.ddr = device.ddr[: 3 * 4096]
        host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(device))
    assert not device.allocated
    with host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(device), most_images=1):
        pass


def test_threads_take_turns(bundle, graph, overlay, rng) -> None:
    codes = codes_for(rng, 4, 8)
    wrong: list[int] = []
    accelerators = [host.Hls4mlAccelerator(bundle, overlay=overlay) for _ in range(2)]

    def work(number: int) -> None:
        for image in codes[number]:
            found = accelerators[number % 2].run_int8(image)
            if not np.array_equal(found, right(graph, image)[0]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    for accelerator in accelerators:
        accelerator.close()


def test_a_busy_board_says_so(accelerator, rng) -> None:
    raised: list[host.BoardBusy] = []

    def work() -> None:
        try:
            accelerator.run_int8(codes_for(rng))
        except host.BoardBusy as error:
            raised.append(error)

    with accelerator.locked():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(timeout=30)
    assert len(raised) == 1 and "MainThread" in str(raised[0])


# The overlay.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"c_include_sg": "1"}, "c_include_sg 0, not 1"),
        ({"c_micro_dma": "1"}, "c_micro_dma 0, not 1"),
        ({"c_include_s2mm": "0"}, "c_include_s2mm 1, not 0"),
        ({"c_m_axis_mm2s_tdata_width": "8"}, "c_m_axis_mm2s_tdata_width 32, not 8"),
        ({"c_s_axis_s2mm_tdata_width": "64"}, "c_s_axis_s2mm_tdata_width 32, not 64"),
        ({"c_sg_length_width": "7"}, "c_sg_length_width 8 to 26, not 7"),
    ],
)
def test_another_dma_is_refused(bundle, device, parameters, message) -> None:
    with pytest.raises(host.WrongHardware, match=message):
        host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(device, **parameters))
    assert not device.allocated and not device.transfers


def test_overlays_without_the_design_are_refused(bundle, device, overlay) -> None:
    entry = overlay.ip_dict["hier_0/axi_dma_0"]
    with pytest.raises(host.WrongHardware, match="c_include_sg 0, not missing; .*.hwh file"):
        overlay.ip_dict["hier_0/axi_dma_0"] = {**entry, "parameters": {}}
        host.Hls4mlAccelerator(bundle, overlay=overlay)
    overlay.ip_dict["hier_0/axi_dma_0"] = entry
    with pytest.raises(host.DeviceNotFound, match=r"dma must be one of .*axi_dma_0'\], not 'b'"):
        host.Hls4mlAccelerator(bundle, overlay=overlay, dma="b")
    overlay.ip_dict["b"] = entry
    with pytest.raises(host.DeviceNotFound, match="one AXI DMA, not 2"):
        host.Hls4mlAccelerator(bundle, overlay=overlay)
    assert find_dma(overlay.ip_dict, "b") == "b"
    with pytest.raises(host.DeviceNotFound, match="one AXI DMA, not 0"):
        find_dma({})
    overlay.ip_dict["hier_0/x"] = {"type": "xilinx.com:hls:other_axi:1.0"}
    with pytest.raises(host.WrongHardware, match="hold xilinx.com:hls:net_axi, not .*other_axi"):
        host.Hls4mlAccelerator(bundle, overlay=overlay, dma="b")
    overlay.ip_dict["hier_0/net"] = {"type": "xilinx.com:hls:net_axi:1.0"}
    host.Hls4mlAccelerator(bundle, overlay=overlay, dma="b").close()
    assert not device.allocated


def test_the_bitstreams_path(bundle, graph, device, tmp_path, rng) -> None:
    """The real pynq.Overlay, with the DMA in a hierarchy as in hls4ml's design.tcl."""
    (tmp_path / "design.bit").touch()
    (tmp_path / "design.hwh").write_text(handoff("net"), encoding="utf-8")
    with host.Hls4mlAccelerator(
        bundle, device, overlay=tmp_path / "design.bit", timeout_s=TIMEOUT_S
    ) as accelerator:
        assert works(accelerator, graph, rng) and device.downloads == 1
        device.faults.append("mm2s slave")
        with pytest.raises(host.DmaError, match="runs again"):
            accelerator.run_int8(codes_for(rng))
        assert works(accelerator, graph, rng) and device.downloads == 2
    assert not device.allocated


def test_the_page_about_the_board(tmp_path, monkeypatch, rng) -> None:
    """What docs/backends.md tells to type on the board, with another device in its place."""
    graph = quantized(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(18, 4))
    project = hls4ml.emit(graph, tmp_path / "hls", name="scenes", backend="VivadoAccelerator")
    bundle = HlsBundle.load(
        project.save_bundle(tmp_path / "bundle.json", preprocess=((0.5,) * 3, (0.25,) * 3))
    )
    (tmp_path / "scenes.bit").touch()
    (tmp_path / "scenes.hwh").write_text(handoff("scenes"), encoding="utf-8")
    device = StreamingBoard(bundle, network_of(graph))
    monkeypatch.setattr(pynq.Device, "_active_device", device, raising=False)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    pictures = rng.integers(0, 256, (5, 5, 5, 3)).astype(np.uint8)
    names: dict[str, object] = {"pictures": pictures}
    exec(compile(block, "docs/backends.md", "exec"), names)  # as the reader does
    codes = np.stack([bundle.quantize_input(bundle.preprocess(one)) for one in pictures])
    real = network_of(graph)(codes).reshape(5, 4) * np.float32(bundle.output.scale)
    np.testing.assert_array_equal(names["logits"], real)
    assert device.downloads == 1 and not device.allocated


@pytest.mark.parametrize("reload", [True, False])
def test_another_networks_bitstream_is_refused(bundle, graph, reload) -> None:
    """Same shapes, other weights: only the results tell."""
    other = StreamingBoard(bundle, lambda codes: network_of(graph)(codes) ^ 1)
    with pytest.raises(host.StreamMismatch, match="3 of 3 codes of test image 0 differ"):
        host.Hls4mlAccelerator(bundle, overlay=HlsOverlay(other), reload=reload)
    assert not other.allocated


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        (((3, 6, 6), (3, 1, 1)), host.DmaTimeout, "no TLAST came .* needs more input"),
        (((3, 5, 5), (2, 1, 1)), host.StreamMismatch, "must give 12 bytes for 1 images, not 8"),
        (((3, 5, 5), (4, 1, 1)), host.DmaError, "internal error .* more words than the result"),
    ],
    ids=["more input", "less output", "more output"],
)
def test_networks_of_other_sizes_are_refused(bundle, overlay, device, shapes, error, message):
    first, last = shapes
    device.bundle = dataclasses.replace(
        bundle,
        input=dataclasses.replace(bundle.input, shape=first),
        output=dataclasses.replace(bundle.output, shape=last),
        check_input=np.zeros((1, *first[1:], first[0]), np.int8),
        check_output=np.zeros((1, 1, 1, last[0]), np.int8),
    )
    device.network = lambda codes: np.zeros((1, 1, 1, last[0]), np.int8)
    device.reset_design()
    with pytest.raises(error, match=message) as caught:
        host.Hls4mlAccelerator(bundle, overlay=overlay, timeout_s=TIMEOUT_S)
    assert "load the bitstream" in str(caught.value)
    assert not device.allocated


# Failures, and the run after them.


@pytest.mark.parametrize(
    ("fault", "message", "bits"),
    [
        ("hang", r"MM2S_DMASR .* \(busy\).*does not take its input", set()),
        ("no last", r"\(idle\), S2MM_DMASR .* \(busy\).*no TLAST came", {"mm2s_idle"}),
    ],
)
def test_timeouts_say_what_both_channels_are_at(
    accelerator, overlay, device, graph, rng, fault, message, bits
) -> None:
    device.faults.append(fault)
    with pytest.raises(host.AcceleratorTimeout, match=message) as caught:
        accelerator.run_int8(codes_for(rng))
    error = caught.value
    assert type(error) is host.DmaTimeout and error.recovered
    assert {name for name, value in error.status.items() if value} == bits
    assert f"within {TIMEOUT_S:g} s" in str(error) and "runs again" in str(error)
    assert overlay.downloads == 1
    assert works(accelerator, graph, rng) and overlay.downloads == 1


@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
@pytest.mark.parametrize("kind", ["internal", "slave", "decode"])
def test_errors_of_the_dma_are_named(
    accelerator, overlay, device, graph, rng, channel, kind
) -> None:
    """The design is left in the middle of an image: without the bitstream it would stay so."""
    device.faults.append(f"{channel} {kind}")
    side = {"mm2s": "sending", "s2mm": "receiving"}[channel]
    with pytest.raises(host.DmaError, match=f"{kind} error of the {side} channel: ") as caught:
        accelerator.run_int8(codes_for(rng))
    assert caught.value.status[f"{channel}_{kind}_error"] and caught.value.recovered
    assert overlay.downloads == 1
    assert works(accelerator, graph, rng)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("short", host.StreamMismatch, "must give 12 bytes for 1 images, not 8"),
        ("long", host.DmaError, "internal error of the receiving channel"),
        ("no code", host.StreamMismatch, "1 of 3 words are no codes"),
    ],
)
def test_results_of_another_form_are_refused(
    accelerator, overlay, device, graph, rng, fault, error, message
) -> None:
    device.faults.append(fault)
    with pytest.raises(error, match=message):
        accelerator.run_int8(codes_for(rng))
    assert overlay.downloads == 1
    assert works(accelerator, graph, rng)


def test_without_reloading_a_design_out_of_step_is_not_trusted(
    bundle, overlay, device, graph, rng
) -> None:
    """After half an image every result would be wrong; after a whole one all is well."""
    with host.Hls4mlAccelerator(
        bundle, overlay=overlay, timeout_s=TIMEOUT_S, reload=False
    ) as accelerator:
        device.faults.append("hang")  # nothing was taken: still in step
        with pytest.raises(host.DmaTimeout, match="runs again"):
            accelerator.run_int8(codes_for(rng))
        assert works(accelerator, graph, rng)
        device.faults.append("mm2s slave")
        with pytest.raises(host.DmaError, match="does not run again by itself .*StreamMismatch|"
                           "does not run again by itself .*DmaTimeout") as caught:  # fmt: skip
            accelerator.run_int8(codes_for(rng))
        assert not caught.value.recovered
        with pytest.raises(host.StreamMismatch, match="load the bitstream again"):
            accelerator.run_int8(codes_for(rng))
        overlay.download()
        assert works(accelerator, graph, rng)


def test_a_reset_that_never_ends(bundle, overlay, device, graph, rng, monkeypatch, caplog) -> None:
    monkeypatch.setattr("host.dma.RESET_TIMEOUT_S", TIMEOUT_S)
    accelerator = host.Hls4mlAccelerator(bundle, overlay=overlay, timeout_s=TIMEOUT_S)
    device.faults.append("hang")
    device.stuck_reset = True
    with pytest.raises(host.DmaTimeout, match="reset of the DMA did not end.*load") as caught:
        accelerator.run_int8(codes_for(rng))
    assert not caught.value.recovered
    device.stuck_reset = False
    assert works(accelerator, graph, rng)
    accelerator.close()
    device.dead = True
    device.reset_design()
    with pytest.raises(host.WrongHardware, match=r"must run once it is started, .*halted"):
        host.Hls4mlAccelerator(bundle, overlay=overlay, reload=False)
    assert not device.allocated


def test_buffers_are_kept_while_the_dma_may_write(
    bundle, overlay, device, rng, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("host.dma.RESET_TIMEOUT_S", TIMEOUT_S)
    accelerator = host.Hls4mlAccelerator(bundle, overlay=overlay)
    device.stuck_reset = True
    device.channels["s2mm"].status &= ~2  # busy
    accelerator.close()
    assert len(device.allocated) == 2 and "2 buffers are kept" in caplog.text


def test_a_bitstream_loaded_anew_is_started(accelerator, overlay, graph, rng) -> None:
    overlay.download()
    assert works(accelerator, graph, rng)
    accelerator.load()
    assert works(accelerator, graph, rng) and overlay.downloads == 1


def test_what_a_killed_program_left_is_cleared(bundle, overlay, device, graph, rng) -> None:
    """It sent half an image; the DMA still waits for the result."""
    first = host.Hls4mlAccelerator(bundle, overlay=overlay)
    device.faults.append("no last")
    first._dma.exchange(
        first._buffers["input"], 300, first._buffers["output"], 12, timeout_s=TIMEOUT_S
    )
    with host.Hls4mlAccelerator(bundle, overlay=overlay) as accelerator:
        assert overlay.downloads == 1
        assert works(accelerator, graph, rng)
    assert works(first, graph, rng)  # it notices that the DMA was reset
    first.close()


def test_an_interrupted_run_leaves_nothing_under_way(
    accelerator, device, overlay, graph, rng, monkeypatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    accelerator.timeout_s = 60.0  # it is interrupted long before
    device.faults.append("hang")
    with monkeypatch.context() as patch:
        patch.setattr("host.dma.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            accelerator.run_int8(codes_for(rng))
    assert not any(channel.active for channel in device.channels.values())
    assert works(accelerator, graph, rng) and overlay.downloads == 1


def test_pulled_out_at_any_access_of_a_run(accelerator, device, graph, rng, monkeypatch) -> None:
    """A TransportError, and the next run works once the board is there again."""
    left = None

    def behind_a_cable(method):
        def access(*arguments):
            nonlocal left
            if left is not None:
                if left == 0:
                    raise OSError(5, "Input/output error")
                left -= 1
            return method(*arguments)

        return access

    for name in ("read_registers", "write_registers", "flush", "invalidate"):
        monkeypatch.setattr(device, name, behind_a_cable(getattr(device, name)))
    for accesses in itertools.count():
        left = accesses
        try:
            accelerator.run_int8(codes_for(rng))
        except host.TransportError as error:
            assert "running 'net'" in str(error) or "loading 'net'" in str(error)
        else:
            break
        left = None
        assert works(accelerator, graph, rng)
    left = None
    assert accesses > 10


@pytest.mark.slow
def test_the_compiled_design_behind_the_dma(project, bundle, graph, rng) -> None:
    """hls4ml's C++, its AXI wrapper included, in the place of the integers."""
    project.compile()
    overlay = HlsOverlay(StreamingBoard(bundle, project.predict))
    codes = codes_for(rng, 20)
    codes[0], codes[1] = -128, 127
    images = codes.transpose(0, 3, 1, 2) * np.float32(bundle.input.scale)
    with host.Hls4mlAccelerator(bundle, overlay=overlay) as accelerator:
        found = accelerator.run_batch(images)
        np.testing.assert_array_equal(accelerator.run_int8(codes[3]), right(graph, codes[3])[0])
    np.testing.assert_array_equal(found, right(graph, codes) * np.float32(bundle.output.scale))
