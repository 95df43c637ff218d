# SPDX-License-Identifier: Apache-2.0
"""The tests room: streamed hls4ml layers as processes with bounded FIFOs, to find deadlocks."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping

from hwgen.backends.hls4ml.types import Op

Step = tuple[str, str]
"""("get" or "put", FIFO)."""


def run_streams(
    ops: tuple[Op, ...], depths: Mapping[str, tuple[int, ...]], copied_depth: int, images: int = 2
) -> str:
    """Run `images` images through; return what everybody waits for when all stand still, or "".

    Pixels are counted, not computed: a window emits when its last pixel came, padding emits
    without reading, a copy goes on when all of its readers have room.
    """
    readers: dict[str, list[str]] = {op.name: [] for op in ops}
    room: dict[str, int] = {}
    for op in ops:
        for position, name in enumerate(op.inputs):
            fifo = f"{name} -> {op.name}.{position}"
            readers[name].append(fifo)
            room[fifo] = depths[op.name][position]
    processes: dict[str, Generator[Step, None, None]] = {}
    by_name = {op.name: op for op in ops}
    for op in ops:
        inputs = [f"{name} -> {op.name}.{position}" for position, name in enumerate(op.inputs)]
        outputs = readers[op.name]
        if len(outputs) > 1:
            room[op.name] = copied_depth
            processes[f"copy of {op.name}"] = _copy(op.name, outputs, images * _pixels(op))
            outputs = [op.name]
        processes[op.name] = _process(op, by_name, inputs, outputs, images)
    held = dict.fromkeys(room, 0)
    wanted = {name: next(process, None) for name, process in processes.items()}
    moved = True
    while moved:
        moved = False
        for name, process in processes.items():
            while (step := wanted[name]) is not None:
                kind, fifo = step
                if held[fifo] == (0 if kind == "get" else room[fifo]):
                    break
                held[fifo] += -1 if kind == "get" else 1
                wanted[name] = next(process, None)
                moved = True
    return ", ".join(f"{name}: {step}" for name, step in wanted.items() if step is not None)


def _pixels(op: Op) -> int:
    return math.prod(op.shape[:-1])


def _copy(source: str, outputs: list[str], pixels: int) -> Generator[Step, None, None]:
    for _ in range(pixels):
        yield "get", source
        yield from (("put", fifo) for fifo in outputs)


def _process(
    op: Op, by_name: Mapping[str, Op], inputs: list[str], outputs: list[str], images: int
) -> Generator[Step, None, None]:
    put = [("put", fifo) for fifo in outputs]
    at = op.attributes
    for _ in range(images):
        if op.kind == "ZeroPadding2D":
            for y in range(at["out_height"]):
                for x in range(at["out_width"]):
                    inside = 0 <= y - at["pad_top"] < at["in_height"]
                    if inside and 0 <= x - at["pad_left"] < at["in_width"]:
                        yield "get", inputs[0]
                    yield from put
        elif op.kind in ("Conv2D", "DepthwiseConv2D", "MaxPooling2D"):
            kind = "pool" if op.kind == "MaxPooling2D" else "filt"
            kernel = at[f"{kind}_height"], at[f"{kind}_width"]
            written = 0
            for y in range(at["in_height"]):
                for x in range(at["in_width"]):
                    yield "get", inputs[0]
                    dy, dx = y - kernel[0] + 1, x - kernel[1] + 1
                    if min(dy, dx) >= 0 and not (
                        dy % at["stride_height"] or dx % at["stride_width"]
                    ):
                        written += 1
                        yield from put
            assert written == _pixels(op), op.name
        elif op.kind in ("Dense", "GlobalAveragePooling2D"):
            source = by_name[op.inputs[0]]
            if source.kind == "Reshape":  # a flattened stream still comes pixel by pixel
                source = by_name[source.inputs[0]]
            yield from [("get", inputs[0])] * _pixels(source)
            yield from put
        elif op.kind == "Reshape":
            yield from [
                step for _ in range(_pixels(by_name[op.inputs[0]])) for step in _one(inputs, put)
            ]
        else:
            for _ in range(_pixels(op)):
                yield from _one(inputs, put)


def _one(inputs: list[str], put: list[Step]) -> list[Step]:
    return [("get", fifo) for fifo in inputs] + put
