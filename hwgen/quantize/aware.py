# SPDX-License-Identifier: Apache-2.0
"""The quantization room: fine-tuning through the very integers that the machine computes.

Quantization-aware training (Jacob et al., CVPR 2018, section 3) with one difference: the forward
pass is not a model of the integers, it is the integers. In each step the current weights go through
`quantize_with`, which is also what makes the graph that is deployed, and the pass runs with its
codes, biases, multipliers and shifts. Gradients are those of the real-valued network, straight
through each rounding (Bengio et al., 2013) and none outside of a clamp.

All tensors between layers hold codes less their zero point, integers in float32.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwgen.compress.inputs import (
    device_of,
    normalise,
    overruns,
    preprocess_of,
    with_preprocess,
)
from hwgen.compress.training import MASK, Samples, Tick, TrainConfig, train
from hwgen.ir import (
    AvgPool,
    Conv2d,
    Graph,
    IRError,
    MaxPool,
    Node,
    QConv,
    QInput,
    QuantParams,
    Requantization,
    run_quantized,
)
from hwgen.ir.types import Padding
from hwgen.quantize.observers import Observer, Scheme
from hwgen.quantize.post_training import prepare, quantize_with

EXACT_FLOAT32 = 2**24
"""Sums of integers are exact in float32 while no partial sum can reach this."""

CALIBRATION_IMAGES = 256
"""How many of the first epoch's images calibrate, unless others are given."""

CHECKED_IMAGES = 8
"""How many images the integer reference runs too, before a graph is handed out."""

FINE_TUNING = TrainConfig(epochs=5, learning_rate=1e-3, weight_decay=0.0)
"""What a network that is already trained needs; folded weights bear no decay."""

Validate = Callable[[nn.Module], float]
"""From a network, (N, C, H, W) float32 to outputs, to how good it is: more is better."""


class _Codes(torch.autograd.Function):
    """The codes of real parameters; the gradient goes straight through the rounding."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """Return `codes`, which are about ``real / scale``; `scale` broadcasts to them."""
        ctx.save_for_backward(scale)
        return codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of ``real / scale``."""
        (scale,) = ctx.saved_tensors
        return (grads[0] / scale).float(), None, None


