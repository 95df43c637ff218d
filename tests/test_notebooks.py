# SPDX-License-Identifier: Apache-2.0
"""The tests room: every notebook runs, top to bottom, on the simulated board and as on a board."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from hwgen import deploy
from hwgen.arch import Bundle
from hwgen.boards import load_board
from rtl import vivado
from tests.support.vivado import build_overlay, small_verilog, target_of

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: In place of a reader's, so that seconds are enough.
QUICK: dict[str, dict[str, Any]] = {
    "2-cropped-inference": {"count": 4},
    "3-compress-your-network": {
        "images": 480,
        "epochs": 8,
        "budget": 0.5,
        "max_steps": 1,
        "methods": ("trim",),
    },
}
#: What a board's Python has not; `sim` and what it stands on are the board itself here.
NOT_ON_A_BOARD = ("torch", "onnx", "sklearn", "rich", "hls4ml", "hwgen.compress", "hwgen.boards")


@pytest.fixture(scope="module", autouse=True)
def beside_the_notebooks() -> Iterator[None]:
    """Import their modules as they do."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    yield
    sys.path.remove(str(ROOT / "notebooks"))
    for name in ("desk", "execute", "pictures"):
        sys.modules.pop(name, None)


@pytest.fixture
def bit(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the .bit and .hwh of pynq-z2, as the stand-in for Vivado does."""
    if shutil.which("tclsh") is None:
        pytest.skip("tclsh is missing: apt-get install tcl")
    work, text = tmp_path_factory.mktemp("overlay"), small_verilog(tmp_path_factory)
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: text)
    board = load_board("pynq-z2")
    return build_overlay(board.config, target_of(board), work / "project", work)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, beside_the_notebooks: None) -> Path:
    """Networks and samples as the notebooks make them: once, whichever worker comes first."""
    import desk

    root = tmp_path_factory.getbasetemp().parent / "notebooks"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        return desk.prepare(root / "data", "quick", cache=root / "cache")


def _code(notebook: Any) -> list[str]:
    return [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _read(path: Path) -> Any:
    found = json.loads(path.read_text(encoding="utf-8"))
    for cell in found["cells"]:
        cell["source"] = "".join(cell["source"])
    return found


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "1-first-inference", "2-cropped-inference", "3-compress-your-network", "4-look-inside",
    ]  # fmt: skip
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"](notebooks/{path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_results_are_committed(path: Path) -> None:
    for cell in _read(path)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_asks_what_it_runs_on(path: Path) -> None:
    """`desk` alone knows; a cell may only name the board, or leave the training out."""
    code = "\n".join(_code(_read(path)))
    for word in ("import sim", "pynq", "overlay", "SimulatedBoard", "environ"):
        assert word not in code
    assert code.count("board.simulated") <= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_the_simulated_board(path: Path, data: Path, tmp_path: Path) -> None:
    import execute

    values = {"data": str(data), "learn": "quick", **QUICK.get(path.stem, {})}
    parameters = _code(_read(path))[0]
    for name in ("work", "out"):
        if f"\n{name} = " in parameters:
            values[name] = str(tmp_path / name)
    notebook = execute.execute(path, values, timeout_s=300)
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    said = "".join(one.text for one in outputs if one.output_type == "stream")
    assert not [one.text for one in outputs if one.get("name") == "stderr"]
    assert "simulated PYNQ-Z2, accelerator at 150 MHz" in said and "cycles" in said.lower()
    pictures = [one for one in outputs if "image/png" in one.get("data", ())]
    assert len(pictures) == {"1": 2, "2": 1, "3": 2, "4": 3}[path.stem[0]]
    if path.stem == "4-look-inside":
        trace = json.loads((tmp_path / "out" / "trace.json").read_text())
        assert any(event["ph"] == "X" for event in trace["traceEvents"])


def test_a_parameter_that_is_none() -> None:
    import execute

    with pytest.raises(ValueError, match=r"has the parameters \['data', 'learn'\], not \['lern'\]"):
        execute.execute(NOTEBOOKS[0], {"lern": "quick"})


AS_ON_A_BOARD = """
import json, sys, warnings

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ModuleNotFoundError(f"a board has no {{name}}")

warnings.simplefilter("ignore")
import sim
from hwgen.arch import Bundle
board = sim.SimulatedBoard(Bundle.load("data/predictor"))
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, ".")
import desk
desk.can_make = lambda: False
with board, board.as_active():
    for name in {names!r}:
        cells = json.load(open(name))["cells"]
        names = {{}}
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), name, "exec"), names)
assert not [name for name in sys.modules if name in {blocked!r}]
"""


def test_they_run_on_a_board_from_the_archive(data: Path, tmp_path: Path, bit: Path) -> None:
    """All that 1, 2 and 4 need is in it; pynq's own Overlay finds the accelerator."""
    books = tmp_path / "books"
    books.mkdir()
    for path in (ROOT / "notebooks").iterdir():
        if path.suffix in (".ipynb", ".py"):
            (books / path.name).write_bytes(path.read_bytes())
    shutil.copytree(data, books / "data")
    packed = deploy.write_package(
        load_board("pynq-z2"), [], tmp_path / "out.tar.gz", bitstream=bit.parent, notebooks=books
    )
    with tarfile.open(packed.path) as archive:
        archive.extractall(tmp_path)
    here = tmp_path / "shears-pynq-z2" / "notebooks"
    assert Bundle.load(here / "data" / "predictor").name == "predictor"
    names = [path.name for path in NOTEBOOKS if path.stem[0] != "3"]
    script = AS_ON_A_BOARD.format(blocked=NOT_ON_A_BOARD, names=names)
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=here, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "simulated" not in run.stdout and run.stdout.count("PYNQ-Z2, accelerator at") == 3
    assert "interrupt 'accelerator/irq'" in run.stdout


def test_what_is_missing_is_told(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import desk

    with pytest.raises(ValueError, match="learn must be one of"):
        desk.prepare(data, "slow")
    monkeypatch.setattr(desk, "can_make", lambda: False)
    assert desk.prepare(data, "demo") == data  # whatever was brought is taken
    with pytest.raises(
        FileNotFoundError, match="must hold predictor, .* desk.json; on a PC, `make"
    ):
        desk.prepare(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a board or a simulator is needed"):
        desk.open_board(data)
    monkeypatch.setattr(desk, "active_device", lambda: object())
    with pytest.raises(FileNotFoundError, match="`shears build`, then `shears package`"):
        desk.open_board(data)


def test_a_damaged_network_is_made_anew(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import desk

    made = []
    monkeypatch.setattr(desk, "_make", lambda folder, *rest: made.append(folder))
    assert desk.prepare(data, "quick") == data and not made
    copy = shutil.copytree(data, tmp_path / "copy")
    desk.prepare(copy, "quick")
    assert not made
    desk.prepare(copy, "demo")
    (copy / "predictor" / "program.bin").write_bytes(b"")
    desk.prepare(copy, "quick")
    assert made == [copy, copy]


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's pictures are blue first; the camera is let go, also when it gives none."""
    import desk

    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    left, released = [picture] * 3, []

    class Camera:
        def __init__(self, number: int) -> None:
            assert number == 1

        def read(self) -> tuple[bool, Any]:
            return (True, left.pop()) if left else (False, None)

        def release(self) -> None:
            released.append(self)

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Camera))
    frames = list(desk.camera_frames(1, 2))
    assert len(frames) == 2 and np.array_equal(frames[0], picture[:, :, ::-1])
    with pytest.raises(OSError, match="camera 1 gives no picture"):
        list(desk.camera_frames(1, 2))
    assert len(released) == 2
