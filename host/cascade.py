# SPDX-License-Identifier: Apache-2.0
"""The host room: dynamic inference. Ask the small network first, a larger one if it is not sure.

The networks of a cascade bundle stay resident together where their placements allow. Which image
goes on to the next stage is `hwgen.arch.cascade`'s, the rule that the thresholds were chosen with;
box, crop and resize are those of `host.cropped`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.board import active_device
from host.cropped import choose_resizer, look_at, placed
from host.driver import Accelerator, RunRecord
from host.frames import Frame, FramePool
from host.overlay import open_overlay
from hwgen.arch.cascade import confidence_of
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.crop import ordered_box, square_crop


@dataclass(frozen=True)
class CascadePrediction:
    """What a frame was found to show, and how much work that was.

    Attributes
    ----------
    label, name
        Index of the largest of the fused logits, and its text in the bundle.
    stages
        How many networks were run, from 1, the predictor not counted.
    confidence
        In [0, 1], of the fused logits, by the rule's measure.
    logits
        float64 (classes,): the logits of all stages that were run, weighted and added.
    box, crop
        As in `host.Prediction`; None where no predictor was run.
    predictor_run, stage_runs
        Counters and times of each run.
    seconds
        From the call to the label.
    """

    label: int
    name: str
    stages: int
    confidence: float
    logits: NDArray[np.float64]
    box: NDArray[np.float32] | None
    crop: tuple[int, int, int] | None
    predictor_run: RunRecord | None
    stage_runs: tuple[RunRecord, ...]
    seconds: float

    @property
    def cycles(self) -> int:
        """Clock cycles of all runs, and of reloading what networks that take turns overwrote."""
        first = () if self.predictor_run is None else (self.predictor_run,)
        return sum(run.cycles + run.setup_cycles for run in (*first, *self.stage_runs))


@dataclass
class _Frame:
    """A frame on its way through the stages."""

    picture: Frame | NDArray[np.uint8]
    seen: tuple[int, int, int, int]  # y0, x0, height, width: what the stages see of it
    box: NDArray[np.float32] | None = None
    crop: tuple[int, int, int] | None = None
    predictor_run: RunRecord | None = None
    logits: NDArray[np.float64] | None = None
    runs: tuple[RunRecord, ...] = ()


class CascadeClassifier:
    """A cascade bundle, loaded on a board and ready to label frames.

    Parameters
    ----------
    bundle
        The networks and their rule; `CascadeBundle.load(file)`.
    device, overlay, options
        As in `host.Accelerator`, which every network gets. A bitstream is loaded once.
    resize
        Who crops and resizes, as in `host.CroppedClassifier`.

    Raises
    ------
    TypeError
        When `bundle` is no CascadeBundle.
    ValueError, AcceleratorError
        As `host.Accelerator`; nothing stays allocated.
    """

    def __init__(
        self,
        bundle: CascadeBundle,
        device: Any = None,
        *,
        overlay: Any = None,
        resize: str = "auto",
        **options: Any,
    ) -> None:
        if not isinstance(bundle, CascadeBundle):
            raise TypeError(
                f"bundle must be a CascadeBundle, not {type(bundle).__name__}; try "
                "CascadeBundle.load(file)"
            )
        if isinstance(overlay, (str, os.PathLike)):
            overlay = open_overlay(overlay, device)
        self.bundle = bundle
        self.names = bundle.labels or tuple(map(str, range(bundle.classes)))
        self._accelerators: list[Accelerator] = []
        self.resizer = choose_resizer(resize, bundle.members.values())
        self._fall_back = resize == "auto"
        if overlay is not None:
            device = overlay.device
        elif device is None:
            device = active_device()
        self._frames = FramePool(device)
        try:
            for member in bundle.members.values():
                self._accelerators.append(Accelerator(member, device, overlay=overlay, **options))
        except BaseException:
            self.close()
            raise
        self._stages = self._accelerators[-len(bundle.stages) :]

    def run(self, frame: Frame | NDArray[np.uint8]) -> CascadePrediction:
        """Label one frame.

        Parameters
        ----------
        frame
            As in `host.CroppedClassifier.run`.

        Raises
        ------
        ValueError
            For another dtype or shape.
        AcceleratorError
            As `Accelerator.run`.
        """
        return self.run_batch([frame])[0]

    def run_batch(self, frames: Iterable[Frame | NDArray[np.uint8]]) -> list[CascadePrediction]:
        """Label frames, each stage for all that need it before the next one: as `run`, in order.

        Networks that are not resident together so take turns least often. `seconds` count from
        this call. All frames are kept until the end.
        """
        started = time.perf_counter()
        with self._frames.borrowed() as copy:
            return self._label(frames, copy, started)

    def _label(
        self,
        frames: Iterable[Frame | NDArray[np.uint8]],
        copy: Callable[[NDArray[np.uint8]], Frame],
        started: float,
    ) -> list[CascadePrediction]:
        waiting = []
        cropped, glances = self.bundle.predictor is not None, self.bundle.glances
        seers = (*self._accelerators[:1], *self._stages[:glances]) if cropped else self._stages
        for frame in frames:
            picture = placed(frame, self.resizer, copy, seers, self._fall_back)
            waiting.append(_Frame(picture, (0, 0, picture.shape[0], picture.shape[1])))
        if not waiting:
            raise ValueError("frames must hold at least one frame, not none")
        rule = self.bundle.rule
        found: dict[int, CascadePrediction] = {}
        for stage, accelerator in enumerate(self._stages):
            if cropped and stage == glances:
                for index, each in enumerate(waiting):
                    if index not in found:
                        self._cut(each, self._accelerators[0])
            for index, each in enumerate(waiting):
                if index in found:
                    continue
                logits, record = look_at(accelerator, each.picture, each.seen, self._fall_back)
                each.logits = rule.fuse(stage, each.logits, logits[None])
                each.runs += (record,)
                confidence = confidence_of(each.logits, rule.confidence)
                if not rule.escalate(stage, confidence)[0]:
                    found[index] = self._prediction(each, float(confidence[0]), started)
        return [found[index] for index in range(len(waiting))]

    def close(self) -> None:
        """Free every network's DMA memory. Closing again does nothing."""
        for accelerator in self._accelerators:
            accelerator.close()
        self._frames.close()

    def __enter__(self) -> CascadeClassifier:
        """Return the classifier; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _cut(self, frame: _Frame, predictor: Accelerator) -> None:
        """Leave of a frame its crop."""
        raw, frame.predictor_run = look_at(predictor, frame.picture, frame.seen, self._fall_back)
        frame.box = ordered_box(raw)
        _, _, height, width = frame.seen
        frame.crop = square_crop(frame.box, height, width)
        frame.seen = (*frame.crop, frame.crop[2])

    def _prediction(self, frame: _Frame, confidence: float, started: float) -> CascadePrediction:
        """Say what a frame that needs no further stage shows."""
        assert frame.logits is not None  # a stage has run
        label = int(np.argmax(frame.logits[0]))
        return CascadePrediction(
            label=label,
            name=self.names[label],
            stages=len(frame.runs),
            confidence=confidence,
            logits=frame.logits[0],
            box=frame.box,
            crop=frame.crop,
            predictor_run=frame.predictor_run,
            stage_runs=frame.runs,
            seconds=time.perf_counter() - started,
        )
