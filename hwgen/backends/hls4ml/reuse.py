# SPDX-License-Identifier: Apache-2.0
"""The back-end room: legal reuse factors for a target, and what they cost, before HLS runs.

Everything here is an estimate of what Vitis HLS makes of hls4ml's C++, not a report. The rules:

- A layer of the Resource strategy has ``n_in * n_out / reuse`` multipliers and takes ``reuse``
  cycles and `PIXEL_OVERHEAD` for each output pixel; its weights lie in block RAM, as one word of
  all multipliers' operands a cycle. The factor must be one that hls4ml accepts
  (`legal_reuse_factors`), or it would silently take another.
- A depthwise layer of the Latency strategy has ``n_in / reuse`` multipliers and takes ``reuse``
  cycles for each pixel read; weights that are powers of two are wires.
- Streamed layers overlap: a network takes as long as its slowest layer, and each layer's wait for
  the rows of its first window. In parallel io layers follow each other.
- A multiplier is a DSP48E1 (25 x 18), two where the weights are wider than 18 bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from hwgen.backends.hls4ml.types import DoesNotFit, HlsError, IoType, Op, Work
from hwgen.boards import Board

Target = Literal["latency", "resource"] | int

#: Cycles of a pixel beside its products: window, line buffer, pipeline (hls4ml's own figure).
PIXEL_OVERHEAD = 6
#: Multipliers of one layer from which HLS' unrolling and partitioning fail or take hours.
MAX_MULTIPLIERS = 4096
#: Pixels in the FIFO before a stream is copied to several readers.
COPIED_DEPTH = 2
_RESOURCES = ("dsp", "bram36", "lut", "ff")


@dataclass(frozen=True)
class LayerEstimate:
    """One hls4ml layer: what it takes, estimated.

    `cycles` are those that it is busy for one image, `wait` those before its first output.
    """

    layer: str
    node: str
    kind: str
    reuse: int
    strategy: str
    multipliers: int
    cycles: int
    wait: int
    dsp: int
    bram36: float
    lut: int
    ff: int


@dataclass(frozen=True)
class HlsEstimate:
    """A network: estimates, not reports.

    Attributes
    ----------
    cycles
        Of one image, first pixel in to last result out.
    interval
        Cycles from one image to the next.
    dsp, bram36, lut, ff
        Sums over layers and FIFOs.
    reuse, strategy
        Of each layer that multiplies.
    fifo_depth
        Of the streams that each layer reads, in pixels.
    """

    cycles: int
    interval: int
    dsp: int
    bram36: float
    lut: int
    ff: int
    layers: tuple[LayerEstimate, ...]
    reuse: dict[str, int]
    strategy: dict[str, str]
    fifo_depth: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"what": "estimates before HLS, not a vendor's report", **asdict(self)}


@lru_cache(maxsize=4096)
def legal_reuse_factors(n_in: int, n_out: int) -> tuple[int, ...]:
    """Return the reuse factors that hls4ml takes for a matrix product, rising.

    A factor divides ``n_in * n_out``; below n_in it divides n_in, above it is a multiple of it
    (hls4ml's `_validate_reuse_factor`; it replaces any other by the nearest of these).
    """
    total = n_in * n_out
    divisors = {
        d for k in range(1, math.isqrt(total) + 1) if total % k == 0 for d in (k, total // k)
    }
    legal = []
    for factor in sorted(divisors):
        multipliers = -(-total // min(n_in, factor))
        if factor < n_in and multipliers % n_out:
            continue
        if factor >= n_in and factor % n_in:
            continue
        legal.append(factor)
    return tuple(legal)


def choose(
    ops: tuple[Op, ...], io_type: IoType, board: Board, target: Target, limit: float = 0.85
) -> HlsEstimate:
    """Choose legal reuse factors for a target.

    Every layer takes the largest factor with which it is no slower than the slowest one has to be,
    so the search is over that one number.

    Raises
    ------
    DoesNotFit
        Naming the layer that takes the most of what runs out.
    """
    if isinstance(target, bool) or not (
        target in ("latency", "resource") or isinstance(target, int)
    ):
        raise HlsError(
            f"target must be 'latency', 'resource' or a number of cycles, not {target!r}"
        )
    options = {op.name: _options(op.work, io_type) for op in ops if op.work is not None}
    for op in ops:
        if op.work is not None and not options[op.name]:
            raise DoesNotFit(
                f"layer {op.node!r} has {op.work.multiplications:,} multiplications, and no legal "
                f"reuse factor leaves at most {MAX_MULTIPLIERS:,} multipliers; try fewer channels"
            )

    def costed(bound: int) -> HlsEstimate:
        reuse = {
            op.name: max(
                [r for r in options[op.name] if _busy(op.work, r, io_type) <= bound],
                default=options[op.name][0],
            )
            for op in ops
            if op.work is not None
        }
        return estimate(ops, io_type, reuse)

    bounds = sorted({_busy(op.work, r, io_type) for op in ops for r in options.get(op.name, ())})
    rising = target == "latency"
    closest: HlsEstimate | None = None
    for bound in (bounds or [1]) if rising else reversed(bounds or [1]):
        found = costed(bound)
        if not isinstance(target, str) and found.cycles > target:
            closest = closest or found
            if bound == bounds[0]:
                raise DoesNotFit(_too_slow(found, target))
            continue
        if not _over(found, board, limit):
            return found
        closest = found if rising or closest is None else closest
    assert closest is not None, "there is one bound at least"
    raise DoesNotFit(_does_not_fit(closest, io_type, board, limit, target))


def estimate(ops: tuple[Op, ...], io_type: IoType, reuse: dict[str, int]) -> HlsEstimate:
    """Add up what a network takes with these reuse factors."""
    rows = [_layer(op, io_type, reuse.get(op.name, 1)) for op in ops]
    depths = fifo_depths(ops) if io_type == "io_stream" else {}
    by_name = {op.name: op for op in ops}
    bram, lut, ff = 0.0, 0, 0
    for reader, each in depths.items():
        for name, depth in zip(by_name[reader].inputs, each, strict=True):
            op = by_name[name]
            blocks, tables, flops = _fifo(depth, op.types["result"].width * op.shape[-1])
            bram, lut, ff = bram + blocks, lut + tables, ff + flops
    for name in copied(ops) if depths else ():
        op = by_name[name]
        blocks, tables, flops = _fifo(COPIED_DEPTH, op.types["result"].width * op.shape[-1])
        bram, lut, ff = bram + blocks, lut + tables, ff + flops
    busy = [row.cycles for row in rows] or [0]
    if io_type == "io_stream":
        waits: dict[str, int] = {}
        for op, row in zip(ops, rows, strict=True):
            waits[op.name] = max((waits[i] for i in op.inputs), default=0) + row.wait
        cycles, interval = max(busy) + waits[ops[-1].name], max(busy)
    else:
        cycles, interval = sum(busy), max(busy)
    return HlsEstimate(
        cycles=cycles,
        interval=interval,
        dsp=sum(row.dsp for row in rows),
        bram36=math.ceil(2 * (bram + sum(row.bram36 for row in rows))) / 2,
        lut=lut + sum(row.lut for row in rows),
        ff=ff + sum(row.ff for row in rows),
        layers=tuple(row for row, op in zip(rows, ops, strict=True) if op.kind != "InputLayer"),
        reuse=reuse,
        strategy={op.name: _strategy(op.work) for op in ops if op.work is not None},
        fifo_depth=depths,
    )


def copied(ops: tuple[Op, ...]) -> tuple[str, ...]:
    """Return the layers whose results are read more than once."""
    reads = [name for op in ops for name in op.inputs]
    return tuple(op.name for op in ops if reads.count(op.name) > 1)


def fifo_depths(ops: tuple[Op, ...]) -> dict[str, tuple[int, ...]]:
    """Return the depth, in pixels, of each stream that a layer reads, so that none waits for ever.

    Any depth does in a chain; it gets a row. Where a tensor is copied to several readers whose
    results meet again (a residual, parallel convolutions), the path that needs more of the map
    before its first result could starve while the other one's FIFO is full. So every reader but
    the one with the longest lag gets a FIFO that holds the whole map.
    """
    readers: dict[str, list[tuple[str, int]]] = {}
    for op in ops:
        for position, name in enumerate(op.inputs):
            readers.setdefault(name, []).append((op.name, position))
    by_name = {op.name: op for op in ops}
    lag: dict[
        str, int
    ] = {}  # from a layer's input to the network's output, in rows * scale + pixels
    scale = 1 << 16
    for op in reversed(ops):
        behind = max((lag[reader] for reader, _ in readers.get(op.name, [])), default=0)
        lag[op.name] = behind * op.attributes.get("stride_height", 1) + _lag(op, scale)
    depths = {op.name: [0] * len(op.inputs) for op in ops if op.inputs}
    for name, found in readers.items():
        shape = by_name[name].shape
        row, whole = (shape[1] if len(shape) == 3 else 1), math.prod(shape[:-1])
        # Of readers with the same lag, any one may be the shallow one.
        longest = max(found, key=lambda reader: lag[reader[0]])
        for reader, position in found:
            shallow = (reader, position) == longest
            depths[reader][position] = max(2, row if shallow else whole)
    return {name: tuple(each) for name, each in depths.items()}


def _lag(op: Op, scale: int) -> int:
    """Order of what a layer must have read before its first result: rows, then pixels."""
    at = op.attributes
    if op.kind in ("Dense", "GlobalAveragePooling2D"):
        return scale * scale
    if op.kind == "ZeroPadding2D":
        return -(at["pad_top"] * scale + at["pad_left"])
    kernel = "pool" if op.kind == "MaxPooling2D" else "filt"
    return (at.get(f"{kernel}_height", 1) - 1) * scale + at.get(f"{kernel}_width", 1) - 1


def _strategy(work: Work) -> str:
    return "Latency" if work.kind == "depthwise" else "Resource"


def _options(work: Work, io_type: IoType) -> tuple[int, ...]:
    if work.constant:
        return (1,)
    if work.kind == "depthwise":
        total = work.multiplications
        legal = tuple(d for d in range(1, total + 1) if total % d == 0)
    else:
        legal = legal_reuse_factors(work.n_in, work.n_out)
        if work.kind == "conv" and io_type == "io_parallel":
            # hls4ml accepts more, but its convolution of whole maps then computes something else.
            legal = tuple(r for r in legal if r <= work.n_in)
    return tuple(r for r in legal if work.multiplications // r <= MAX_MULTIPLIERS)


def _busy(work: Work | None, reuse: int, io_type: IoType) -> int:
    """Cycles that a layer with multiplications is busy with one image."""
    assert work is not None
    if work.kind == "depthwise":
        return work.positions_in * reuse
    idle = max(0, work.positions_in - work.positions) if io_type == "io_stream" else 0
    return work.positions * (reuse + PIXEL_OVERHEAD) + idle


def _layer(op: Op, io_type: IoType, reuse: int) -> LayerEstimate:
    width, channels = op.types["result"].width, op.shape[-1]
    pixels = math.prod(op.shape[:-1])
    dsp, bram, lut, ff, multipliers, wait = 0, 0.0, 20, 20, 0, 1
    cycles = pixels if io_type == "io_stream" else 1
    if op.kind == "InputLayer":
        cycles, lut, ff = pixels if io_type == "io_stream" else 0, 0, 0
    work = op.work
    window = _window_cost(op)
    if work is not None:
        cycles = _busy(work, reuse, io_type)
        multipliers = 0 if work.constant else work.multiplications // reuse
        dsp = multipliers * (2 if work.weight_bits > 18 else 1)
        adders = (work.multiplications // reuse) * op.types["accum"].width
        lut += adders // 2 if work.constant else adders // 4
        ff += work.n_out * op.types["accum"].width
        if not work.constant and reuse > 1:
            word = multipliers * work.weight_bits
            bram = _blocks(reuse, word)
            lut += work.n_in * work.data_bits // 4  # who reads which part of the window
        elif not work.constant:
            lut += multipliers * work.weight_bits // 2
        if io_type == "io_stream":
            lut += window[0]
            ff += window[1]
            rows = op.attributes.get("filt_height", 1) - 1
            wait = (rows * op.attributes.get("in_width", 1) + 1) * max(
                1, cycles // work.positions_in
            )
            if work.kind == "dense":
                wait = cycles + work.positions_in
                ff += work.n_in * work.data_bits
    elif op.kind in ("Merge", "BatchNormalization", "Activation"):
        lut += width * channels * 2
    elif op.kind == "MaxPooling2D":
        cycles = op.attributes["in_height"] * op.attributes["in_width"]
        wait = op.attributes["in_width"] * (op.attributes["pool_height"] - 1) + 1
        if io_type == "io_stream":
            lut += window[0]
            ff += window[1]
    elif op.kind == "GlobalAveragePooling2D":
        cycles = wait = op.attributes["in_height"] * op.attributes["in_width"]
        lut += channels * op.types["accum"].width
        ff += channels * op.types["accum"].width
    if io_type == "io_parallel":
        wait = cycles
        ff += pixels * channels * width
        lut += pixels * channels * width // 4
    return LayerEstimate(
        op.name, op.node, op.kind, reuse, _strategy(work) if work else "", multipliers,
        cycles, wait, dsp, bram, lut, ff,
    )  # fmt: skip


def _window_cost(op: Op) -> tuple[int, int]:
    """LUT of the line buffer (shift registers of 32 bits) and FF of the sliding window."""
    kernel = [
        op.attributes.get(f"{kind}_{axis}", 0)
        for kind in ("filt", "pool")
        for axis in ("height", "width")
    ]
    rows, columns = max(kernel[0], kernel[2]), max(kernel[1], kernel[3])
    if not rows:
        return 0, 0
    channels = op.attributes.get("n_chan", op.shape[-1])
    bits = op.work.data_bits if op.work else op.types["result"].width
    lut = (rows - 1) * channels * bits * math.ceil(op.attributes["in_width"] / 32)
    return lut, rows * columns * channels * bits


def _fifo(depth: int, bits: int) -> tuple[float, int, int]:
    """BRAM36, LUT and FF of a FIFO: shift registers up to 1,024 bits or 32 words, then RAM."""
    if depth <= 32 or depth * bits <= 1024:
        return 0.0, bits * math.ceil(depth / 32) + 20, bits + 10
    return _blocks(depth, bits), 60, bits + 20


def _blocks(depth: int, bits: int) -> float:
    """Return the BRAM36 of a memory of `depth` words, from blocks of 18 Kbit."""
    shapes = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
    return min(math.ceil(depth / words) * math.ceil(bits / wide) for words, wide in shapes) / 2


def _over(found: HlsEstimate, board: Board, limit: float) -> list[str]:
    return [
        kind for kind in _RESOURCES if getattr(found, kind) > limit * getattr(board.budget, kind)
    ]


def _too_slow(found: HlsEstimate, target: int) -> str:
    worst = max(found.layers, key=lambda row: row.cycles)
    return (
        f"does not fit: {found.cycles:,} cycles are the fewest, not {target:,}, because layer "
        f"{worst.node!r} needs {worst.cycles:,} of them with reuse factor {worst.reuse}; try a "
        "larger target, fewer channels or a smaller image"
    )


def _does_not_fit(
    found: HlsEstimate, io_type: IoType, board: Board, limit: float, target: Target
) -> str:
    kind = max(
        _over(found, board, limit), key=lambda k: getattr(found, k) / getattr(board.budget, k)
    )
    budget, total = getattr(board.budget, kind), getattr(found, kind)
    worst = max(found.layers, key=lambda row: getattr(row, kind))
    layers = sum(getattr(row, kind) for row in found.layers)
    because = f"layer {worst.node!r} needs {getattr(worst, kind):,g} of {budget:,} {kind}"
    if layers < total / 2:
        because = f"FIFOs between layers need {total - layers:,g} of {budget:,} {kind}"
    tries = ["fewer or thinner layers (shears compress)", "--backend amaranth"]
    if not isinstance(target, str):
        tries.insert(0, f"target 'latency' or more than {target:,} cycles")
    if io_type == "io_parallel":
        tries.insert(0, "io_stream")
    return (
        f"does not fit {board.key}: {total:,g} of {budget:,} {kind} (at most {100 * limit:g} % "
        f"may be used), because {because}; try {', '.join(tries)}"
    )
