# SPDX-License-Identifier: Apache-2.0
"""Compression: dynamic image cropping.

Kong et al., Smart Scissor (ICCAD 2022, section III) and EdgeCompress (TCAD 2023): a light network
regresses the box of the foreground; the box is squared, snapped and shifted (the rule itself is
:mod:`hwgen.arch.crop`), and the classifier sees the crop alone. Boxes to learn from are true ones,
or pseudo-boxes from Grad-CAM (Selvaraju et al., ICCV 2017) of a trained classifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.arch.crop import WEIGHT_ONE, ordered_box, resize, resize_weights, square_crops
from hwgen.arch.files import replacing
from hwgen.compress.evaluation import evaluating
from hwgen.compress.inputs import batches
from hwgen.compress.knobs import check_counts
from hwgen.compress.training import Tick, TrainConfig, TrainReport, predict, reestimate_bn, train
from hwgen.ir import Graph

BOX_LOSSES = ("smooth_l1", "mse", "weighted_mse", "giou")

_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class PredictorConfig:
    """Knobs of the foreground predictor's training.

    Attributes
    ----------
    side
        Height and width that the frame is resized to for the predictor.
    train
        Its training; ``loss`` is "smooth_l1", "mse", "weighted_mse" or "giou". What ``augment``
        moves, it moves with the boxes, in pixels of the small frame.
    """

    side: int = 32
    train: TrainConfig = TrainConfig(epochs=14, loss="smooth_l1", weight_decay=0.005)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_counts(side=self.side)


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
    if first.shape != second.shape or first.shape[1:] != (4,):
        raise ValueError(f"both must be (N, 4), not {first.shape!r} and {second.shape!r}")
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(box[:, 2:] - box[:, :2], 0, None), axis=1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def mean_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean of :func:`iou`."""
    return float(iou(first, second).mean())


def predict_boxes(predictor: nn.Module | Graph, images: np.ndarray, side: int) -> np.ndarray:
    """Return the boxes of a predictor or its integers, (N, 4) float32, for (N, H, W, C) uint8.

    They are clipped to [0, 1], and edges that are swapped put in order, as on the board.
    """
    return ordered_box(predict(predictor, resize_all(images, side)))


def resize_all(images: np.ndarray, size: int, chunk: int = 500) -> np.ndarray:
    """Resize (N, H, W, C) uint8 frames by the contract's rule, a chunk at a time."""
    parts = [resize(images[i : i + chunk], size) for i in range(0, len(images), chunk)]
    return np.concatenate(parts)


def crop_all(
    images: np.ndarray, boxes: np.ndarray, size: int, small: int | None = None
) -> np.ndarray:
    """Cut each frame's crop by the contract's rule.

    Parameters
    ----------
    images
        (N, H, W, C) uint8 frames.
    boxes
        (N, 4) in [0, 1].
    size
        Height and width of the crops.
    small
        Cut from the frames resized to this side, such as what the predictor has seen, which may be
        all that is left of a frame; from the frames themselves if None.

    Returns
    -------
    numpy.ndarray
        (N, size, size, C) uint8.

    Raises
    ------
    ValueError
        If there is not one box in [0, 1] for each frame.
    """
    _check_boxes(boxes, len(images))
    if small is not None:
        images = resize_all(images, small)
    corners = square_crops(boxes, images.shape[1], images.shape[2])
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for side in np.unique(corners[:, 2]):
        which = np.flatnonzero(corners[:, 2] == side)
        pieces = [images[i, y : y + side, x : x + side] for i, y, x in
                  zip(which, corners[which, 0], corners[which, 1], strict=True)]  # fmt: skip
        out[which] = resize_all(np.stack(pieces), size)
    return out


