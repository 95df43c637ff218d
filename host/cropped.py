# SPDX-License-Identifier: Apache-2.0
"""The host room: cropped inference. Find the foreground, cut it out, name it.

Dynamic image cropping of Smart Scissor (Kong et al., ICCAD 2022, section III): a light predictor
regresses a box on the whole frame, the square crop around it is what the classifier sees. Crop
and resize are `hwgen.arch.crop`'s, the ones the networks were trained with. The accelerator does
them while it loads (`Accelerator.run_box`); what is left for the processor is the box's corner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from host.driver import Accelerator, RunRecord
from host.errors import AllocationError
from host.frames import Frame, FramePool
from hwgen.arch.bundle import Bundle
from hwgen.arch.crop import ordered_box, resize, square_crop
from hwgen.arch.frames import FrameError, check_box, check_bundle, pitch_of

RESIZERS = ("auto", "accelerator", "host")


@dataclass(frozen=True)
class Prediction:
    """What a frame was found to show.

    Attributes
    ----------
    label, name
        Index of the largest logit, and its text in the classifier's bundle.
    box
        float32 (4,): xmin, ymin, xmax, ymax in [0, 1] of the frame, in order.
    crop
        (y0, x0, side) in pixels of the frame.
    logits
        float32 (classes,).
    predictor_run, classifier_run
        Counters and times of the two runs.
    seconds
        From the call to the label.
    """

    label: int
    name: str
    box: NDArray[np.float32]
    crop: tuple[int, int, int]
    logits: NDArray[np.float32]
    predictor_run: RunRecord
    classifier_run: RunRecord
    seconds: float

    @property
    def cycles(self) -> int:
        """Clock cycles of both runs, and of reloading what the other's constants overwrote."""
        runs = self.predictor_run, self.classifier_run
        return sum(run.cycles + run.setup_cycles for run in runs)


