# SPDX-License-Identifier: Apache-2.0
"""Room tests: `shears package`, installed without a network, runs on what a PYNQ image has."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from host import selftest
from hwgen.arch.bundle import Bundle
from hwgen.arch.cascade import CascadeRule
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.package import IP_VLNV, ip_parameters
from hwgen.boards import Board, load_board
from hwgen.cli import main
from hwgen.deploy import NOT_BUILT, PackageError, board_wheel, write_package
from tests.host import fake_device
from tests.host.small_bundle import CONFIG, linear_bundle
from tests.host.test_python310 import python310

#: Runs on the "board": Shears from the archive, numpy and pynq from where they are, no more.
ON_BOARD = """
import importlib.util, json, sys, warnings

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"a board has no {{name}}")

sys.meta_path.insert(0, Blocked())
warnings.simplefilter("ignore")
import numpy as np
import host, host.ip, hwgen
from host.selftest import SelfTest
from hwgen.arch import Bundle

assert host.__file__.startswith({target!r}) and hwgen.__file__.startswith({target!r})
spec = importlib.util.spec_from_file_location("fake_device", {fake!r})
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
bundle = Bundle.load("bundles/linear")
device = fake.FakeDevice(bundle.config)
with host.Accelerator(bundle, device) as accelerator:
    codes = np.load("codes.npy")
    answer = [accelerator.run_int8(one).tolist() for one in codes]
checks = SelfTest(bundle.config, device).run()
print(json.dumps(dict(answer=answer, failed=[c.name for c in checks if c.status == "fail"])))
"""
BLOCKED = (
    "torch",
    "onnx",
    "sklearn",
    "rich",
    "amaranth",
    "hls4ml",
    "cocotb",
    "rtl",
    "sim",
    "tests",
)


@pytest.fixture
def board() -> Board:
    return dataclasses.replace(load_board("pynq-z2"), config=CONFIG)


@pytest.fixture
def bundle(tmp_path: Path, rng: np.random.Generator) -> Path:
    made = linear_bundle(rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8))
    return made.save(tmp_path / "linear")


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """Files as of a build; nothing here reads more of them than this."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "shears.bit").write_bytes(b"bits")
    (folder / "shears.hwh").write_text(hwh(ip_parameters(CONFIG)))
    return folder