def _check_boxes(boxes: np.ndarray, count: int, ordered: bool = False) -> None:
    """Refuse what is not (count, 4) in [0, 1] and, if ``ordered``, a box whose edges are swapped.

    A predictor's are not ordered; those that it learns from are.
    """
    if np.shape(boxes) != (count, 4):
        raise ValueError(f"boxes must have the shape {(count, 4)!r}, not {np.shape(boxes)!r}")
    if not (np.abs(np.asarray(boxes) - 0.5) <= 0.5).all():
        raise ValueError(
            "boxes must be finite and in [0, 1] of the frame; try dividing pixels by the frame's "
            "width and height, or np.clip"
        )
    swapped = np.asarray(boxes)[:, 2:] < np.asarray(boxes)[:, :2]
    if ordered and swapped.any():
        raise ValueError(
            "boxes must be xmin, ymin, xmax, ymax, not "
            f"{np.asarray(boxes)[swapped.any(axis=1)][0].tolist()!r}; try adding x to the width "
            "and y to the height"
        )


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

    Raises
    ------
    ValueError
        If the loss is none for boxes, or there is not one box in [0, 1] for each frame.
    """
    config = config or PredictorConfig()
    boxes = np.asarray(boxes)
    _check_boxes(boxes, len(images), ordered=True)
    if validation is not None:
        _check_boxes(validation[1], len(validation[0]), ordered=True)
    if config.train.loss not in BOX_LOSSES:
        raise ValueError(f"loss must be one of {BOX_LOSSES!r} for boxes, not {config.train.loss!r}")
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
        held_out = mean_iou(found, validation[1])
    own = mean_iou(ordered_box(predict(trained, small)), boxes)
    return trained, PredictorReport(own, held_out, training)


class Resize(nn.Module):
    """What :func:`resize_all` does to frames, but for its rounding; three channels of its input.

    In front of a network in training it lets the teacher see pictures larger than the student's: a
    student learns best what a teacher says of what it knows.

    Parameters
    ----------
    own, side
        Height and width of the input, and of the output.
    first
        The first of the three channels; others are for somebody else.
    """

    weights: Tensor

    def __init__(self, own: int, side: int, first: int = 0) -> None:
        super().__init__()
        self.first = first
        self.register_buffer("weights", torch.from_numpy(resize_weights(own, side) / WEIGHT_ONE))

    def forward(self, x: Tensor) -> Tensor:
        """Resize (N, C, own, own) to (N, 3, side, side)."""
        weights = self.weights.to(x)
        return weights @ x[:, self.first : self.first + 3] @ weights.T


def train_on_crops(
    model: nn.Module,
    frames: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray | Callable[[int], np.ndarray],
    side: int,
    config: TrainConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    progress: Tick | None = None,
    name: str = "classifier of crops",
) -> tuple[nn.Module, TrainReport]:
    """Fine-tune a classifier of crops; whatever crop it sees, its teacher sees the whole frame.

    A teacher that never saw a crop says little of one. Frame and crop are mirrored and moved
    together, in pixels of the frame, for which the crop is made as large as the frame first: what
    is trained on is a little softer than what the board cuts out, and batch norms are re-estimated
    on the latter. Without a teacher the crops are the board's, bit for bit, and are moved by
    themselves, in pixels of the crop.

    Parameters
    ----------
    model
        Maps (N, 3, side, side) to logits; left as it is.
    frames, labels
        (N, H, H, 3) uint8 and (N,) int64.
    boxes
        (N, 4) in [0, 1], or a function from an epoch's number to those of the epoch, such as
        predicted ones of which :func:`jitter_boxes` moves the edges. The whole frame is
        (0, 0, 1, 1).
    side
        Height and width of the crops.
    config
        The knobs.
    teacher
        If given, a network of whole frames, (N, 3, H, H) to logits, whose softened answers are
        learned too.
    checkpoint, progress, name
        As in :func:`~hwgen.compress.training.train`.

    Returns
    -------
    tuple
        The trained copy, and the report.

    Raises
    ------
    ValueError
        If frames are not square, there is not one box in [0, 1] for each, the loss is one for
        boxes, or as in :func:`~hwgen.compress.training.train`.
    """
    config = config or TrainConfig()
    if config.loss != "cross_entropy":
        raise ValueError(f"loss must be 'cross_entropy' for a classifier, not {config.loss!r}")
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2]:
        raise ValueError(
            f"frames must be square, (N, H, H, 3), not {frames.shape!r}; try resize_all"
        )
    own = frames.shape[1]

    def crops(epoch: int, size: int) -> np.ndarray:
        return crop_all(frames, boxes(epoch) if callable(boxes) else boxes, size)

    if teacher is None:
        return train(
            model,
            lambda epoch: (crops(epoch, side), labels),
            config,
            checkpoint=checkpoint,
            progress=progress,
            name=name,
        )
    tuned, report = train(
        nn.Sequential(Resize(own, side, first=3), model),
        lambda epoch: (np.concatenate([frames, crops(epoch, own)], axis=3), labels),
        config,
        teacher=nn.Sequential(Resize(own, own), teacher),
        checkpoint=checkpoint,
        progress=progress,
        name=name,
    )
    return reestimate_bn(cast(nn.Sequential, tuned)[1], crops(0, side)), report


def map_layers(model: nn.Module, image: np.ndarray) -> list[str]:
    """List what :func:`grad_cam` can take, in the order it runs: modules with a map as output.

    A map is (N, C, h, w) of more than one pixel. ``image`` is one (H, W, 3) uint8 frame. Modules
    that hold others are not listed, although they can be taken too; nor are pools. A module that
    runs several times stands where it ran last.
    """
    found: list[str] = []

    def note(name: str) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: object) -> None:
            if isinstance(result, Tensor) and result.ndim == 4 and result[0, 0].numel() > 1:
                found.append(name)

        module = model.get_submodule(name)
        if next(module.children(), None) is None and not isinstance(module, _POOLS):
            hooks.append(module.register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name, _ in model.named_modules():
        note(name)
    try:
        predict(model, image[None])
    finally:
        for handle in hooks:
            handle.remove()
    return list(dict.fromkeys(reversed(found)))[::-1]


def grad_cam(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    layer: str | None = None,
    *,
    progress: Tick | None = None,
) -> np.ndarray:
    """Return Grad-CAM maps (Selvaraju et al., ICCV 2017, section 3).

    A map is the ReLU of the layer's channels, each weighted by the mean gradient of the label's
    logit with respect to it.

    Parameters
    ----------
    model
        A classifier.
    images
        (N, H, W, 3) uint8.
    labels
        (N,) the class whose evidence is wanted, in training the true one; the model's own answers
        if None.
    layer
        Path of a module whose output is (N, C, h, w), what it gave last if it runs several times;
        the last of :func:`map_layers` if None.
    progress
        Called after each batch.

    Returns
    -------
    numpy.ndarray
        (N, H, W) float32, enlarged bilinearly to the frame.

    Raises
    ------
    ValueError
        If the layer is none of the model's, or has no map as its output, or the labels are not one
        class of the model's for each image.
    """
    known = layer in dict(model.named_modules())
    if layer is None or not known:
        layers = map_layers(model, images[0])
        if layer is not None or not layers:
            raise ValueError(f"layer must be one of {_listed(layers)}, not {layer!r}")
        layer = layers[-1]
    if labels is not None:
        labels = np.asarray(labels, np.int64)
        if labels.shape != (len(images),):
            raise ValueError(f"labels must have the shape ({len(images)},), not {labels.shape!r}")
    kept: list[object] = []

    def catch(_: nn.Module, __: object, out: object) -> object:
        kept.append(out)
        return out.clone() if isinstance(out, Tensor) else out  # what comes next may work in place

    hook = model.get_submodule(layer).register_forward_hook(catch)
    maps = []
    with ExitStack() as stack:
        stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        start = 0
        for x in batches(model, images):
            kept.clear()
            with torch.enable_grad():
                logits = model(x.requires_grad_(True))
                features = kept[-1] if kept else None
                if not isinstance(features, Tensor) or features.ndim != 4:
                    raise ValueError(
                        "layer must have a map (N, C, h, w) as its output, such as "
                        f"{_listed(map_layers(model, images[0]))}, not {layer!r}"
                    )
                wanted = logits.detach().argmax(dim=1)
                if labels is not None:
                    given = labels[start : start + len(x)]
                    if given.min() < 0 or given.max() >= logits.shape[1]:
                        raise ValueError(
                            f"labels must be 0 to {logits.shape[1] - 1}, the model's classes, not "
                            f"{given.min()} to {given.max()}"
                        )
                    wanted = torch.from_numpy(given).to(wanted.device)
                evidence = logits.gather(1, wanted[:, None]).sum()
                (gradient,) = torch.autograd.grad(evidence, features)
            weight = gradient.mean(dim=(2, 3), keepdim=True)
            cam = functional.relu((weight * features.detach()).sum(dim=1, keepdim=True))
            cam = functional.interpolate(
                cam, size=images.shape[1:3], mode="bilinear", align_corners=False
            )
            maps.append(cam[:, 0].cpu().numpy())
            start += len(x)
            if progress is not None:
                progress("Grad-CAM", start, len(images))
    return np.concatenate(maps)


def _listed(layers: list[str]) -> str:
    """Return layers' names for an error."""
    return ", ".join(layers) or "those with a map (N, C, h, w), of which the model has none"


