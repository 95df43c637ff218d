# SPDX-License-Identifier: Apache-2.0
"""Models: networks built only of the operations that the accelerator has.

Every network takes ``(N, 3, H, W)`` float32 and needs no operation outside of Conv2d, BatchNorm2d,
ReLU, ReLU6, Linear, pooling, Flatten and residual addition. Channel counts are multiples of 16
where the published topology allows.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution (odd ``kernel``, padded to keep the size), batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016, section 4.2).

    The shortcut is a 1x1 convolution wherever the shape changes: trained (``batch norm`` or bias
    included) or, with ``option_a``, fixed to subsampling and zero-padding of channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        option_a: bool = False,
        shortcut_bn: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=not (option_a or shortcut_bn))
            self.shortcut = conv
            if option_a:
                fix_option_a(conv)
            elif shortcut_bn:
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al., CVPR 2016, figure 5).

    The 3x3 has the stride; the last 1x1 has ``EXPANSION`` times the inner width.
    """

    EXPANSION = 4

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = self.EXPANSION * inner
        self.reduce = conv_bn_relu(inputs, inner, 1)
        self.spatial = conv_bn_relu(inner, inner, 3, stride)
        self.expand = nn.Sequential(
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, EXPANSION * inner, H / stride, W / stride)."""
        return self.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x))


def fix_option_a(conv: nn.Conv2d) -> None:
    """Set a 1x1 convolution to option A: channel i goes to i + pad, the others stay zero."""
    pad = (conv.out_channels - conv.in_channels) // 2
    with torch.no_grad():
        conv.weight.zero_()
        for i in range(conv.in_channels):
            conv.weight[i + pad, i] = 1.0
    conv.weight.requires_grad_(False)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, linear.

    Parameters
    ----------
    num_classes
        Size of the output.
    widths
        Channels of each stage; every stage but the first starts with stride 2.
    blocks
        Residual blocks of each stage.
    stem_kernel, stem_stride
        The first convolution.
    first_stride
        Stride of the first stage.
    stem_width
        Channels of the first convolution; those of the first stage if None.
    option_a
        Fixed shortcuts instead of trained ones.
    stem_pool
        A 3x3 max pool of stride 2 behind the stem, as for 224 x 224 pictures.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        stem_kernel: int = 3,
        stem_stride: int = 1,
        first_stride: int = 1,
        stem_width: int | None = None,
        option_a: bool = False,
        stem_pool: bool = False,
    ) -> None:
        super().__init__()
        inputs = stem_width or widths[0]
        self.conv1 = nn.Conv2d(3, inputs, stem_kernel, stem_stride, stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.stem_pool = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layer = nn.Sequential()
            for i in range(count):
                stride = 1 if i else 2 if stage else first_stride
                layer.append(ResidualBlock(inputs, width, stride, option_a))
                inputs = width
            self.add_module(f"layer{stage + 1}", layer)
        self.stages = len(widths)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, num_classes) logits."""
        x = self.stem_pool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(self.flatten(self.pool(x)))


def resnet8(num_classes: int = 10, width: int = 16) -> ResNet:
    """Return ResNet-8, the image classification network of MLPerf Tiny (12.5 MMAC at 32 x 32)."""
    return ResNet(num_classes, (width, 2 * width, 4 * width), (1, 1, 1))


def resnet18(num_classes: int = 1000) -> ResNet:
    """Return ResNet-18 (He et al., CVPR 2016, table 1; 1.8 GMAC at 224 x 224)."""
    return ResNet(
        num_classes, (64, 128, 256, 512), (2,) * 4, stem_kernel=7, stem_stride=2, stem_pool=True
    )