class CroppedClassifier:
    """Two accelerators, resident together, that label a frame.

    Parameters
    ----------
    predictor
        Square uint8 picture to four numbers: xmin, ymin, xmax, ymax of the foreground.
    classifier
        Square uint8 picture to one logit a class. Both bundles must have mean and std.
    names
        Text of each class; by default the classifier bundle's labels, or the numbers.
    resize
        Who crops and resizes: the ``accelerator``, while it loads, or the ``host``. ``auto`` is the
        accelerator where it can, and the host for frames that are too large for it or its memory.
        The bits are the same.

    Attributes
    ----------
    resizer
        ``accelerator`` or ``host``, as chosen.

    Raises
    ------
    ValueError
        When a bundle does not have that shape, `names` has another length, or the accelerator
        should resize and cannot.
    """

    def __init__(
        self,
        predictor: Accelerator,
        classifier: Accelerator,
        names: tuple[str, ...] | None = None,
        resize: str = "auto",
    ) -> None:
        for name, accelerator in (("predictor", predictor), ("classifier", classifier)):
            if accelerator.bundle.batch != 1:
                raise ValueError(
                    f"the {name} must run one image at once, not {accelerator.bundle.batch}; "
                    "compile it with batch=1"
                )
        apart = predictor.device is not classifier.device
        if apart and resize == "accelerator":
            raise ValueError(
                "predictor and classifier must be on one device to look at one frame in its "
                "memory; try resize='host'"
            )
        self.resizer = choose_resizer(resize, (predictor.bundle, classifier.bundle))
        if apart:
            self.resizer = "host"
        self._fall_back = resize == "auto"
        self._frames = FramePool(classifier.device)
        self.predictor, self.classifier = predictor, classifier
        self._predictor_size = _picture_size("predictor", predictor.bundle)
        self._classifier_size = _picture_size("classifier", classifier.bundle)
        outputs = _vector_length("predictor", predictor.bundle)
        if outputs != 4:
            raise ValueError(
                f"the predictor must give 4 numbers (xmin, ymin, xmax, ymax), not {outputs}"
            )
        self.channels = classifier.bundle.input.shape[0]
        if predictor.bundle.input.shape[0] != self.channels:
            raise ValueError(
                "predictor and classifier must take equally many channels, not "
                f"{predictor.bundle.input.shape[0]} and {self.channels}"
            )
        classes = _vector_length("classifier", classifier.bundle)
        chosen = names if names is not None else classifier.bundle.labels
        self.names = tuple(map(str, range(classes))) if chosen is None else tuple(chosen)
        if len(self.names) != classes:
            raise ValueError(f"names must hold {classes} texts, not {len(self.names)}")

    def run(self, frame: Frame | NDArray[np.uint8]) -> Prediction:
        """Label one frame.

        Parameters
        ----------
        frame
            A `Frame` in DMA memory, flushed; or uint8 (H, W, C), any size, which is copied to one
            first where the accelerator resizes.

        Raises
        ------
        ValueError
            For another dtype or shape.
        hwgen.arch.frames.FrameError
            When the accelerator shall resize, and the frame is too large for it.
        AcceleratorError
            As `Accelerator.run`.
        """
        started = time.perf_counter()
        with self._frames.borrowed() as copy:
            picture = placed(frame, self.resizer, copy, (self.predictor,), self._fall_back)
            height, width, _ = picture.shape
            raw, predictor_run = look_at(
                self.predictor, picture, (0, 0, height, width), self._fall_back
            )
            box = ordered_box(raw)
            y0, x0, side = square_crop(box, height, width)
            logits, classifier_run = look_at(
                self.classifier, picture, (y0, x0, side, side), self._fall_back
            )
        label = int(np.argmax(logits))
        return Prediction(
            label=label,
            name=self.names[label],
            box=box,
            crop=(y0, x0, side),
            logits=logits,
            predictor_run=predictor_run,
            classifier_run=classifier_run,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Free the DMA memory that pictures were copied to; the accelerators stay open."""
        self._frames.close()


def choose_resizer(resize: str, bundles: Iterable[Bundle]) -> str:
    """Return who resizes, ``accelerator`` or ``host``; see `CroppedClassifier`.

    Raises
    ------
    ValueError
        For another word, or for an accelerator that should resize and cannot for all `bundles`.
    """
    if resize not in RESIZERS:
        raise ValueError(f"resize must be one of {RESIZERS}, not {resize!r}")
    if resize == "host":
        return "host"
    try:
        for bundle in bundles:
            check_bundle(bundle)
    except FrameError as error:
        if resize == "accelerator":
            raise ValueError(f"the accelerator cannot resize: {error}; try resize='host'") from None
        return "host"
    return "accelerator"


def placed(
    frame: Frame | NDArray[np.uint8],
    resizer: str,
    copy: Callable[[NDArray[np.uint8]], Frame],
    seers: Iterable[Accelerator],
    fall_back: bool,
) -> Frame | NDArray[np.uint8]:
    """Return a frame where its resizer wants it: in DMA memory, or as an array.

    `copy` is a pool's, `seers` look at all of the frame. With `fall_back` the host takes what one
    of them cannot resize, what lies on another device, and what DMA memory has no room for.

    Raises
    ------
    ValueError
        For what is no picture with the networks' channels.
    AllocationError
        Without `fall_back`, when there is no DMA memory.
    """
    seers = tuple(seers)
    channels = seers[0].bundle.input.shape[0]
    if isinstance(frame, Frame):
        elsewhere = any(frame.device is not seer.device for seer in seers)
        if resizer == "host" or (fall_back and elsewhere):
            frame.invalidate()
            frame = frame.pixels
    picture = frame.pixels if isinstance(frame, Frame) else np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != channels:
        raise ValueError(
            f"a frame must be uint8 (H, W, {channels}), not {picture.dtype} {picture.shape}"
        )
    if min(picture.shape) < 1:
        raise ValueError(f"a frame must have at least one pixel, not shape {picture.shape}")
    if isinstance(frame, Frame):
        return frame
    if resizer == "host":
        return picture
    try:
        if fall_back:
            height, width, _ = picture.shape
            for seer in seers:
                check_box(seer.bundle, height, width, pitch_of(width, channels))
        return copy(picture)
    except (FrameError, AllocationError):
        if not fall_back:
            raise
        return picture


def look_at(
    accelerator: Accelerator,
    picture: Frame | NDArray[np.uint8],
    box: tuple[int, int, int, int],
    fall_back: bool,
) -> tuple[NDArray[np.float32], RunRecord]:
    """Run a network on a box (y0, x0, height, width); return its numbers and its record.

    The accelerator cuts the box out of a `Frame`, this processor out of an array; with `fall_back`
    also out of a frame, where the box is too large, or there is no DMA memory for its program.
    """
    # A run and its `last_run` belong together: another thread must not come between.
    with accelerator.locked():
        if isinstance(picture, Frame):
            try:
                return accelerator.run_box(picture, *box), _record(accelerator)
            except (FrameError, AllocationError):
                if not fall_back:
                    raise
            picture.invalidate()
            picture = picture.pixels
        y0, x0, height, width = box
        part = picture[y0 : y0 + height, x0 : x0 + width]
        numbers = accelerator.run(resize(part, accelerator.bundle.input.shape[1]))
        return numbers, _record(accelerator)


def _record(accelerator: Accelerator) -> RunRecord:
    record = accelerator.last_run
    assert record is not None  # it has just run
    return record


def _picture_size(role: str, bundle: Bundle) -> int:
    """Return the side of a bundle's input; refuse what is no square picture."""
    _, height, width = bundle.input.shape
    if height != width:
        raise ValueError(f"the {role}'s input must be square, not {height} x {width}")
    if bundle.mean is None or bundle.std is None:
        raise ValueError(
            f"the {role}'s bundle must take uint8 pictures; compile with preprocess=(mean, std)"
        )
    return height


def _vector_length(role: str, bundle: Bundle) -> int:
    """Return how many numbers a bundle's only output holds."""
    if len(bundle.outputs) != 1 or not bundle.outputs[0].vector:
        raise ValueError(f"the {role} must have one output, a vector (N, C)")
    return bundle.outputs[0].shape[0]
