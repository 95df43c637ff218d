# SPDX-License-Identifier: Apache-2.0
"""Compression: the small training loop that everything else here retrains with."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.arch.files import replacing
from hwgen.compress.evaluation import evaluating
from hwgen.compress.identity import digest, form, tensors
from hwgen.compress.inputs import (
    MEAN,
    Preprocess,
    batches,
    device_of,
    layout_of,
    normalise,
    preprocess_of,
)
from hwgen.compress.knobs import check_choice, check_not_negative
from hwgen.ir import Graph, run_quantized
from hwgen.ir.preprocess import for_channels

CUT_WEIGHT = 2.0
"""How much more "weighted_mse" minds an edge that cuts into the true box than one outside of it.

The papers' released code has no training in it; the factor is a choice of ours.
"""

MASK = "weight_mask"
"""Buffer beside a weight: 0 where a reduced kernel holds its exact zeros."""

Optimizer = Literal["adamw", "sgd"]
Loss = Literal["cross_entropy", "smooth_l1", "mse", "weighted_mse", "giou"]
Precision = Literal["float32", "bfloat16"]

Samples = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""From an epoch's number to its images (N, H, W, 3) uint8 and targets (N, ...)."""

Tick = Callable[[str, int, int], None]
"""Progress: what is being done, steps done, steps in all."""


def retrained(model: object) -> nn.Module:
    """Return what a caller's ``fine_tune`` returned, if it is a network."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"fine_tune must return the retrained network, not {type(model).__name__}; try "
            "lambda model: train(model, ...)[0]"
        )
    return model


def fastest_precision(device: torch.device | str = "cpu") -> Precision:
    """Return what a device trains fastest in.

    That is "bfloat16" where the hardware multiplies it (a CPU with AVX512-BF16 or AMX, a GPU from
    Ampere on); other CPUs convert each operand, and are slower than in "float32".
    """
    if torch.device(device).type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # A torch that is too old cannot tell.
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        able = any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if able else "float32"


@dataclass(frozen=True)
class Augment:
    """What is done to each training image, anew in every epoch.

    Attributes
    ----------
    flip
        Mirror left and right with a chance of one half.
    shift
        Move by up to so many pixels each way; the border is mirrored inwards.
    cutout
        Side of a square that is made grey (DeVries & Taylor, 2017); 0 for none.
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.shift, self.cutout) < 0:
            raise ValueError(
                f"shift and cutout must be at least 0 pixels, not {self.shift!r} and "
                f"{self.cutout!r}"
            )

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return changed copies of (N, H, W, C) uint8 images."""
        return self._change(images, self._moves(len(images), rng), rng)

    def with_boxes(
        self, images: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return changed copies, and (N, 4) boxes in [0, 1] of the frame that move along.

        What a shift takes out of the frame is cut off its box.
        """
        if not (self.flip or self.shift):
            return self(images, rng), boxes
        mirrored, down, right = moves = self._moves(len(images), rng)
        height, width = images.shape[1:3]
        x, y = boxes[:, 0::2] - right / width, boxes[:, 1::2] - down / height
        x = np.where(mirrored, 1 - (boxes[:, 2::-2] - right / width), x)
        moved = np.clip(np.stack([x, y], axis=2).reshape(-1, 4), 0, 1).astype(boxes.dtype)
        return self._change(images, moves, rng), moved

    def _moves(
        self, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw (count, 1): mirrored or not, and by how much rows and columns are moved."""
        mirrored = np.zeros((count, 1), bool)
        down, right = np.zeros((2, count, 1), np.int64)
        if self.flip:
            mirrored = rng.random((count, 1)) < 0.5
        if self.shift:
            down = rng.integers(-self.shift, self.shift + 1, (count, 1))
            right = rng.integers(-self.shift, self.shift + 1, (count, 1))
        return mirrored, down, right

    def _change(
        self,
        images: np.ndarray,
        moves: tuple[np.ndarray, np.ndarray, np.ndarray],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Move and mirror images as drawn, and cut a square out of each."""
        count, height, width = images.shape[:3]
        if self.shift >= min(height, width):
            raise ValueError(
                f"shift must be less than the images' sides, not {self.shift!r} for images of "
                f"{height} x {width}"
            )
        if self.flip or self.shift:
            mirrored, down, right = moves
            columns = np.arange(width)[None]
            columns = np.where(mirrored, width - 1 - columns, columns) + right
            rows = _mirror(np.arange(height)[None] + down, height)
            which = np.arange(count)[:, None, None]
            images = images[which, rows[:, :, None], _mirror(columns, width)[:, None, :]]
        if self.cutout:
            y = np.arange(height) - rng.integers(0, height, (count, 1)) + self.cutout // 2
            x = np.arange(width) - rng.integers(0, width, (count, 1)) + self.cutout // 2
            inside = [(axis >= 0) & (axis < self.cutout) for axis in (y, x)]
            hole = inside[0][:, :, None] & inside[1][:, None, :]
            images = np.where(hole[..., None], np.uint8(round(255 * MEAN)), images)
        return images


def _mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Fold indices outside of 0 .. size - 1 back in, the border pixel itself not repeated."""
    index = np.abs(index)
    return np.where(index < size, index, 2 * (size - 1) - index)


@dataclass(frozen=True)
class TrainConfig:
    """Knobs of one training.

    Attributes
    ----------
    epochs, batch_size, seed
        The usual.
    optimizer
        "adamw", or "sgd" with momentum 0.9.
    learning_rate
        The peak: linear warm-up over ``warmup`` of all steps, then a cosine to zero.
    weight_decay
        Applied to weights of two axes or more.
    label_smoothing
        Of the cross-entropy.
    distill_weight, distill_temperature
        Share of the distillation loss (Hinton et al., 2015) when a teacher is given.
    loss
        "cross_entropy"; or, for boxes (xmin, ymin, xmax, ymax), "smooth_l1", "mse",
        "weighted_mse", in which the square of an edge's error counts :data:`CUT_WEIGHT` times where
        the edge lies inside of the true box: what is cut off is lost, what is too much only costs,
        or "giou", which minds the intersection over union that predictors are judged by (Carion et
        al., ECCV 2020, section 3.1).
    augment
        What is done to the images on their way in.
    precision
        "bfloat16" computes the layers in that type (weights, sums and loss stay float32), which
        hardware that has it does about twice as fast, and other hardware at half the speed:
        :func:`fastest_precision` tells which.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    distill_weight: float = 0.5
    distill_temperature: float = 2.0
    loss: Loss = "cross_entropy"
    augment: Augment = Augment()
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice("optimizer", self.optimizer, Optimizer)
        check_choice("loss", self.loss, Loss)
        check_choice("precision", self.precision, Precision)
        check_not_negative(epochs=self.epochs, weight_decay=self.weight_decay, seed=self.seed)
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, for batch norm, not {self.batch_size!r}"
            )
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate!r}")
        for name in ("warmup", "label_smoothing", "distill_weight"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)!r}")
        if not self.distill_temperature > 0.0:
            raise ValueError(
                f"distill_temperature must be above 0, not {self.distill_temperature!r}"
            )