def resnet_cifar(depth: int, num_classes: int = 10, option_a: bool = True) -> ResNet:
    """Return the CIFAR ResNet of He et al., CVPR 2016, section 4.2; depth is 6 n + 2.

    Raises
    ------
    ValueError
        If ``depth`` is not of that form.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2 (20, 32, 44, 56, 110), not {depth!r}")
    blocks = (depth - 2) // 6
    return ResNet(num_classes, (16, 32, 64), (blocks,) * 3, option_a=option_a)


def load_resnet_cifar(state: Mapping[str, Tensor]) -> ResNet:
    """Make a CIFAR ResNet from a state dict with option A shortcuts.

    Parameters
    ----------
    state
        Keys conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear; the depth and the number
        of classes are read from them.

    Raises
    ------
    ValueError
        If keys are missing or left over.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    if blocks == 0 or "linear.weight" not in state:
        raise ValueError(f"state must have the keys layer1.0... and linear, not {sorted(state)!r}")
    model = resnet_cifar(6 * blocks + 2, len(state["linear.weight"]))
    missing, unexpected = model.load_state_dict(state, strict=False)
    # The fixed shortcuts are ours: a published option A has no parameters.
    missing = [key for key in missing if ".shortcut." not in key]
    if missing or unexpected:
        raise ValueError(
            f"state must be that of a CIFAR ResNet; missing {missing!r}, not known {unexpected!r}"
        )
    return model


def lenet(num_classes: int = 10, side: int = 32) -> nn.Sequential:
    """Return a LeNet-5 (LeCun et al., 1998) with ReLU, max pooling and padded 5x5 kernels.

    ``side`` is the input's height and width, a multiple of 4.
    """
    if side % 4:
        raise ValueError(f"side must be a multiple of 4, not {side!r}")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * (side // 4) ** 2, 128),
            relu3=nn.ReLU(),
            fc2=nn.Linear(128, num_classes),
        )
    )


def mobilenet_v1(num_classes: int = 2, width: float = 0.25) -> nn.Sequential:
    """Return MobileNetV1 (Howard et al., 2017, table 1), global pooling at any input size.

    ``width`` 0.25 at 96 x 96 is the visual wake words network of MLPerf Tiny.
    """
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    plan += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    inputs = max(8, int(32 * width))
    layers = [conv_bn_relu(3, inputs, 3, 2)]
    for outputs, stride in plan:
        outputs = int(outputs * width)
        layers.append(conv_bn_relu(inputs, inputs, 3, stride, groups=inputs))
        layers.append(conv_bn_relu(inputs, outputs, 1))
        inputs = outputs
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(inputs, num_classes),
        )
    )


