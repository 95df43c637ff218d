# SPDX-License-Identifier: Apache-2.0
"""Room tests: the real `pynq.Overlay` with our .hwh and the simulated board, under the driver.

The .hwh is made from the design that the Vivado scripts ask for (tests/support/vivado.py); pynq's
own parsers read it, pynq binds the driver, and the driver runs a network on the RTL.
"""

from __future__ import annotations

import importlib
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pynq
import pytest
import torch
from pynq.pl_server.hwh_parser import _HWHZynq
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser
from torch import nn

import host
import hwgen
import sim
from host import selftest
from host.ip import AcceleratorIP
from hwgen import deploy
from hwgen.arch.bundle import Bundle
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.package import IP_VLNV, config_of, ip_parameters
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, ID_VALUE, REGISTERS
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.cli import main
from rtl import vivado
from tests.support.quantized_graphs import every_operation
from tests.support.simulators import SMALL_BOARD as CONFIG
from tests.support.vivado import build_overlay, small_verilog, target_of

ROOT = Path(__file__).parents[2]
ELSEWHERE = 0x43C1_0000

pytestmark = pytest.mark.skipif(
    shutil.which("tclsh") is None, reason="tclsh is missing: apt-get install tcl"
)


@pytest.fixture(scope="module")
def target() -> vivado.Target:
    return target_of(load_board("pynq-z2"))


@pytest.fixture(scope="module")
def bit(tmp_path_factory: pytest.TempPathFactory, target: vivado.Target) -> Path:
    work, text = tmp_path_factory.mktemp("overlay"), small_verilog(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vivado, "emit_verilog", lambda config: text)
        return build_overlay(CONFIG, target, work / "project", work)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return program.emit(every_operation(np.random.default_rng(5), 3, 6, 5), CONFIG, name="all")


def codes_for(bundle: Bundle, rng: np.random.Generator) -> np.ndarray:
    channels, height, width = bundle.input.shape
    return rng.integers(-128, 128, (height, width, channels)).astype(np.int8)


def parsers(bit: Path) -> list[object]:
    """Return both of pynq's parsers: of metadata, which loads overlays, and the older one."""
    hwh = str(bit.with_suffix(".hwh"))
    return [RuntimeMetadataParser(Metadata(input=hwh)), _HWHZynq(hwh_name=hwh)]


@pytest.mark.parametrize("which", [0, 1], ids=["metadata", "hwh"])
def test_pynqs_parsers_find_everything(which: int, bit: Path, target: vivado.Target) -> None:
    """Name, address, parameters, registers, and the interrupt by its controller."""
    parser = parsers(bit)[which]
    found = parser.ip_dict["accelerator"]
    assert found["type"] == IP_VLNV
    assert found["phys_addr"] == target.registers_address
    assert found["addr_range"] == ADDRESS_SPACE_BYTES
    assert ip_parameters(CONFIG).items() <= found["parameters"].items()
    assert config_of(found["parameters"]) == CONFIG
    offsets = {name: entry["address_offset"] for name, entry in found["registers"].items()}
    assert offsets == {register.name: register.offset for register in REGISTERS}
    fields = found["registers"]["ERROR"]["fields"]
    assert (fields["queue"]["bit_offset"], fields["queue"]["bit_width"]) == (8, 2)
    interrupt = found["interrupts"]["irq"]
    assert (interrupt["controller"], interrupt["index"]) == ("axi_intc", 0)
    assert parser.interrupt_controllers["axi_intc"]["raw_irq"] == 61  # the first of IRQ_F2P
    controller = parser.ip_dict["axi_intc"]
    assert controller["phys_addr"] == target.interrupt_controller_address
    assert parser.clock_dict[0]["enable"] == 1 and parser.clock_dict[1]["enable"] == 0