def foreground_boxes(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    layer: str | None = None,
    split: float = 0.5,
    *,
    progress: Tick | None = None,
    chunk: int = 1000,
) -> np.ndarray:
    """Return pseudo-boxes to train a predictor on where there are no true ones (ICCAD 2022).

    :func:`grad_cam` and :func:`cam_boxes` on a chunk of images at a time; (N, 4) float32 in [0, 1].
    """
    if labels is not None and np.shape(labels) != (len(images),):
        raise ValueError(f"labels must have the shape ({len(images)},), not {np.shape(labels)!r}")
    boxes = []
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        own = None if labels is None else labels[part]
        boxes.append(cam_boxes(grad_cam(model, images[part], own, layer), split))
        if progress is not None:
            progress("pseudo-boxes", min(start + chunk, len(images)), len(images))
    return np.concatenate(boxes)


def cam_boxes(maps: np.ndarray, split: float = 0.5) -> np.ndarray:
    """Return the box round all that is above ``split`` of each map's range (ICCAD 2022).

    ``maps`` is (N, H, W), ``split`` 0 to 1; the result is (N, 4) float32 in [0, 1], the whole frame
    for a flat map.
    """
    if not 0 <= split <= 1:
        raise ValueError(f"split must be in [0, 1] of the map's range, not {split!r}")
    if not np.isfinite(maps).all():
        raise ValueError("maps must be finite; try looking for NaN in the model's weights")
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