def vgg16_bn(num_classes: int = 10) -> nn.Sequential:
    """Return VGG-16 with batch norm and one linear layer, as is usual for 32 x 32 pictures."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(conv_bn_relu(inputs, outputs, 3))
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(inputs, num_classes),
        )
    )


def demo_classifier(num_classes: int = 10) -> ResNet:
    """Return the demo's classifier: two residual blocks behind a strided stem (7.7 MMAC at 64).

    The same network serves the whole frame (64 x 64) and the crop (32 x 32): what differs between
    the two is the number of pixels alone.
    """
    return ResNet(num_classes, (32, 64), (1, 1), stem_stride=2, first_stride=2, stem_width=16)


def with_box_head(model: ResNet, side: int, cells: int = 4) -> ResNet:
    """Return a copy of a classifier that regresses a box instead: its trunk, another end.

    A mean over the whole map would not know where things are, so the map is averaged over
    windows of ``1 / cells`` of it, in whole pixels, and a linear layer reads all of it. The output
    is (N, 4): xmin, ymin, xmax, ymax in [0, 1] of the frame.

    Parameters
    ----------
    model
        Left as it is; the copy keeps its trained trunk.
    side
        Input height and width.
    cells
        Rows and columns that the linear layer sees where the map's side is a multiple of it.
    """
    model = copy.deepcopy(model)
    model.pool = nn.Identity()
    training, device = model.training, model.linear.weight.device
    trunk = copy.deepcopy(model).eval()
    trunk.flatten, trunk.linear = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        _, channels, height, width = trunk(torch.zeros(1, 3, side, side, device=device)).shape
    window = max(1, height // cells)
    model.pool = nn.AvgPool2d(window) if window > 1 else nn.Identity()
    model.linear = _box_layer(channels * (height // window) * (width // window)).to(device)
    with torch.no_grad():
        model.linear.weight.mul_(0.01)  # nearly a fixed box: at first the trunk is left in peace
    return model.train(training)


def any_net_predictor(
    width: float = 1.0, depths: Sequence[int] = (2, 2, 2, 2), head: Sequence[int] = (256, 64)
) -> nn.Sequential:
    """Return the papers' foreground predictor: an AnyNet that ends in a box.

    As Smart Scissor (ICCAD 2022, section III) published it: the design space of Radosavovic et al.
    (CVPR 2020, section 3.1), with a stem of stride 2, four stages of bottleneck blocks, each of
    stride 2, global mean, and linear layers (0.35 M parameters at width 1). In place of its
    sigmoid, the crop rule clips what lies outside of [0, 1], as in :class:`ForegroundPredictor`.
    It takes frames of any size; the output is (N, 4): xmin, ymin, xmax, ymax.

    Parameters
    ----------
    width
        Of 16 channels in the stem and inner widths of 16, 32, 32 and 64 in the stages; rounded to
        multiples of 8.
    depths
        Blocks of each stage, for four stages or fewer.
    head
        Outputs of the linear layers before the last.

    Raises
    ------
    ValueError
        If the width is not above 0, a stage has no block, or there are more than four.
    """
    if not width > 0 or not 1 <= len(depths) <= 4 or min(depths) < 1:
        raise ValueError(
            "width must be above 0 and depths one to four counts of at least 1, not "
            f"{width!r} and {depths!r}"
        )
    inputs, *inner = (max(8, round(width * w / 8) * 8) for w in (16, 16, 32, 32, 64))
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=conv_bn_relu(3, inputs, 3, 2))
    for number, (channels, depth) in enumerate(zip(inner, depths, strict=False), 1):
        stage = nn.Sequential()
        for i in range(depth):
            stage.append(BottleneckBlock(inputs, channels, 1 if i else 2))
            inputs = channels * BottleneckBlock.EXPANSION
        parts[f"stage{number}"] = stage
    parts.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    for number, outputs in enumerate(head, 1):
        parts[f"linear{number}"], parts[f"relu{number}"] = nn.Linear(inputs, outputs), nn.ReLU()
        inputs = outputs
    parts["box"] = _box_layer(inputs)
    return nn.Sequential(parts)


def _box_layer(inputs: int) -> nn.Linear:
    """Return a linear layer that starts from a box of most of the frame."""
    layer = nn.Linear(inputs, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.1, 0.1, 0.9, 0.9]))
    return layer


class ForegroundPredictor(nn.Sequential):
    """Light regression of a box: strided convolutions, one linear layer.

    After Smart Scissor (ICCAD 2022, section III). The output is (N, 4): xmin, ymin, xmax, ymax of
    the frame in [0, 1]; the crop rule clips what lies outside, so the graph needs no sigmoid.

    Parameters
    ----------
    side
        Input height and width, a multiple of 8.
    widths
        Output channels of the convolutions; the first three have stride 2.
    """

    def __init__(self, side: int = 32, widths: Sequence[int] = (16, 32, 32, 64)) -> None:
        if side % 8 or len(widths) < 3:
            raise ValueError(
                f"side must be a multiple of 8 and widths at least three, not {side!r}, {widths!r}"
            )
        layers = []
        inputs = 3
        for i, outputs in enumerate(widths):
            layers.append(conv_bn_relu(inputs, outputs, 3, 2 if i < 3 else 1))
            inputs = outputs
        super().__init__(
            OrderedDict(
                features=nn.Sequential(*layers),
                flatten=nn.Flatten(),
                linear=nn.Linear(inputs * (side // 8) ** 2, 4),
            )
        )
        self.side = side