def hwh(parameters: dict[str, str], vlnv: str = IP_VLNV) -> str:
    lines = "".join(f'<PARAMETER NAME="{k}" VALUE="{v}"/>' for k, v in parameters.items())
    module = f'<MODULE VLNV="{vlnv}"><PARAMETERS>{lines}</PARAMETERS></MODULE>'
    return f'<EDKSYSTEM><MODULES><MODULE VLNV="x:y:z:1.0"/>{module}</MODULES></EDKSYSTEM>'


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        assert all(name.startswith("shears-pynq-z2/") for name in packed.getnames())
        packed.extractall(folder)
    root = folder / "shears-pynq-z2"
    for line in (root / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest
    listed = {line.split("  ")[1] for line in (root / "SHA256SUMS").read_text().splitlines()}
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert files == listed | {"SHA256SUMS"}
    return root


def test_installed_offline_it_runs_a_bundle(
    board: Board, bundle: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    found = write_package(board, [bundle], tmp_path / "out" / "x.tar.gz")
    root = unpacked(found.path, tmp_path)
    (wheel,) = root.glob("shears-*.whl")
    target = str(tmp_path / "site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet",
         "--disable-pip-version-check", "--no-compile", "--target", target, wheel],
        check=True, timeout=120, cwd=root,
    )  # fmt: skip
    codes = rng.integers(-128, 128, (3, 4, 4, 3)).astype(np.int8)
    np.save(root / "codes.npy", codes)
    script = ON_BOARD.format(blocked=BLOCKED, target=target, fake=fake_device.__file__)
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": target},
        capture_output=True, text=True, timeout=120, cwd=root,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    golden = GoldenRun(Bundle.load(bundle))
    right = [golden.run(one)[0].tolist() for one in codes]
    assert json.loads(run.stdout) == {"answer": right, "failed": []}
    assert (Path(target) / "bin" / "shears-selftest").is_file()


def test_the_wheel_is_the_boards_part_alone(tmp_path: Path) -> None:
    name, data = board_wheel()
    assert re.fullmatch(r"shears-[\w.]+\+board-py3-none-any\.whl", name)
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert wheel.testzip() is None
        names = wheel.namelist()
        wheel.extractall(tmp_path / "files")
    python = [n for n in names if ".dist-info/" not in n]
    rooms = ("hwgen/arch/", "host/")
    alone = ("hwgen/__init__.py", "hwgen/profile_report.py")
    assert all(n in alone or n.startswith(rooms) for n in python)
    assert set(alone) <= set(python)
    assert {"host/ip.py", "host/selftest.py", "hwgen/arch/isa.py"} <= set(python)
    assert all(n.endswith(".py") for n in python)
    info = next(n for n in names if n.endswith("METADATA")).rpartition("/")[0]
    headers = (tmp_path / "files" / info / "METADATA").read_text()
    assert "Requires-Python: >=3.10" in headers
    assert re.findall(r"^Requires-Dist: (.*)$", headers, re.MULTILINE) == ["numpy>=1.21"]
    entries = (tmp_path / "files" / info / "entry_points.txt").read_text()
    assert "shears-selftest = host.selftest:main" in entries and "shears = host.ip" in entries
    if (interpreter := python310()) is not None:
        code = "import compileall, sys; sys.exit(not compileall.compile_dir('.', quiet=1))"
        subprocess.run([interpreter, "-c", code], check=True, timeout=60, cwd=tmp_path / "files")


def test_the_same_input_gives_the_same_bytes(
    board: Board, bundle: Path, overlay: Path, tmp_path: Path
) -> None:
    first = write_package(board, [bundle], tmp_path / "a.tar.gz", bitstream=overlay)
    copy = tmp_path / "elsewhere" / "linear"
    shutil.copytree(bundle, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    second = write_package(board, [copy], tmp_path / "b.tar.gz", bitstream=overlay)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == second.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


def test_overlay_notebooks_and_what_is_missing(
    board: Board, bundle: Path, overlay: Path, tmp_path: Path
) -> None:
    notebooks = tmp_path / "notebooks"
    (notebooks / ".ipynb_checkpoints").mkdir(parents=True)
    (notebooks / ".ipynb_checkpoints" / "old.ipynb").write_text("{}")
    (notebooks / "first.ipynb").write_text("{}")
    found = write_package(
        board, [bundle], tmp_path / "a.tar.gz", bitstream=overlay, notebooks=notebooks
    )
    root = unpacked(found.path, tmp_path / "with")
    assert found.overlay and (root / "overlay" / "shears.bit").read_bytes() == b"bits"
    assert (root / "notebooks" / "first.ipynb").is_file() and NOT_BUILT not in found.files
    assert not [name for name in found.files if "checkpoints" in name]
    page = (root / "INSTALL.md").read_text()
    assert "not in this archive" not in page and f"`{CONFIG.digest():016x}`" in page
    assert "## 5. Notebooks" in page
    shutil.copytree(bundle, notebooks / "data" / "linear")
    found = write_package(board, [], tmp_path / "c.tar.gz", notebooks=notebooks)
    root = unpacked(found.path, tmp_path / "data")
    assert Bundle.load(root / "notebooks" / "data" / "linear").config == CONFIG
    other = dataclasses.replace(board, config=dataclasses.replace(CONFIG, queue_depth=4))
    with pytest.raises(PackageError, match="linear must be compiled for configuration"):
        write_package(other, [], tmp_path / "d.tar.gz", notebooks=notebooks)
    found = write_package(board, [], tmp_path / "b.tar.gz", notebooks=tmp_path / "none")
    root = unpacked(found.path, tmp_path / "without")
    assert not found.overlay and found.digest == CONFIG.digest()
    assert "shears build --board pynq-z2" in (root / NOT_BUILT).read_text()
    page = (root / "INSTALL.md").read_text()
    assert "**The bitstream is not in this archive**" in page and "Run a network" not in page
    assert "Notebooks" not in page


def test_a_cascade_is_one_file(
    board: Board, overlay: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    weights = rng.integers(-128, 128, (2, 3, 3, 4, 4)).astype(np.int8)
    stages = tuple(linear_bundle(w, f"s{i}", 32 * i, 32 * i) for i, w in enumerate(weights))
    rule = CascadeRule(thresholds=(0.5,))
    file = CascadeBundle("pets", rule, stages).save(tmp_path / "pets.cascade")
    found = write_package(board, [file], tmp_path / "a.tar.gz", bitstream=overlay)
    root = unpacked(found.path, tmp_path / "out")
    assert CascadeBundle.load(root / "bundles" / "pets.cascade").classes == 3
    page = (root / "INSTALL.md").read_text()
    assert 'host.CascadeClassifier(bundle, overlay="overlay/shears.bit")' in page
    other = dataclasses.replace(board, config=dataclasses.replace(CONFIG, queue_depth=4))
    with pytest.raises(PackageError, match="pets.cascade must be compiled for configuration"):
        write_package(other, [file], tmp_path / "b.tar.gz")


def test_what_does_not_belong_together(
    board: Board, bundle: Path, overlay: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "x.tar.gz", dataclasses.replace(CONFIG, queue_depth=4)
    with pytest.raises(PackageError, match="which pynq-z2 has, not"):
        write_package(dataclasses.replace(board, config=other), [bundle], out)
    (overlay / "shears.hwh").write_text(hwh(ip_parameters(other)))
    with pytest.raises(PackageError, match="which the bitstream has, not") as caught:
        write_package(board, [bundle], out, bitstream=overlay)
    assert f"{other.digest():016x}" in str(caught.value)
    assert f"{CONFIG.digest():016x}" in str(caught.value)
    (overlay / "shears.hwh").write_text(hwh({}, "a:b:c:1.0"))
    with pytest.raises(PackageError, match="must have a Shears accelerator"):
        write_package(board, [bundle], out, bitstream=overlay)
    (overlay / "shears.hwh").write_text("<EDK")
    with pytest.raises(PackageError, match="damaged"):
        write_package(board, [bundle], out, bitstream=overlay)
    (overlay / "shears.hwh").unlink()
    with pytest.raises(PackageError, match=r"must hold one .bit .* not \['shears.bit'\]"):
        write_package(board, [bundle], out, bitstream=overlay)
    with pytest.raises(PackageError, match="two bundles are called 'linear'"):
        write_package(board, [bundle, bundle], out)
    (bundle / "program.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        write_package(board, [bundle], out)
    assert not out.exists()


def test_the_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["package", "--board", "pynq-z2", "--json", "p.json"]) == 0
    assert "without a bitstream: build/pynq-z2 has none" in capsys.readouterr().out
    Path("build/pynq-z2").mkdir()  # what a build without Vivado leaves has no bitstream either
    assert main(["package", "--board", "pynq-z2", "--json", "p.json"]) == 0
    report = json.loads(Path("p.json").read_text())
    assert report["archive"] == "build/shears-pynq-z2.tar.gz" and not report["overlay"]
    assert report["digest"] == f"{load_board('pynq-z2').config.digest():016x}"
    assert "INSTALL.md" in report["files"]
    assert main(["package", "missing"]) == 1
    assert "BundleError: missing is no bundle" in capsys.readouterr().err
    monkeypatch.setattr(selftest, "make_selftest", lambda *where, **how: Failing())
    assert main(["selftest", "--overlay", "shears.bit", "--json", "s.json"]) == 1
    captured = capsys.readouterr()
    assert "RuntimeError: failed: digest" in captured.err and "fail  digest" in captured.out
    assert not json.loads(Path("s.json").read_text())["passed"]


class Failing(selftest.SelfTest):
    """A self test on a machine of another configuration."""

    def __init__(self) -> None:
        other = dataclasses.replace(CONFIG, queue_depth=4)
        super().__init__(other, fake_device.FakeDevice(CONFIG))