class _Requantize(torch.autograd.Function):
    """`hwgen.arch.numerics.requantize`, results without their zero point.

    Exact in float64: a sum in front of the shift has 49 bits, float64 holds 53, and scaling by a
    power of two rounds nothing. The gradient is that of the real factors, and 0 where the result
    before rounding lies outside of the clamp.
    """

    @staticmethod
    def forward(
        ctx: Any, acc: Tensor, bias: Tensor, residual: Tensor | None, step: _Step
    ) -> Tensor:
        """Return float32 integers from those of (N, C, H, W) sums, (C,) biases and a residual."""
        offset = _column(bias.double()) * step.factor
        scaled = torch.addcmul(offset, acc.double(), step.factor)
        if residual is not None:
            scaled.addcmul_(residual.double(), step.residual_factor)
        ctx.step = step
        ctx.save_for_backward((scaled >= step.lo) & (scaled <= step.hi))
        return scaled.add_(0.5).floor_().clamp_(step.lo, step.hi).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for sums, biases and residual."""
        (inside,) = ctx.saved_tensors
        grad = grads[0] * inside
        wanted = ctx.needs_input_grad
        acc = grad * ctx.step.factor.float() if wanted[0] or wanted[1] else None
        bias = acc.double().sum(dim=(0, 2, 3)) if acc is not None and wanted[1] else None
        residual = grad * ctx.step.residual_factor.float() if wanted[2] else None
        return acc, bias, residual, None


@dataclass(frozen=True)
class _Step:
    """A requantization as the real factors (1, C, 1, 1) and bounds that float64 computes with."""

    factor: Tensor
    residual_factor: Tensor
    lo: int
    hi: int

    @classmethod
    def of(cls, r: Requantization, device: torch.device) -> _Step:
        """Write multipliers and shifts as float64, which holds them exactly."""

        def factor(multiplier: NDArray[np.int64] | None) -> Tensor:
            real = np.ldexp(np.float64(0 if multiplier is None else multiplier), -r.shift)
            return _column(torch.tensor(real, device=device))

        return cls(
            factor=factor(r.multiplier),
            residual_factor=factor(r.residual_multiplier),
            lo=r.lo - r.zero_point,
            hi=r.hi - r.zero_point,
        )


def _column(values: Tensor) -> Tensor:
    return values.reshape(1, -1, 1, 1)


def convolve_exactly(x: Tensor, weight: Tensor, reach: int, **options: Any) -> Tensor:
    """Convolve integers held in float32, without any rounding.

    Parameters
    ----------
    x, weight
        float32 (N, C, H, W) and (O, C / groups, kh, kw), integers.
    reach
        Largest |x| that can occur.
    options
        stride, dilation and groups of `torch.nn.functional.conv2d`.

    Returns
    -------
    (N, O, H_out, W_out), float32 or, for large sums, float64. The largest sum of |weight| over an
    output times `reach` bounds every partial sum in any order; below 2**24 float32 is exact. Beyond
    that the input channels are halved until each part is, and the parts are added in float64.
    """
    if overruns(weight):
        x, weight = (t.clone(memory_format=torch.contiguous_format) for t in (x, weight))
    worst = float(weight.detach().abs().double().sum(dim=(1, 2, 3)).max()) * reach
    if worst < EXACT_FLOAT32:
        return functional.conv2d(x, weight, **options)
    half = weight.shape[1] // 2
    if half and options.get("groups", 1) == 1:
        first = convolve_exactly(x[:, :half], weight[:, :half], reach, **options)
        second = convolve_exactly(x[:, half:], weight[:, half:], reach, **options)
        return first.double() + second.double()
    return functional.conv2d(x.double(), weight.double(), **options)


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """Keep libraries away that may transform a convolution (Winograd, FFT) and so round it."""
    with (
        torch.backends.cudnn.flags(enabled=False),
        torch.backends.nnpack.flags(enabled=False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def _padded(x: Tensor, padding: Padding, value: float = 0.0) -> Tensor:
    (top, bottom), (left, right) = padding
    if not any((top, bottom, left, right)):
        return x
    return functional.pad(x, (left, right, top, bottom), value=value)


class _Trained(nn.Module):
    """One convolution's parameters, in units in which all layers learn alike.

    Weights are in units of the power of two above their channel's largest (folded batch norms leave
    channels that differ by orders of magnitude), biases in units of the one above 127 codes of the
    result. Powers of two, so that nothing is rounded on the way.
    """

    weight_unit: Tensor
    bias_unit: Tensor

    def __init__(self, node: Conv2d, code: QuantParams) -> None:
        super().__init__()
        largest = np.abs(node.weight).max(axis=(1, 2, 3), keepdims=True)
        weight_unit = torch.tensor(np.ldexp(np.float32(1), np.frexp(largest)[1]))
        bias_unit = torch.tensor(math.ldexp(1.0, math.frexp(127 * code.scale)[1]))
        weight = torch.tensor(node.weight)
        self.weight = nn.Parameter(weight / weight_unit)
        self.bias = nn.Parameter(torch.tensor(node.bias) / bias_unit)
        self.register_buffer("weight_unit", weight_unit)
        self.register_buffer("bias_unit", bias_unit)
        self.register_buffer(MASK, (weight != 0).float())

    def real(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the graph's own units."""
        return self.weight * self.weight_unit, self.bias * self.bias_unit