def test_overlay_binds_the_driver_and_runs_a_network(
    bit: Path, bundle: Bundle, rng: np.random.Generator
) -> None:
    """What a user types on the board, with the simulated board in its place."""
    with sim.SimulatedBoard(bundle) as board:
        overlay = host.open_overlay(bit, device=board)
        assert isinstance(overlay, pynq.Overlay) and overlay.is_loaded()
        assert type(overlay.accelerator) is AcceleratorIP
        assert overlay.accelerator.config == CONFIG
        assert overlay.accelerator.interrupt_pin == "accelerator/irq"
        assert int(overlay.accelerator.register_map.ID) == ID_VALUE
        golden = GoldenRun(bundle)
        with overlay.accelerator.load(bundle) as accelerator:
            for _ in range(2):
                codes = codes_for(bundle, rng)
                pairs = zip(accelerator.run_outputs_int8(codes), golden.run(codes), strict=True)
                assert all(np.array_equal(found, right) for found, right in pairs)
        assert board.allocated_bytes == 0


def test_runs_wait_for_the_interrupt_of_the_overlay(
    bit: Path, bundle: Bundle, rng: np.random.Generator
) -> None:
    """Pynq's own Interrupt, by the pin and the controller that the .hwh names."""
    with sim.SimulatedBoard(bundle) as board, board.as_active():
        overlay = host.open_overlay(bit)
        golden = GoldenRun(bundle)
        with overlay.accelerator.load(bundle, wait="interrupt") as accelerator:
            for _ in range(2):
                codes = codes_for(bundle, rng)
                pairs = zip(accelerator.run_outputs_int8(codes), golden.run(codes), strict=True)
                assert all(np.array_equal(found, right) for found, right in pairs)
                assert accelerator.last_run.waited == "interrupt 'accelerator/irq'"
            overlay.download()  # the machine forgets everything, pynq makes new controllers
            accelerator.load()
            found = accelerator.run_outputs_int8(codes)
            pairs = zip(found, golden.run(codes), strict=True)
            assert all(np.array_equal(found, right) for found, right in pairs)
            assert accelerator._waiting.line.interrupts >= 1
        with host.Accelerator(bundle, overlay=bit) as accelerator:
            accelerator.run_outputs_int8(codes)
            assert accelerator.last_run.waited == "interrupt 'accelerator/irq'"


def test_accelerator_takes_the_bitstreams_path(
    bit: Path, bundle: Bundle, rng: np.random.Generator
) -> None:
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle) as board:
        with host.Accelerator(bundle, device=board, overlay=bit) as accelerator:
            found = accelerator.run_outputs_int8(codes)
    right = GoldenRun(bundle).run(codes)
    assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))


def test_the_registers_are_where_the_overlay_says(
    bit: Path,
    bundle: Bundle,
    target: vivado.Target,
    rng: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another address in the board's file moves hardware and driver alike."""
    verilog = (bit.parent / "shears.v").read_text(encoding="utf-8")
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: verilog)
    moved = replace(target, registers_address=ELSEWHERE)
    bit = build_overlay(CONFIG, moved, tmp_path / "project", tmp_path)
    codes = codes_for(bundle, rng)
    with sim.SimulatedBoard(bundle, register_base=ELSEWHERE) as board:
        overlay = host.open_overlay(bit, device=board)
        assert overlay.accelerator.mmio.base_addr == ELSEWHERE
        with overlay.accelerator.load(bundle) as accelerator:
            found = accelerator.run_outputs_int8(codes)
    right = GoldenRun(bundle).run(codes)
    assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))


def test_another_configurations_bundle_is_refused(bit: Path, bundle: Bundle) -> None:
    other = replace(bundle, config=replace(CONFIG, queue_depth=8))
    with sim.SimulatedBoard(CONFIG) as board:
        overlay = host.open_overlay(bit, device=board)
        with pytest.raises(host.DigestMismatch) as caught:
            overlay.accelerator.load(other)
    assert (caught.value.hardware, caught.value.bundle) == (CONFIG.digest(), other.config.digest())