@dataclass
class TrainReport:
    """What a training did: mean loss of each epoch, and the seconds it took."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def apply_masks(model: nn.Module) -> None:
    """Put the exact zeros of reduced kernels back, after a step of an optimizer."""
    with torch.no_grad():
        for module in model.modules():
            mask, weight = getattr(module, MASK, None), getattr(module, "weight", None)
            if isinstance(mask, Tensor) and isinstance(weight, Tensor):
                weight.mul_(mask)


def with_masks(model: nn.Module) -> nn.Module:
    """Return a copy whose layers' exact zeros stay zero in training.

    Those of kernels that were reduced elsewhere, or baked, would be filled by it.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, MASK, None) is None:
            used = module.weight.detach() != 0
            if not used.all():
                module.register_buffer(MASK, used.to(module.weight.dtype))
    return model


def train(
    model: nn.Module,
    samples: Samples,
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    progress: Tick | None = None,
    name: str = "training",
    each_epoch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, TrainReport]:
    """Train a copy of ``model``.

    Parameters
    ----------
    model
        Left as it is.
    samples
        Called once an epoch; may return other crops each time.
    config
        The knobs.
    teacher
        If given, its softened answers on the same images are learned too (classification only).
    checkpoint
        A file kept up to date after every epoch; a run that finds one goes on from there, if it
        has the same config, teacher and images in its first epoch, and began at the same weights
        but for the rounding of another machine. Removed by nobody.
    progress, name
        Called after each batch.
    each_epoch
        Called after each epoch with how many are done and the model in training; what it writes
        into the model's buffers is in the checkpoint too.

    Returns
    -------
    tuple
        The trained copy, in eval mode, and the report.

    Raises
    ------
    ValueError
        If there are not two images or more and one target for each, a label is no class of the
        model, nothing of the model requires a gradient, the teacher has other outputs or another
        preprocessing, the checkpoint belongs to another training, or the loss is not finite.
    """
    began = time.perf_counter()
    report = TrainReport()
    device, preprocess = device_of(model), preprocess_of(model)
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    layout = layout_of(model, teacher)
    model = _with_format(copy.deepcopy(model), layout)
    optimizer = _optimizer(model, config)
    first_epoch = 0
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model must have parameters to train, but none requires a gradient; try "
            "model.requires_grad_(True)"
        )
    path = Path(checkpoint) if checkpoint is not None else None
    identity: dict[str, Any] = {}
    drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if path is not None:
        drawn[0] = samples(0)
        identity = _identity(config, model, teacher, drawn[0])
    if path is not None and path.exists():
        state = load_saved(path, "a checkpoint of a training", device)
        _resume(path, state, identity, model)
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
        report = TrainReport(**state["report"])
    if teacher is not None:
        if not _fed_alike(preprocess_of(teacher), preprocess):
            raise ValueError(
                f"the teacher must be fed as the model is, with mean and std of {preprocess!r}, "
                f"not {preprocess_of(teacher)!r}; try with_preprocess"
            )
        teacher = copy.deepcopy(teacher).to(device).eval()
    for epoch in range(first_epoch, config.epochs):
        rng = np.random.default_rng((config.seed, epoch))
        torch.manual_seed(config.seed * 1000 + epoch)  # dropout
        images, targets = drawn.pop(epoch) if epoch in drawn else samples(epoch)
        targets = _checked(config, images, targets)
        order = rng.permutation(len(images))
        steps = -(-len(order) // config.batch_size)
        model.train()
        total = 0.0
        for step in range(steps):
            index = order[step * config.batch_size : (step + 1) * config.batch_size]
            if len(index) < 2:  # batch norm needs two
                continue
            for group in optimizer.param_groups:
                group["lr"] = _rate(config, epoch * steps + step, config.epochs * steps)
            x, y_true = _batch(config, images[index], targets[index], rng, device, preprocess)
            x = x.contiguous(memory_format=layout)
            with half:
                y = model(x)
            if step == 0:
                _check_outputs(config, y, targets)
            y = y.float()
            loss = _loss(config, y, y_true)
            if teacher is not None and config.distill_weight > 0:
                with torch.no_grad(), half:
                    soft = teacher(x).float()
                if soft.shape != y.shape:
                    raise ValueError(
                        f"the teacher must have the model's outputs, {tuple(y.shape)!r} for a "
                        f"batch, not {tuple(soft.shape)!r}"
                    )
                t = config.distill_temperature
                distilled = functional.kl_div(
                    functional.log_softmax(y / t, 1),
                    functional.log_softmax(soft / t, 1),
                    reduction="batchmean",
                    log_target=True,
                )
                w = config.distill_weight
                loss = (1 - w) * loss + w * t * t * distilled
            if not torch.isfinite(loss):
                raise ValueError(
                    f"{name}: the loss must be finite, not {loss.item()!r} in epoch {epoch}; "
                    "try a smaller learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            apply_masks(model)
            total += loss.item() * len(index)
            if progress is not None:
                progress(name, epoch * steps + step + 1, config.epochs * steps)
        report.losses.append(total / len(order))
        if each_epoch is not None:
            each_epoch(epoch + 1, model)
        if path is not None:
            seconds = report.seconds + time.perf_counter() - began
            save_atomically(
                {
                    **identity,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1,
                    "report": {"losses": report.losses, "seconds": seconds},
                },
                path,
            )
    report.seconds += time.perf_counter() - began
    return _with_format(model, torch.contiguous_format).eval(), report


def _checked(config: TrainConfig, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return an epoch's targets, labels as int64; refuse those that do not go with its images."""
    targets = np.asarray(targets)
    if len(images) < 2:
        raise ValueError(f"images must be at least 2, for batch norm, not {len(images)}")
    if len(targets) != len(images):
        raise ValueError(f"targets must be {len(images)}, one an image, not {len(targets)}")
    return targets if config.loss != "cross_entropy" else labels_of(targets, len(images))


def labels_of(labels: np.ndarray, count: int, classes: int | None = None) -> np.ndarray:
    """Return labels as int64; refuse those that are not ``count``, or no class of a model."""
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of the shape ({count},), not {labels.dtype} of "
            f"{labels.shape!r}"
        )
    if classes is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels must be in 0..{classes - 1}, the model's classes, not in "
            f"{labels.min()}..{labels.max()}"
        )
    return labels.astype(np.int64, copy=False)


def check_logits(y: Tensor | np.ndarray) -> None:
    """Refuse outputs that are not (N, classes)."""
    if y.ndim != 2:
        raise ValueError(f"the model must give logits (N, classes), not {tuple(y.shape)!r}")


def _check_outputs(config: TrainConfig, y: object, targets: np.ndarray) -> None:
    """Refuse a model whose outputs for a batch are not what an epoch's targets are of."""
    if not isinstance(y, Tensor):
        raise ValueError(f"the model must return one tensor, not {type(y).__name__}")
    if config.loss != "cross_entropy":
        if y.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"the model must give each image {targets.shape[1:]!r} numbers, as its target "
                f"has, not {tuple(y.shape[1:])!r}"
            )
        return
    check_logits(y)
    labels_of(targets, len(targets), y.shape[1])