class IntegerNetwork(nn.Module):
    """A fused graph as a module that trains through its own integers.

    What `forward` returns equals `hwgen.ir.run_quantized` of `quantized`, bit for bit, in any mode.
    Its state dict holds the codes too.

    Parameters
    ----------
    graph
        At the fused level, with one input; batch norms are folded, so their statistics are frozen.
        It is left as it is; the module's parameters start as its weights and biases. Weights that
        are 0 stay 0 under `hwgen.compress.train`, which honours the masks beside them.
    codes
        Scale and zero point of every edge (`hwgen.quantize.calibrate`); they stay.
    scheme
        ``affine`` or ``power_of_two``, as for `quantize_with`.

    Raises
    ------
    IRError
        For a graph of another level, or with several inputs.
    """

    def __init__(self, graph: Graph, codes: dict[str, QuantParams], scheme: Scheme) -> None:
        super().__init__()
        if graph.level != "fused" or len(graph.inputs) != 1:
            raise IRError(
                f"graph must be at the fused level with one input, not {graph.level} with "
                f"{len(graph.inputs)}; run to_fused"
            )
        self.graph, self.codes, self.scheme = graph, dict(codes), scheme
        self.layers = nn.ModuleList()
        self.where: dict[str, int] = {}
        for node in graph.nodes:
            if isinstance(node, Conv2d):
                self.where[node.name] = len(self.layers)
                self.layers.append(_Trained(node, codes[node.name]))

    def fused(self) -> Graph:
        """Return the float graph with the parameters as they are now."""
        changes: dict[str, Node] = {}
        for name, index in self.where.items():
            weight, bias = (t.detach().cpu().numpy() for t in self._layer(index).real())
            changes[name] = self.graph[name].updated(weight=weight, bias=bias)
        return self.graph.rewrite(changes)

    def quantized(self) -> Graph:
        """Return the integers that the forward pass runs now."""
        return quantize_with(self.fused(), self.codes, self.scheme)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output of (N, C, H, W) float32 images, dequantized.

        float32 (N, F) for a vector, else (N, F, H, W).
        """
        name = self.graph.outputs[0]
        real = (self._centred(x, name).double() * self.codes[name].scale).float()
        return real.flatten(1) if real.shape[2:] == (1, 1) else real

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the parameters: scheme and codes."""
        codes = {
            name: [float(code.scale), int(code.zero_point)] for name, code in self.codes.items()
        }
        return {"scheme": self.scheme, "codes": codes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the codes of a checkpoint; `ValueError` if it is another network's or scheme's."""
        if state["scheme"] != self.scheme or state["codes"].keys() != self.codes.keys():
            raise ValueError(
                f"the checkpoint must be of this network in the scheme {self.scheme!r}, not of one "
                f"with {len(state['codes'])} edges in the scheme {state['scheme']!r}; try deleting "
                "it or naming another file"
            )
        self.codes = {name: QuantParams(*code) for name, code in state["codes"].items()}

    def _centred(self, x: Tensor, output: str) -> Tensor:
        """Return an edge's codes less its zero point, integers in float32 (N, C, H, W)."""
        graph = self.quantized()
        last_use = {name: node.name for node in graph.nodes for name in node.inputs}
        values: dict[str, Tensor] = {}
        with _plain_convolutions():
            for node in graph.nodes:
                if isinstance(node, QInput):
                    code = self.codes[node.name]
                    levels = (x.detach().double() / code.scale + 0.5).floor()
                    centred = levels.clamp(-128 - code.zero_point, 127 - code.zero_point)
                    values[node.name] = centred.float()
                else:
                    values[node.name] = self._compute(node, [values[i] for i in node.inputs])
                for name in set(node.inputs):
                    if last_use[name] == node.name and name != output:
                        del values[name]
        return values[output]

    def _layer(self, index: int) -> _Trained:
        layer = self.layers[index]
        assert isinstance(layer, _Trained)
        return layer

    def _compute(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Return a quantized node's codes less their zero point."""
        x = inputs[0]
        real = self.graph[node.name]
        requantization: Requantization = node.requantization  # type: ignore[attr-defined]
        if isinstance(real, MaxPool):
            padded = _padded(x, real.padding, -math.inf)
            best = functional.max_pool2d(padded, real.kernel, real.stride, 0, real.dilation)
            zero_point = self.codes[node.name].zero_point
            return best.clamp(requantization.lo - zero_point, requantization.hi - zero_point)
        bias = torch.zeros(node.type.shape[0], device=x.device)
        if isinstance(node, QConv):
            assert isinstance(real, Conv2d)
            x, bias = self._convolve(node, real, x)
        elif isinstance(real, AvgPool):
            largest = math.prod(real.kernel) * self._reach(node.inputs[0])
            x = _padded(x if largest < EXACT_FLOAT32 else x.double(), real.padding)
            x = functional.avg_pool2d(x, real.kernel, real.stride, divisor_override=1)
        residual = inputs[1] if len(inputs) > 1 else None
        result: Tensor = _Requantize.apply(x, bias, residual, _Step.of(requantization, x.device))
        return result

    def _reach(self, name: str) -> int:
        """Return the largest |code less zero point| that an edge can have."""
        zero_point = self.codes[name].zero_point
        return max(128 + zero_point, 127 - zero_point)

    def _convolve(self, node: QConv, real: Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of products and the bias codes, both without the input's zero point."""
        code = self.codes[node.inputs[0]]
        weight, bias = self._layer(self.where[node.name]).real()
        weight_codes = _grouped_codes(node, real)
        sums = weight_codes.reshape(len(weight_codes), -1).sum(axis=1, dtype=np.int64)
        bias_codes = (node.bias + code.zero_point * sums).astype(np.float64)
        scale = torch.tensor(node.weight_scale, device=x.device)
        weight = _Codes.apply(
            weight,
            torch.tensor(weight_codes, device=x.device, dtype=torch.float32),
            scale.float().reshape(-1, 1, 1, 1),
        )
        bias = _Codes.apply(bias, torch.tensor(bias_codes, device=x.device), scale * code.scale)
        sums_of_products = convolve_exactly(
            _padded(x, real.padding),
            weight,
            self._reach(node.inputs[0]),
            stride=real.stride,
            dilation=real.dilation,
            groups=real.groups,
        )
        return sums_of_products, bias


def _grouped_codes(node: QConv, real: Conv2d) -> NDArray[np.int8]:
    """Return the weight codes in the float layer's own layout, (O, I / groups, kh, kw)."""
    if node.weight.ndim == 3:  # depthwise: (C, kh, kw)
        return node.weight[:, None]
    dense = node.weight.transpose(0, 3, 1, 2)
    groups, (outputs, inputs, *kernel) = real.groups, real.weight.shape
    blocks = dense.reshape(groups, outputs // groups, groups, inputs, *kernel)
    own = np.arange(groups)
    return blocks[own, :, own].reshape(real.weight.shape)


@dataclass(frozen=True)
class AwareReport:
    """What a fine-tuning did.

    Attributes
    ----------
    accuracies
        By `validate`, of the integers after each epoch; the first is plain post-training
        quantization's. Empty without `validate`.
    losses
        Mean loss of each epoch.
    best_epoch
        After how many epochs the graph that was returned is; 0 is post-training quantization.
    seconds
        The training took, validation included.
    """

    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


class _Run(nn.Module):
    """The network in training and, so that a checkpoint holds them, its best so far and scores."""

    scores: Tensor

    def __init__(self, network: IntegerNetwork, scores: int) -> None:
        super().__init__()
        self.network = network
        self.best = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("scores", torch.full((scores,), math.nan, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Run the network in training."""
        y: Tensor = self.network(x)
        return y

    def score(self, epoch: int, validate: Validate) -> None:
        """Judge the network after so many epochs, and keep it if none before was better."""
        found = float(validate(self.network))
        if math.isnan(found):
            raise ValueError(f"validate must return a number, not {found!r}, in epoch {epoch}")
        earlier = self.scores[:epoch].tolist()
        self.scores[epoch] = found
        if found >= max(earlier, default=-math.inf):
            self.best.load_state_dict(self.network.state_dict())


def fine_tune_quantized(
    model: nn.Module,
    samples: Samples,
    config: TrainConfig | None = None,
    *,
    calibration: Any = None,
    scheme: Scheme = "affine",
    observer: str | Observer = "mse",
    equalization: bool = False,
    teacher: nn.Module | None = None,
    validate: Validate | None = None,
    checkpoint: str | Path | None = None,
    progress: Tick | None = None,
    name: str = "quantization-aware",
) -> tuple[Graph, AwareReport]:
    """Quantize a torch module to int8 and train it on through its own integers.

    Calibrates as `quantize_model` does, trains as `hwgen.compress.train` does, and returns the
    integers that the last forward passes ran.

    Parameters
    ----------
    model
        In any mode; left as it is. Batch norms are folded, weights that are 0 stay 0.
    samples, config, checkpoint, progress, name
        As for `hwgen.compress.train`; `FINE_TUNING` is the config if None.
    calibration
        float32 (N, C, H, W), N >= 4; the first epoch's first 256 images if None.
    scheme, observer, equalization
        As for `quantize`. The codes of the edges are chosen once, before training.
    teacher
        Whose softened answers are learned beside the labels, with the config's `distill_weight`;
        the float `model` itself if None. Not used where the config's loss is a regression's.
    validate
        From a network to how good it is: more is better, as
        ``lambda network: accuracy(network, images, labels)`` on images kept for it. Called before
        the training and after each epoch; the best network is returned, of several equally good
        ones the last. Without it the last epoch's is.

    Returns
    -------
    tuple
        The quantized graph, as `quantize_model` returns it, and the report.

    Raises
    ------
    ValueError
        For calibration images that do not fit, a checkpoint of another training, a loss or a
        validation that is not finite.
    QuantizationError
        For a layer that int8 cannot hold.
    """
    from hwgen.frontend import from_torch
    from hwgen.passes.pipeline import to_fused

    began = time.perf_counter()
    config = config or FINE_TUNING
    preprocess = preprocess_of(model)
    if calibration is None:
        calibration = normalise(
            samples(0)[0][:CALIBRATION_IMAGES], preprocess=preprocess
        ).contiguous()
    images = calibration if isinstance(calibration, Tensor) else torch.tensor(calibration)
    images = images.detach().cpu()
    fused = to_fused(from_torch(copy.deepcopy(model).cpu(), images[:1]))
    graph, codes, _ = prepare(fused, images, scheme, observer, equalization)
    network = with_preprocess(IntegerNetwork(graph, codes, scheme), *preprocess)
    assert isinstance(network, IntegerNetwork)
    run = _Run(network, config.epochs + 1 if validate else 0).to(device_of(model))
    if validate is not None:
        run.score(0, validate)
    if config.loss != "cross_entropy":
        teacher = None
    elif teacher is None:
        teacher = model

    def each_epoch(done: int, trained: nn.Module) -> None:
        if validate is not None:
            assert isinstance(trained, _Run)
            trained.score(done, validate)

    trained, report = train(
        run,
        samples,
        config,
        teacher=teacher,
        checkpoint=checkpoint,
        progress=progress,
        name=name,
        each_epoch=each_epoch,
    )
    assert isinstance(trained, _Run)
    accuracies = [] if validate is None else trained.scores.tolist()
    best = config.epochs
    if accuracies:
        best = max(range(len(accuracies)), key=lambda epoch: (accuracies[epoch], epoch))
    chosen = trained.best if accuracies else trained.network
    return _checked(chosen, images[:CHECKED_IMAGES]), AwareReport(
        accuracies, report.losses, best, time.perf_counter() - began
    )


def _checked(network: IntegerNetwork, images: Tensor) -> Graph:
    """Return the network's integers, once the reference has given the same results.

    This is what every training here promises; a device whose convolutions round would break it.
    """
    graph = network.quantized()
    with torch.no_grad():
        found = network(images.to(device_of(network))).cpu().numpy()
    wanted = run_quantized(graph, images.numpy())
    if not np.array_equal(found, wanted):
        raise RuntimeError(
            "the network in training must give the integers of its graph, but "
            f"{(found != wanted).sum()} of {wanted.size} outputs differ: this device's "
            "convolutions are not exact; try training on the CPU"
        )
    return graph