def test_loading_resets_the_machine_and_sets_the_clock(bit: Path) -> None:
    """Pynq writes the divisors of FCLK0 before it loads, as the .hwh says: 1000 MHz / 10."""
    with sim.SimulatedBoard(CONFIG) as board:
        mmio = pynq.MMIO(board.register_base, ADDRESS_SPACE_BYTES, device=board)
        mmio.write(0x40, 0x1234)
        host.open_overlay(bit, device=board, download=False)
        assert mmio.read(0x40) == 0x1234
        pynq.Clocks.fclk0_mhz = 50.0
        host.open_overlay(bit, device=board)
        assert mmio.read(0x40) == 0
        assert parsers(bit)[0].clock_dict[0]["frequency"] == 100.0
        assert pynq.Clocks.fclk0_mhz == 100.0


def test_the_page_about_the_board(
    bit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What docs/board.md tells to type on the board, with the simulated one as pynq's device."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bundle = hwgen.compile(model.eval(), images[:1], images, config=CONFIG)
    bundle.save(tmp_path / "my-network")
    board_file = replace(load_board("pynq-z2"), config=CONFIG)
    packed = deploy.write_package(
        board_file, [tmp_path / "my-network"], tmp_path / "out.tar.gz", bitstream=bit.parent
    )
    with tarfile.open(packed.path) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path / "shears-pynq-z2")
    page = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
    command = "python -m host.selftest --overlay overlay/shears.bit"
    install = Path("INSTALL.md").read_text(encoding="utf-8")
    assert f"\n{command}\n" in page and f"\n{command}\n" in install
    with sim.SimulatedBoard(bundle) as board, board.as_active():
        assert selftest.main(command.split()[3:]) == 0
        out = capsys.readouterr().out
        passed = "19 passed, 0 failed, 0 skipped"
        assert passed in out and f"\n{passed}\n" in page and "'accelerator/irq' came" in out
        assert main(["selftest", "--overlay", "overlay/shears.bit", "--seed", "3"]) == 0
        for text, blocks in ((page, 2), (install, 1)):
            found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            assert len(found) == blocks
            names: dict[str, object] = {}
            for block in found:
                exec(compile(block, "page", "exec"), names)  # as the reader does
            assert "cycles" in capsys.readouterr().out
            if text is page:
                logits, answers = names["logits"], names["answers"]
                assert isinstance(logits, np.ndarray) and logits.shape == (5,)
                assert all(np.array_equal(answer, logits) for answer in answers)


def test_the_pages_command_for_vivado_is_ours() -> None:
    page = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
    assert f"\n{' '.join(vivado.vivado_command())}\n" in page


def test_no_bitstream(tmp_path: Path) -> None:
    with sim.SimulatedBoard(CONFIG) as board:
        with pytest.raises(OSError, match=r"missing.bit does not exist"):
            host.open_overlay(tmp_path / "missing.bit", device=board)


def test_pynq_is_told_where_the_driver_is() -> None:
    """The entry point names a module that binds it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    group = re.search(r'^\[project.entry-points."pynq.lib"\]\n\w+ = "(.*)"$', text, re.MULTILINE)
    assert group is not None
    assert importlib.import_module(group.group(1)).AcceleratorIP.bindto == [IP_VLNV]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TN": None}, r"must have the parameters \['TN'\]"),
        ({"TI": "16"}, "digest must be that of its parameters"),
        ({"CONFIG_DIGEST": "0x1"}, "not 0000000000000001"),
        ({"ISA_VERSION": "1"}, "instruction set version must be .*, not 1"),
    ],
)
def test_parameters_that_do_not_fit(change: dict[str, str | None], message: str) -> None:
    parameters = {**ip_parameters(CONFIG), "Component_Name": "x", **change}
    left = {name: value for name, value in parameters.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        config_of(left)