def _identity(
    config: TrainConfig,
    model: nn.Module,
    teacher: nn.Module | None,
    first: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Return what a checkpoint must agree in to go on from it; ``first`` is the first epoch's."""
    start = {name: value.clone() for name, value in tensors(model).items()}
    data = digest(*first, *([] if teacher is None else [teacher]))
    return {"config": asdict(config), "data": data, "start": start, "form": digest(form(model))}


def _resume(path: Path, state: dict[str, Any], identity: dict[str, Any], model: nn.Module) -> None:
    """Load a checkpoint's weights; refuse that of another training."""

    def refuse(other: str, cause: Exception | None = None) -> NoReturn:
        raise ValueError(
            f"{path} must belong to this training, not to {other}; try deleting it or naming "
            "another file"
        ) from cause

    if not isinstance(state, dict) or "config" not in state:
        refuse("something else")
    if state["config"] != identity["config"]:
        refuse(f"{state['config']!r}")
    if state.get("form") != identity["form"]:
        refuse("one of another network")
    if state.get("data") != identity["data"]:
        refuse("one of another teacher or other images")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        refuse("one of another network", error)
    if not _same_weights(state["start"], identity["start"]):
        refuse("one that began at other weights")


def _same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are equal but for rounding, and in where they are zero."""
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape
        and torch.equal(value != 0, other[name] != 0)
        and torch.allclose(
            value.double(), other[name].double(), rtol=1e-3, atol=1e-6, equal_nan=True
        )
        for name, value in one.items()
    )


def _fed_alike(one: Preprocess, other: Preprocess) -> bool:
    """Tell whether two means and deviations are the same, one for all channels or one for each."""
    channels = math.lcm(len(one[0]), len(other[0]))
    return for_channels(one, channels) == for_channels(other, channels)


def _batch(
    config: TrainConfig,
    images: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    device: torch.device,
    preprocess: Preprocess,
) -> tuple[Tensor, Tensor]:
    """Return augmented images and their targets; boxes move with their images."""
    if config.loss == "cross_entropy":
        images = config.augment(images, rng)
    else:
        images, targets = config.augment.with_boxes(images, targets, rng)
    y_true = torch.from_numpy(np.ascontiguousarray(targets)).to(device)
    return normalise(images, device, preprocess), y_true


def _with_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay the model's weights out so; channels last is what the CPU convolves fastest.

    They are cloned because ``contiguous`` leaves a 1x1 kernel's strides, of any format, alone.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=memory_format)
    return model


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer, sparing biases and batch norms from weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)


def _rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to zero."""
    warm = max(1, int(steps * config.warmup))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return (
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


def _loss(config: TrainConfig, y: Tensor, target: Tensor) -> Tensor:
    """Return the loss that the config names."""
    if config.loss == "cross_entropy":
        return functional.cross_entropy(y, target, label_smoothing=config.label_smoothing)
    if config.loss == "mse":
        return functional.mse_loss(y, target)
    if config.loss in ("smooth_l1", "giou"):
        # Boxes are fractions of the frame: beyond a twentieth of it an error counts linearly.
        edges = functional.smooth_l1_loss(y, target, beta=0.05)
        return edges if config.loss == "smooth_l1" else 4 * edges + _giou_loss(y, target)
    outwards = y.new_tensor([-1.0, -1.0, 1.0, 1.0])
    weight = torch.where((y - target) * outwards < 0, CUT_WEIGHT, 1.0)
    return (weight * (y - target).square()).mean()


def _giou_loss(y: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 1 - GIoU of (N, 4) boxes (Rezatofighi et al., CVPR 2019, algorithm 2).

    Where boxes do not meet, what their common hull has beside them still says which way to go;
    from an empty box nothing does, so that it cannot be the whole of a loss. Swapped edges of ``y``
    are put in order.
    """
    low, high = torch.minimum(y[:, :2], y[:, 2:]), torch.maximum(y[:, :2], y[:, 2:])
    least, most = target[:, :2], target[:, 2:]
    shared = (torch.minimum(high, most) - torch.maximum(low, least)).clamp(min=0).prod(1)
    union = (high - low).prod(1) + (most - least).prod(1) - shared
    hull = (torch.maximum(high, most) - torch.minimum(low, least)).prod(1)
    empty = torch.finfo(y.dtype).eps
    return (1 - shared / union.clamp(min=empty) + 1 - union / hull.clamp(min=empty)).mean()


def save_atomically(state: dict[str, Any], path: str | Path) -> None:
    """``torch.save`` so that the file is either the old one or all of the new one."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)  # by its path, torch would refuse a name without a suffix


@torch.no_grad()
def predict(network: nn.Module | Graph, images: np.ndarray) -> np.ndarray:
    """Return a network's outputs (N, ...) float32 for (N, H, W, C) uint8.

    Those of a model are what it computes in eval mode; those of a quantized graph
    (:func:`hwgen.quantize.quantize_model`) the accelerator's integers, dequantized.

    Raises
    ------
    ValueError
        If there are no images, or the model returns anything but one tensor.
    """
    if isinstance(network, Graph):
        return np.concatenate([run_quantized(network, x.numpy()) for x in batches(network, images)])
    outputs = []
    with evaluating(network):
        for x in batches(network, images):
            y = network(x)
            if not isinstance(y, Tensor):
                raise ValueError(f"the model must return one tensor, not {type(y).__name__}")
            outputs.append(y.cpu().numpy())
    return np.concatenate(outputs)


def accuracy(network: nn.Module | Graph, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose largest logit is the label's, of a model or its integers.

    Raises
    ------
    ValueError
        If there is not one label for each image, of the model's classes, or the model does not give
        logits (N, classes).
    """
    logits = predict(network, images)
    check_logits(logits)
    return float((logits.argmax(axis=1) == labels_of(labels, len(images), logits.shape[1])).mean())


def load_saved(path: str | Path, what: str, device: torch.device | str | None = None) -> Any:
    """``torch.load`` of what holds tensors and plain values alone, and so runs no code.

    Raises
    ------
    ValueError
        For any other file: it must be ``what``.
    """
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # what torch's readers trip over depends on where a file is damaged
        raise ValueError(
            f"{path} must be {what}; it is damaged, of another kind, or holds more than tensors; "
            "try making it anew"
        ) from error


@torch.no_grad()
def reestimate_bn(model: nn.Module, images: np.ndarray) -> nn.Module:
    """Return a copy whose batch norms' statistics are those of ``images``, each counted once.

    Raises
    ------
    ValueError
        If there are no images.
    """
    model = copy.deepcopy(model).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moments = {norm: _Moments() for norm in norms}
    hooks = [norm.register_forward_pre_hook(moments[norm]) for norm in norms]
    for norm in norms:
        norm.train()
    # Of even sizes: a last batch of one image may have one value a channel, which has no variance.
    for x in batches(model, images, -(-len(images) // max(1, -(-len(images) // 250)))):
        model(x)
    for hook in hooks:
        hook.remove()
    for norm, found in moments.items():
        found.write(norm)
    return model.eval()


class _Moments:
    """Mean and variance of each channel over all batches that a batch norm is given."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in a batch (Chan et al., COMPSTAT 1982, equations 2.1)."""
        x = inputs[0]
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        variance, mean = variance.double(), mean.double()
        more, before = x.numel() // x.shape[1], self.count
        self.count = before + more
        apart = mean - self.mean.to(mean)
        self.mean = mean - apart * (before / self.count)
        squares = self.squares.to(mean) + variance * more
        self.squares = squares + apart**2 * (before * more / self.count)

    def write(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Set a batch norm's statistics; one that nothing ran through keeps what it has."""
        if self.count and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / max(1, self.count - 1))
