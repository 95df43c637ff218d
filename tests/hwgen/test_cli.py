# SPDX-License-Identifier: Apache-2.0
"""The tests room: the `shears` command, verb by verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hwgen.arch import Bundle, Profile
from hwgen.cli import main
from tests.support.simulators import SMALL_BOARD

ROOT = Path(__file__).parents[2]

MODEL = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 4))

def softmax():
    return nn.Sequential(tiny(), nn.Softmax(1))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a model file and calibration images."""
    (tmp_path / "net.py").write_text(MODEL)
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    np.save(tmp_path / "images.npy", images)
    return tmp_path


def compile_into(
    folder: Path, name: str = "tiny", images: str = "images.npz", board: str = "pynq-z2"
) -> int:
    """Run `shears compile`."""
    return main(
        [
            *("compile", f"{folder / 'net.py'}:{name}"),
            *("--calibration", str(folder / images), "--board", board),
            *("--out", str(folder / "bundle"), "--json", str(folder / "compile.json")),
        ]
    )


def test_what_calibration_knows_of_pictures_goes_into_the_bundle(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean, std and labels, all checked before."""
    images = np.load(folder / "images.npy")
    mean, std, labels = (0.1, 0.2, 0.3), (1.0, 2.0, 0.5), ("a", "b", "c", "d")
    np.savez(folder / "known.npz", images=images, mean=mean, std=std, labels=labels)
    assert compile_into(folder, images="known.npz") == 0
    bundle = Bundle.load(folder / "bundle")
    assert (bundle.mean, bundle.std, bundle.labels) == (mean, std, labels)
    for change, text in (
        ({"labels": np.arange(4)}, "must hold labels as text, a name for each class, not int64"),
        ({"mean": mean}, "must hold both mean and std, each std above 0, or none"),
        ({"mean": mean, "std": (1.0, 0.0, 1.0)}, "each std above 0"),
        ({"mean": mean[:2], "std": std}, r"must hold mean as (3,) numbers, one for each channel"),
    ):
        np.savez(folder / "wrong.npz", images=images, **change)
        assert compile_into(folder, images="wrong.npz") == 1
        assert text in capsys.readouterr().err


@pytest.mark.parametrize("images", ["images.npz", "images.npy"])
def test_compile_estimate_run_disassemble(
    folder: Path, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verbs hand a bundle on to each other, and each writes its JSON."""
    assert compile_into(folder, images=images) == 0
    bundle = folder / "bundle"
    assert json.loads((folder / "compile.json").read_text())["macs"] == Bundle.load(bundle).macs
    result = folder / "out.json"
    assert main(["estimate", str(bundle), "--json", str(result)]) == 0
    estimated = json.loads(result.read_text())
    assert estimated["cycles"] > sum(layer["cycles"] for layer in estimated["layers"]) > 0
    arguments = ["run", str(bundle), "--on", "interpreter", "--count", "2", "--json", str(result)]
    assert main(arguments) == 0
    assert np.shape(json.loads(result.read_text())["logits"]) == (2, 4)
    assert main(["disassemble", str(bundle)]) == 0
    assert "COMPUTE" in capsys.readouterr().out


def test_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb writes a trace, a plot and the records, and its JSON adds up."""
    fields = "\n".join(f"{name} = {value}" for name, value in SMALL_BOARD.to_dict().items())
    board = (ROOT / "boards" / "pynq-z2.toml").read_text().partition("[accelerator]")[0]
    (folder / "small.toml").write_text(f"{board}[accelerator]\n{fields}\n")
    assert compile_into(folder, board=str(folder / "small.toml")) == 0
    capsys.readouterr()
    out, result = folder / "profile", folder / "profile.json"
    command = ["profile", str(folder / "bundle"), "--seed", "3", "--out", str(out)]
    assert main([*command, "--board", str(folder / "small.toml"), "--json", str(result)]) == 0
    report = json.loads(result.read_text())
    rows, counters = report["layers"], report["counters"]
    assert f"{counters['CYCLES_TOTAL']:,} cycles" in capsys.readouterr().out
    assert sum(row["cycles"] for row in rows) == counters["CYCLES_TOTAL"]
    assert sum(row["wait_load"] for row in rows) == counters["CYCLES_WAIT_LOAD"]
    bundle = Bundle.load(folder / "bundle")
    assert sum(row["macs"] for row in rows) == bundle.macs - bundle.padding_macs
    assert sorted(map(str, out.iterdir())) == sorted(report["files"])
    profile = Profile.from_dict(json.loads((out / "profile.json").read_text()))
    assert profile.counters == counters and len(profile.records) == counters["INSTRUCTIONS"] - 1
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["index"] for e in events if e["ph"] == "X"} == set(
        range(len(profile.records))
    )


def test_unsupported_network_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unsupported layer is named on stderr, and no bundle appears."""
    assert compile_into(folder, "softmax") == 1
    assert "softmax" in capsys.readouterr().err
    assert not (folder / "bundle").exists()
    assert not (folder / "compile.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compile", "net", "--calibration", "x.npy", "--out", "b"], "x.npy"),
        (["estimate", "nowhere"], "has no manifest.json"),
        (["emit", "--board", "pynq-z9"], "board must be one of"),
    ],
)
def test_errors_are_clear(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument ends with status 1 and one line that says what was given."""
    assert main(arguments) == 1
    assert text in capsys.readouterr().err


def test_model_that_does_not_exist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing name lists what the file has; a name of something else says what it is."""
    assert compile_into(folder, "huge") == 1
    error = capsys.readouterr().err
    assert "has no 'huge'" in error and "'tiny'" in error and "__name__" not in error
    (folder / "net.py").write_text("number = 3\ndef no(): return 'net'\n")
    for name, kind in (("number", "int"), ("no", "str")):
        assert compile_into(folder, name) == 1
        assert f"returns one, not {kind}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (b"no archive", "weights.pt') writes; it is damaged, of another kind"),
        ([torch.zeros(1)], "weights.pt') writes, not list"),
        ({"epoch": 3, "state_dict": {}}, "tensors alone, not ['epoch', 'state_dict'] too"),
    ],
)
def test_weights_that_are_no_state_dict(
    folder: Path, held: object, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else may be in a file of weights is named."""
    file = folder / "weights.pt"
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    arguments = ["compile", f"{folder / 'net.py'}:tiny", "--weights", str(file)]
    arguments += ["--calibration", str(folder / "images.npz"), "--out", str(folder / "bundle")]
    assert main(arguments) == 1
    assert text in capsys.readouterr().err


def test_boards_and_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boards are listed; the reference pages are written where asked."""
    assert main(["boards", "--json", str(tmp_path / "boards.json")]) == 0
    boards = json.loads((tmp_path / "boards.json").read_text())["boards"]
    assert "pynq-z2" in [board["key"] for board in boards]
    assert main(["docs", "--out", str(tmp_path / "docs")]) == 0
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["isa.md", "registers.md"]
    assert "pynq-z2" in capsys.readouterr().out
