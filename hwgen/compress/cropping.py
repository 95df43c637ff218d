# SPDX-License-Identifier: Apache-2.0
"""Compression: dynamic image cropping.

Shen et al., Smart Scissor (ICCAD 2022, section III) and EdgeCompress (TCAD 2023): a light network
regresses the box of the foreground; the box is squared, snapped and shifted (the rule itself is
:mod:`hwgen.arch.crop`), and the classifier sees the crop alone. Boxes to learn from are true ones,
or pseudo-boxes from Grad-CAM (Selvaraju et al., ICCV 2017) of a trained classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.arch.crop import resize, square_crops
from hwgen.compress.training import Tick, TrainConfig, TrainReport, batches, predict, train


@dataclass(frozen=True)
class PredictorConfig:
    """Knobs of the foreground predictor's training.

    Attributes
    ----------
    side
        Height and width that the frame is resized to for the predictor.
    train
        Its training; ``loss`` is "smooth_l1" or "mse".
    """

    side: int = 32
    train: TrainConfig = TrainConfig(epochs=14, loss="smooth_l1", weight_decay=0.005)


@dataclass(frozen=True)
class PredictorReport:
    """Mean IoU on the training frames and, if given, on the validation frames; the training."""

    train_iou: float
    validation_iou: float | None
    training: TrainReport


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes, pair by pair.

    Both are (N, 4) as xmin, ymin, xmax, ymax in any one unit; the result is (N,) in [0, 1], 0 for
    two empty boxes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(box[:, 2:] - box[:, :2], 0, None), axis=1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def predict_boxes(predictor: nn.Module, images: np.ndarray, side: int) -> np.ndarray:
    """Return the predictor's boxes, (N, 4) clipped to [0, 1], for (N, H, W, 3) uint8 frames."""
    return np.clip(predict(predictor, resize_all(images, side)), 0.0, 1.0)


def resize_all(images: np.ndarray, size: int, chunk: int = 500) -> np.ndarray:
    """Resize (N, H, W, C) uint8 frames by the contract's rule, a chunk at a time."""
    parts = [resize(images[i : i + chunk], size) for i in range(0, len(images), chunk)]
    return np.concatenate(parts)


def crop_all(images: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut each frame's crop by the contract's rule: (N, size, size, C) uint8."""
    corners = square_crops(boxes, images.shape[1], images.shape[2])
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for side in np.unique(corners[:, 2]):
        which = np.flatnonzero(corners[:, 2] == side)
        pieces = [images[i, y : y + side, x : x + side] for i, y, x in
                  zip(which, corners[which, 0], corners[which, 1], strict=True)]  # fmt: skip
        out[which] = resize_all(np.stack(pieces), size)
    return out


def jitter_boxes(boxes: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Move every side of each box by a normal error of ``amount`` of the frame; (N, 4) in [0, 1].

    A classifier trained on such crops has met the predictor's mistakes.
    """
    return np.clip(boxes + rng.normal(0.0, amount, boxes.shape), 0.0, 1.0)


def train_predictor(
    model: nn.Module,
    images: np.ndarray,
    boxes: np.ndarray,
    config: PredictorConfig | None = None,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    checkpoint: str | Path | None = None,
    progress: Tick | None = None,
) -> tuple[nn.Module, PredictorReport]:
    """Train a foreground predictor (ICCAD 2022, section III).

    Parameters
    ----------
    model
        Maps (N, 3, side, side) to (N, 4); left as it is.
    images, boxes
        (N, H, W, 3) uint8 frames and (N, 4) boxes in [0, 1], true or from :func:`cam_boxes`.
    config
        The knobs.
    validation
        Frames and boxes for the report.
    checkpoint, progress
        As in :func:`~hwgen.compress.training.train`.

    Returns
    -------
    tuple
        The trained copy and the report.
    """
    config = config or PredictorConfig()
    if config.train.loss == "cross_entropy":
        raise ValueError("loss must be 'smooth_l1' or 'mse' for boxes, not 'cross_entropy'")
    small, target = resize_all(images, config.side), boxes.astype(np.float32)
    trained, training = train(
        model,
        lambda _: (small, target),
        config.train,
        checkpoint=checkpoint,
        progress=progress,
        name="predictor",
    )
    held_out = None
    if validation is not None:
        found = predict_boxes(trained, validation[0], config.side)
        held_out = float(iou(found, validation[1]).mean())
    own = float(iou(np.clip(predict(trained, small), 0, 1), boxes).mean())
    return trained, PredictorReport(own, held_out, training)


def grad_cam(model: nn.Module, images: np.ndarray, labels: np.ndarray, layer: str) -> np.ndarray:
    """Return Grad-CAM maps (Selvaraju et al., ICCV 2017, section 3).

    A map is the ReLU of the layer's channels, each weighted by the mean gradient of the label's
    logit with respect to it.

    Parameters
    ----------
    model
        A classifier.
    images, labels
        (N, H, W, 3) uint8 and (N,) the class whose evidence is wanted.
    layer
        Path of a module whose output is (N, C, h, w).

    Returns
    -------
    numpy.ndarray
        (N, H, W) float32, enlarged bilinearly to the frame.
    """
    model.eval()
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        result.retain_grad()
        kept.append(result)

    hook = model.get_submodule(layer).register_forward_hook(keep)
    maps = []
    try:
        start = 0
        for x in batches(images):
            kept.clear()
            with torch.enable_grad():
                logits = model(x.requires_grad_(True))
                label = torch.from_numpy(np.asarray(labels[start : start + len(x)]))
                logits.gather(1, label[:, None]).sum().backward()
            features, gradient = kept[0].detach(), kept[0].grad
            if features.ndim != 4 or gradient is None:
                raise ValueError(f"layer must have a map (N, C, h, w) as its output, not {layer!r}")
            weight = gradient.mean(dim=(2, 3), keepdim=True)
            cam = functional.relu((weight * features).sum(dim=1, keepdim=True))
            cam = functional.interpolate(
                cam, size=images.shape[1:3], mode="bilinear", align_corners=False
            )
            maps.append(cam[:, 0].numpy())
            start += len(x)
    finally:
        hook.remove()
        model.zero_grad(set_to_none=True)
    return np.concatenate(maps)


def cam_boxes(maps: np.ndarray, split: float = 0.5) -> np.ndarray:
    """Return the box round all that is above ``split`` of each map's range (ICCAD 2022).

    ``maps`` is (N, H, W); the result is (N, 4) float32 in [0, 1], the whole frame for a flat map.
    """
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    above = maps >= low + split * (high - low)
    height, width = maps.shape[1:]
    columns, rows = above.any(axis=1), above.any(axis=2)
    boxes = np.stack(
        [
            columns.argmax(axis=1) / width,
            rows.argmax(axis=1) / height,
            1 - columns[:, ::-1].argmax(axis=1) / width,
            1 - rows[:, ::-1].argmax(axis=1) / height,
        ],
        axis=1,
    )
    return boxes.astype(np.float32)
