# SPDX-License-Identifier: Apache-2.0
"""The host room: cropped inference. Find the foreground, cut it out, name it.

Dynamic image cropping of Smart Scissor (Kong et al., ICCAD 2022, section III): a light predictor
regresses a box on the whole frame, the square crop around it is what the classifier sees. Crop
and resize are `hwgen.arch.crop`'s, the ones the networks were trained with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from host.driver import Accelerator, RunRecord
from hwgen.arch.bundle import Bundle
from hwgen.arch.crop import resize, square_crop


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

    Raises
    ------
    ValueError
        When a bundle does not have that shape, or `names` has another length.
    """

    def __init__(
        self,
        predictor: Accelerator,
        classifier: Accelerator,
        names: tuple[str, ...] | None = None,
    ) -> None:
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

    def run(self, frame: NDArray[np.uint8]) -> Prediction:
        """Label one frame.

        Parameters
        ----------
        frame
            uint8 (H, W, C), any size.

        Raises
        ------
        ValueError
            For another dtype or shape.
        AcceleratorError
            As `Accelerator.run`.
        """
        started = time.perf_counter()
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != self.channels:
            raise ValueError(
                f"a frame must be uint8 (H, W, {self.channels}), not {frame.dtype} {frame.shape}"
            )
        if min(frame.shape) < 1:
            raise ValueError(f"a frame must have at least one pixel, not shape {frame.shape}")
        # `run` and `last_run` belong together: another thread must not come between.
        with self.predictor.locked():
            raw = self.predictor.run(resize(frame, self._predictor_size))
            predictor_run = self.predictor.last_run
        box = ordered_box(raw)
        y0, x0, side = square_crop(box, frame.shape[0], frame.shape[1])
        picture = resize(frame[y0 : y0 + side, x0 : x0 + side], self._classifier_size)
        with self.classifier.locked():
            logits = self.classifier.run(picture)
            classifier_run = self.classifier.last_run
        assert predictor_run is not None and classifier_run is not None  # both have just run
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
