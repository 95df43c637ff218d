# SPDX-License-Identifier: Apache-2.0
"""The notebooks: what is on the desk. A board where there is one, else a simulated one.

The only place that knows the difference. On a board it needs what `shears package` has brought:
driver, contract and the files in ``data``. On a PC it makes those files the first time.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import host
from host.board import active_device
from hwgen.arch import Bundle
from hwgen.arch.files import replacing, write_json

# Some library draws progress bars where ipywidgets is installed, and complains where not.
warnings.filterwarnings("ignore", message="IProgress not found")

HERE = Path(__file__).resolve().parent
OVERLAY = HERE.parent / "overlay" / "shears.bit"
"""Where the archive of `shears package` has the bitstream."""
CACHE = HERE.parent / "build" / "demo" / "cache"
"""Where `make demo` keeps the networks that it has trained, on a PC."""

SAMPLES = 24
NETWORKS = ("predictor", "compressed", "full_frame")
LEARN = ("demo", "quick")
# How long one run may take on the wall clock of a busy simulating machine.
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Samples:
    """Pictures to try.

    Attributes
    ----------
    frames
        uint8 (N, 64, 64, 3), RGB.
    labels, names
        (N,) what each shows, as an index into `names`.
    boxes
        float32 (N, 4): xmin, ymin, xmax, ymax in [0, 1], where it is.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    boxes: NDArray[np.float32]


class Desk:
    """A board, or a simulated one, with networks and sample frames; `open_board` gives one.

    Attributes
    ----------
    simulated
        Whether the accelerator is a simulation on this PC.
    name
        What to call the board.
    clock_hz
        Clock of the accelerator.
    folder
        Where networks and samples are.
    """

    def __init__(
        self, folder: Path, load: Callable[[Bundle], host.Accelerator], simulated: Any = None
    ) -> None:
        about = json.loads((folder / "desk.json").read_text(encoding="utf-8"))
        self.folder, self.simulated = folder, simulated is not None
        self.clock_hz: float = about["clock_hz"]
        self.name = f"simulated {about['name']}" if self.simulated else about["name"]
        self._load, self._simulated = load, simulated
        self._loaded: list[host.Accelerator] = []

    def __repr__(self) -> str:
        """Say what is on the desk."""
        return f"{self.name}, accelerator at {self.clock_hz / 1e6:g} MHz"

    def bundle(self, name: str) -> Bundle:
        """Read a compiled network: one of `NETWORKS`, or one that was put beside them."""
        return Bundle.load(self.folder / name)

    def load(self, network: str | Bundle) -> host.Accelerator:
        """Put a network on the accelerator, beside those that are there where there is room."""
        bundle = self.bundle(network) if isinstance(network, str) else network
        accelerator = self._load(bundle)
        self._loaded.append(accelerator)
        return accelerator

    def samples(self) -> Samples:
        """Read the sample frames; no network has been trained on them."""
        with np.load(self.folder / "samples.npz") as file:
            names = tuple(map(str, file["names"]))
            return Samples(file["frames"], file["labels"], names, file["boxes"])

    def milliseconds(self, cycles: float) -> float:
        """Return what so many clock cycles take."""
        return 1000 * cycles / self.clock_hz

    def close(self) -> None:
        """Free what was loaded, and end a simulation."""
        for accelerator in self._loaded:
            accelerator.close()
        if self._simulated is not None:
            self._simulated.close()

    def __enter__(self) -> Desk:
        """Return the desk; leaving the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()


def open_board(
    data: str | Path = "data", learn: str = "demo", board: str = "pynq-z2", cache: Path = CACHE
) -> Desk:
    """Open the board that this runs on, or a simulated one where there is none.

    Parameters
    ----------
    data, learn, board, cache
        As in `prepare`, which makes what is not there yet.

    Raises
    ------
    FileNotFoundError
        On a board, when the bitstream or the networks are missing.
    ModuleNotFoundError
        When there is neither a board nor a simulator.
    """
    try:
        device = active_device()
    except host.DeviceNotFound as error:
        if not can_make():
            raise ModuleNotFoundError(
                f"a board or a simulator is needed. {error}. On a board, Jupyter must run as root "
                "in pynq's environment; on a PC, `make setup` installs the simulator"
            ) from error
        return _simulated(prepare(data, learn, board, cache))
    if not OVERLAY.is_file():
        raise FileNotFoundError(
            f"the bitstream must be {OVERLAY}, and there is none; pack it on a PC: `shears build`, "
            "then `shears package`"
        )
    folder = prepare(data, learn, board, cache)
    overlay = host.open_overlay(OVERLAY, device)
    return Desk(folder, overlay.accelerator.load)


def _simulated(folder: Path) -> Desk:
    """Build the simulator of the networks' machine; the first time takes a minute."""
    import sim

    about = json.loads((folder / "desk.json").read_text(encoding="utf-8"))
    simulated = sim.SimulatedBoard(
        Bundle.load(folder / NETWORKS[0]),
        clock_hz=about["clock_hz"],
        memory_latency_cycles=about["memory_latency_cycles"],
    )
    return Desk(
        folder,
        lambda bundle: host.Accelerator(bundle, simulated, timeout_s=_PATIENCE_S),
        simulated,
    )


