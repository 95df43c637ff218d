# SPDX-License-Identifier: Apache-2.0
"""The host room: cropped inference. Find the foreground, cut it out, name it.

Dynamic image cropping of Smart Scissor (Kong et al., ICCAD 2022, section III): a light predictor
regresses a box on the whole frame, the square crop around it is what the classifier sees. Crop
and resize are `hwgen.arch.crop`'s, the ones the networks were trained with. The accelerator does
them while it loads (`Accelerator.run_box`); what is left for the processor is the box's corner.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from host.driver import Accelerator, RunRecord
from host.frames import Frame, FramePool
from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.crop import resize, square_crop

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
        """Clock cycles of both runs."""
        return self.predictor_run.cycles + self.classifier_run.cycles


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
        accelerator where it has a resampler. The bits are the same.

    Attributes
    ----------
    resizer
        ``accelerator`` or ``host``, as chosen.

    Raises
    ------
    ValueError
        When a bundle does not have that shape, `names` has another length, or the accelerator
        should resize and has no resampler.
    """

    def __init__(
        self,
        predictor: Accelerator,
        classifier: Accelerator,
        names: tuple[str, ...] | None = None,
        resize: str = "auto",
    ) -> None:
        self.resizer = choose_resizer(resize, classifier.bundle.config)
        self._frames = FramePool(classifier.device)
        for name, accelerator in (("predictor", predictor), ("classifier", classifier)):
            if accelerator.bundle.batch != 1:
                raise ValueError(
                    f"the {name} must run one image at once, not {accelerator.bundle.batch}; "
                    "compile it with batch=1"
                )
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
            When the frame is too wide for the accelerator to resize.
        AcceleratorError
            As `Accelerator.run`.
        """
        started = time.perf_counter()
        try:
            picture = placed(frame, self.channels, self.resizer, self._frames)
            height, width, _ = picture.shape
            raw, predictor_run = look_at(self.predictor, picture, 0, 0, height, width)
            box = ordered_box(raw)
            y0, x0, side = square_crop(box, height, width)
            logits, classifier_run = look_at(self.classifier, picture, y0, x0, side, side)
        finally:
            self._frames.rewind()
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


def choose_resizer(resize: str, config: AcceleratorConfig) -> str:
    """Return who resizes, ``accelerator`` or ``host``; see `CroppedClassifier`.

    Raises
    ------
    ValueError
        For another word, or for an accelerator without a resampler.
    """
    if resize not in RESIZERS:
        raise ValueError(f"resize must be one of {RESIZERS}, not {resize!r}")
    if resize == "accelerator" and not config.resampler_row_bytes:
        raise ValueError(
            "the accelerator must have a resampler to resize, and its resampler_row_bytes is 0; "
            "try resize='host'"
        )
    return "accelerator" if config.resampler_row_bytes and resize != "host" else "host"


def placed(
    frame: Frame | NDArray[np.uint8], channels: int, resizer: str, frames: FramePool
) -> Frame | NDArray[np.uint8]:
    """Return a frame where its resizer wants it: in DMA memory, or as an array.

    Raises
    ------
    ValueError
        For what is no picture of so many channels.
    """
    picture = frame.pixels if isinstance(frame, Frame) else np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != channels:
        raise ValueError(
            f"a frame must be uint8 (H, W, {channels}), not {picture.dtype} {picture.shape}"
        )
    if min(picture.shape) < 1:
        raise ValueError(f"a frame must have at least one pixel, not shape {picture.shape}")
    if resizer == "host":
        return picture
    return frame if isinstance(frame, Frame) else frames.copy(picture)


def look_at(
    accelerator: Accelerator,
    picture: Frame | NDArray[np.uint8],
    y0: int,
    x0: int,
    height: int,
    width: int,
) -> tuple[NDArray[np.float32], RunRecord]:
    """Run a network on a box of a picture; return its numbers and its record.

    The accelerator cuts the box out of a `Frame`, this processor out of an array.
    """
    # A run and its `last_run` belong together: another thread must not come between.
    with accelerator.locked():
        if isinstance(picture, Frame):
            numbers = accelerator.run_box(picture, y0, x0, height, width)
        else:
            box = picture[y0 : y0 + height, x0 : x0 + width]
            numbers = accelerator.run(resize(box, accelerator.bundle.input.shape[1]))
        record = accelerator.last_run
    assert record is not None  # it has just run
    return numbers, record


def ordered_box(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip a predictor's (xmin, ymin, xmax, ymax) to [0, 1] and put min before max."""
    clipped = np.clip(np.asarray(raw, dtype=np.float32).reshape(4), 0, 1)
    low, high = np.minimum(clipped[:2], clipped[2:]), np.maximum(clipped[:2], clipped[2:])
    return np.concatenate([low, high])


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