def save_boxes(path: str | Path, boxes: np.ndarray, images: np.ndarray, source: str) -> None:
    """Save boxes and which images they belong to as ``.npz``, whole or not at all.

    Parameters
    ----------
    path
        The file.
    boxes
        (N, 4) in [0, 1]: xmin, ymin, xmax, ymax.
    images
        (N, H, W, C) uint8, of which a digest is kept.
    source
        Where they are from, such as "true", "Grad-CAM" or "predicted".

    Raises
    ------
    ValueError
        If there is not one box in [0, 1] for each image, its edges in order.
    """
    _check_boxes(boxes, len(images), ordered=True)
    held = {"boxes": boxes.astype(np.float32), "source": source, "digest": _digest(images)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **held)  # type: ignore[arg-type]


def load_boxes(path: str | Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    """Load what :func:`save_boxes` saved for these images: (N, 4) float32 boxes and their source.

    Raises
    ------
    ValueError
        If the file is none of ours, is damaged, or belongs to other images.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            boxes, source, digest = held["boxes"], str(held["source"]), str(held["digest"])
    except (BadZipFile, KeyError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a file of save_boxes: {error}") from error
    if digest != _digest(images):
        raise ValueError(
            f"{path} must hold the boxes of these {len(images)} images, but they are of "
            f"{len(boxes)} others; try making them anew"
        )
    return boxes, source


def _digest(images: np.ndarray) -> str:
    """Return what tells images from others."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