def can_make() -> bool:
    """Tell whether networks can be trained and compiled here: on a PC, after `make setup`."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "sim"))


def prepare(
    data: str | Path = "data", learn: str = "demo", board: str = "pynq-z2", cache: Path = CACHE
) -> Path:
    """Return the folder of networks and sample frames; on a PC, make what is not there.

    Parameters
    ----------
    data
        The folder; a relative one lies beside the notebooks.
    learn
        ``demo``: the demo's networks, minutes of training unless `make demo` has done it.
        ``quick``: seconds of training, to see that all runs; the answers are wrong.
    board
        Board name or TOML file to compile for.
    cache
        Where trained networks are kept.

    Raises
    ------
    ValueError
        For another `learn`.
    FileNotFoundError
        When something is missing and this is no PC.
    """
    if learn not in LEARN:
        raise ValueError(f"learn must be one of {LEARN}, not {learn!r}")
    folder = HERE / data
    if not can_make():
        missing = [name for name in (*NETWORKS, "samples.npz", "desk.json")
                   if not (folder / name).exists()]  # fmt: skip
        if missing:
            raise FileNotFoundError(
                f"{folder} must hold {', '.join(missing)}; on a PC, `make notebooks` makes them "
                "and `shears package` takes them along"
            )
        return folder
    from hwgen.boards import load_board

    target = load_board(board)
    wanted = {
        "name": target.name,
        "clock_hz": target.accelerator_hz,
        "memory_latency_cycles": target.read_latency_cycles,
        "digest": f"{target.config.digest():016x}",
        "learn": learn,
    }
    if not _is_made(folder, wanted):
        _make(folder, wanted, target, learn, cache)
    return folder


def _is_made(folder: Path, wanted: dict[str, Any]) -> bool:
    """Tell whether the folder has everything, for this board and of this version of Shears."""
    try:
        found = json.loads((folder / "desk.json").read_text(encoding="utf-8"))
        digests = {f"{Bundle.load(folder / name).config.digest():016x}" for name in NETWORKS}
    except (OSError, ValueError):
        return False
    return bool(found == wanted and digests == {wanted["digest"]})


def _make(folder: Path, wanted: dict[str, Any], target: Any, learn: str, cache: Path) -> None:
    """Train, compile, and write networks, sample frames and desk.json, which comes last."""
    from hwgen.demo_training import DemoConfig, train_demo
    from sim.demo import compile_demo

    if learn == "quick":
        from hwgen.compress import PredictorConfig, TrainConfig
        from hwgen.datasets import FrameConfig

        once = TrainConfig(epochs=1)
        config = DemoConfig(
            frames=FrameConfig(train=120, validation=60, test=60),
            predictor=PredictorConfig(32, TrainConfig(epochs=1, loss="smooth_l1")),
            crop=once, frame=once, retrain=once, finish=once,
        )  # fmt: skip
        print("training for a few seconds: all will run, and the answers will be wrong")
    else:
        config = DemoConfig()
        print("training the demo's networks: minutes, unless `make demo` has done it")
    models = train_demo(cache, progress=printed(), config=config)
    nets = compile_demo(models, target)
    for name in NETWORKS:
        nets[name].bundle.save(folder / name)
    test = models.splits.test
    with replacing(folder / "samples.npz") as temporary:
        np.savez_compressed(
            temporary,
            frames=test.images[:SAMPLES],
            labels=test.labels[:SAMPLES],
            names=np.array(test.class_names),
            boxes=test.boxes[:SAMPLES],
        )
    write_json(folder / "desk.json", wanted)


def printed() -> Callable[[str, int, int], None]:
    """Return a progress callback that prints each stage's name once, when it begins."""
    begun: set[str] = set()

    def tick(name: str, step: int, total: int) -> None:
        if name not in begun:
            begun.add(name)
            print(f"  {name} ...")

    return tick


def camera_frames(number: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of a USB camera, uint8 (H, W, 3) RGB, with OpenCV, which PYNQ images have.

    Raises
    ------
    OSError
        When the camera gives no picture.
    """
    import cv2

    camera = cv2.VideoCapture(number)
    try:
        for _ in range(count):
            came, picture = camera.read()
            if not came:
                raise OSError(f"camera {number} gives no picture; is it plugged in? try another")
            yield np.ascontiguousarray(picture[:, :, ::-1])
    finally:
        camera.release()
