# SPDX-License-Identifier: Apache-2.0
"""The back-end room: an hls4ml project, its compiled C++ model and the comparison with integers."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwgen.arch.files import replacing
from hwgen.arch.hls_bundle import HlsBundle, StreamTensor
from hwgen.backends.hls4ml.lower import lower
from hwgen.backends.hls4ml.refusal import AMARANTH, log2_scale, refusals
from hwgen.backends.hls4ml.reuse import COPIED_DEPTH, HlsEstimate, Target, choose, copied
from hwgen.backends.hls4ml.types import (
    Fixed,
    HlsError,
    HlsMismatch,
    HlsRefusal,
    IoType,
    Op,
)
from hwgen.boards import Board, load_board
from hwgen.ir import Graph, IRError, evaluate_integer, quantize_input, verify
from hwgen.ir.preprocess import for_channels

BackendName = Literal["Vitis", "Vivado", "VivadoAccelerator"]
BACKENDS: tuple[BackendName, ...] = ("Vitis", "Vivado", "VivadoAccelerator")
#: hls4ml versions that the tests have run with, and the first one that they have not.
OLDEST, BEYOND = (1, 2), (1, 4)
ACCELERATOR_BOARD = "pynq-z2"
#: File in the project's folder, and how many test images it has.
BUNDLE, CHECK_IMAGES = "bundle.json", 2


@dataclass(frozen=True, eq=False)
class HlsProject:
    """A network as an hls4ml model; nothing is written before `write` or `compile`.

    Attributes
    ----------
    graph
        The quantized graph that it equals.
    ops
        The hls4ml layers.
    estimate
        Cycles and resources as predicted, and the reuse factors that they belong to.
    model
        The `hls4ml.model.graph.ModelGraph`; ``model.build()`` runs the vendor's tool.
    """

    graph: Graph
    folder: Path
    ops: tuple[Op, ...]
    io_type: IoType
    backend: BackendName
    board: Board
    estimate: HlsEstimate
    model: Any

    def write(self, vectors: ArrayLike | None = None, labels: Sequence[str] | None = None) -> None:
        """Write the project: C++, weights, Tcl; for VivadoAccelerator also the board's bundle.

        `vectors`, images as `predict` takes them, become the input of the test bench that the
        vendor's tool runs, with the integer graph's results beside them. `labels` are the bundle's.
        """
        if vectors is not None:
            codes = self._codes(vectors)
            first, last = self._scales
            expected = evaluate_integer(self.graph, codes)[self.graph.outputs[0]]
            for key, values, scale in (
                ("InputData", codes, first),
                ("OutputPredictions", expected, last),
            ):
                path = self.folder / "vectors" / f"{key}.npy"
                with replacing(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, values.reshape(len(values), -1) * scale)
                self.model.config.config[key] = str(path)
        with _quiet():
            self.model.write()
        if self.backend == "VivadoAccelerator":
            self.save_bundle(labels=labels)

    def save_bundle(
        self,
        file: str | Path | None = None,
        *,
        preprocess: tuple[Sequence[float], Sequence[float]] | None = None,
        labels: Sequence[str] | None = None,
        images: int = CHECK_IMAGES,
        seed: int = 0,
    ) -> Path:
        """Write what `host.Hls4mlAccelerator` needs beside the bitstream, and return where.

        Parameters
        ----------
        file
            ``bundle.json`` in the project's folder if not given.
        preprocess
            mean and std of each channel, or one for all; the board then takes uint8 pictures too.
            By default what the graph was given, if anything.
        labels
            Of the output's channels.
        images, seed
            Random test images that go into it with the quantized graph's results.

        Raises
        ------
        HlsError
            For another hls4ml back end, whose projects have no DMA around them.
        ValueError
            For preprocessing or labels that do not fit the network, or no test images.
        """
        if self.backend != "VivadoAccelerator":
            raise HlsError(
                f"backend {self.backend} makes an IP without a DMA, which the host's driver cannot "
                "reach; try backend='VivadoAccelerator'"
            )
        if images < 1:
            raise ValueError(f"images must be 1 or more, not {images!r}")
        first, last = self.graph[self.graph.inputs[0]], self.graph[self.graph.outputs[0]]
        channels, height, width = first.type.shape
        given = self.graph.preprocess if preprocess is None else preprocess
        mean, std = (None, None) if given is None else for_channels(given, channels)
        shape = (images, height, width, channels)
        codes = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
        bundle = HlsBundle(
            name=self.model.config.get_project_name(),
            board=self.board.key,
            io_type=self.io_type,
            input=StreamTensor(first.name, first.type.shape, self._exponents[0]),
            output=StreamTensor(
                last.name, last.type.shape, self._exponents[1], last.type.shape[1:] == (1, 1)
            ),
            layers=len(self.ops),
            cycles=self.estimate.cycles,
            interval=self.estimate.interval,
            check_input=codes,
            check_output=evaluate_integer(self.graph, codes)[last.name],
            mean=mean,
            std=std,
            labels=None if labels is None else tuple(labels),
            metadata={"hls4ml": hls4ml_version()},
        )
        return bundle.save(self.folder / BUNDLE if file is None else file)

    def compile(
        self, vectors: ArrayLike | None = None, labels: Sequence[str] | None = None
    ) -> None:
        """Write the project, as `write` does, and compile its C++ model with g++.

        Raises
        ------
        HlsError
            With the compiler's output, when g++ fails or is missing.
        """
        self.write(vectors, labels)
        with _quiet() as said:
            try:
                self.model.compile()  # which writes once more
            except Exception as error:
                text = said.getvalue()[-2000:]
                raise HlsError(f"g++ did not compile {self.folder}: {error}\n{text}") from error

    def predict(self, images: ArrayLike) -> NDArray[np.int8]:
        """Run the compiled model.

        Parameters
        ----------
        images
            int8 codes (N, H, W, C), or float32 (N, C, H, W), which are quantized first.

        Returns
        -------
        int8 codes (N, H, W, C) of the output, as `hwgen.ir.evaluate_integer` returns them.
        """
        codes = self._codes(images)
        first, last = self._scales
        real = codes.astype(np.float64) * first
        with _quiet():
            # One at a time: hls4ml drops the batch's axis of a batch of one.
            rows = [np.asarray(self.model.predict(np.ascontiguousarray(x[None]))) for x in real]
        result = np.stack(rows) / last
        channels, height, width = self.graph[self.graph.outputs[0]].type.shape
        found = result.reshape(-1, height, width, channels)
        if (found != np.rint(found)).any() or found.min() < -128 or found.max() > 127:
            raise HlsMismatch(f"hls4ml's result is no int8 code: {found.min()}..{found.max()}")
        return found.astype(np.int8)

    def verify(self, images: ArrayLike) -> int:
        """Compare with the quantized graph, code for code; return how many codes were equal.

        Raises
        ------
        HlsMismatch
            At the first difference: image, position, both codes.
        """
        codes = self._codes(images)
        expected = evaluate_integer(self.graph, codes)[self.graph.outputs[0]]
        found = self.predict(codes)
        if not np.array_equal(found, expected):
            at = tuple(int(v) for v in np.argwhere(found != expected)[0])
            raise HlsMismatch(
                f"hls4ml's model differs from the quantized graph in "
                f"{int((found != expected).sum())} of {found.size} codes, first at (image, y, x, "
                f"channel) = {at}: {int(found[at])}, not {int(expected[at])}; {AMARANTH}"
            )
        return found.size

    @property
    def _scales(self) -> tuple[float, float]:
        """Of the input's and the output's codes."""
        first, last = self._exponents
        return 2.0**first, 2.0**last

    @property
    def _exponents(self) -> tuple[int, int]:
        """Of the input's and the output's scales, powers of two."""
        graph = self.graph
        return log2_scale(graph[graph.inputs[0]]), log2_scale(graph[graph.outputs[0]])

    def _codes(self, images: ArrayLike) -> NDArray[np.int8]:
        array = np.asarray(images)
        return array if array.dtype == np.int8 else quantize_input(self.graph, array)


def emit(
    graph: Graph,
    folder: str | Path,
    *,
    name: str = "network",
    io_type: IoType = "io_stream",
    backend: BackendName = "Vitis",
    board: str | Path | Board = "pynq-z2",
    target: Target = "latency",
    limit: float = 0.85,
    clock_hz: int | None = None,
) -> HlsProject:
    """Turn a quantized graph into an hls4ml project that computes the same bits.

    Nothing is written here: `HlsProject.write` or `HlsProject.compile` does.

    Parameters
    ----------
    graph
        At the quantized level, of ``scheme="power_of_two"``, with one input and one output.
    folder
        Where the project will be written.
    name
        Of the C++ function; a C identifier.
    io_type
        ``io_stream``: layers pass pixels on through FIFOs, for any size. ``io_parallel``: whole
        maps at once, for very small networks.
    backend
        Of hls4ml. ``VivadoAccelerator`` adds the block design and driver of pynq-z2.
    target
        ``"latency"``: the fewest cycles that fit the board. A number: the fewest multipliers that
        take no more cycles than that. ``"resource"``: the fewest multipliers there are.
    limit
        Share of the board's budget to use at most.
    clock_hz
        Clock to synthesise for; the board's if not given.

    Raises
    ------
    HlsRefusal
        Naming every node that hls4ml cannot compute exactly.
    DoesNotFit
        When no legal reuse factors bring it onto the board.
    HlsError
        For wrong options, or an hls4ml outside of the versions that were tested.
    """
    if graph.level != "quantized":
        raise IRError(f"graph must be at the quantized level, not {graph.level}; run quantize")
    if io_type not in ("io_stream", "io_parallel"):
        raise HlsError(f"io_type must be 'io_stream' or 'io_parallel', not {io_type!r}")
    if backend not in BACKENDS:
        raise HlsError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if not (name.isascii() and name.isidentifier()):
        raise HlsError(f"name must be a C identifier, not {name!r}")
    target_board = board if isinstance(board, Board) else load_board(board)
    if backend == "VivadoAccelerator" and target_board.key != ACCELERATOR_BOARD:
        raise HlsError(
            f"backend VivadoAccelerator knows {ACCELERATOR_BOARD}, not {target_board.key}; "
            "try backend Vitis or Vivado and a block design of your own"
        )
    verify(graph)
    refused = refusals(graph, io_type)
    if refused:
        raise HlsRefusal(refused)
    ops = lower(graph, io_type)
    estimate = choose(ops, io_type, target_board, target, limit)
    clock = clock_hz or target_board.accelerator_hz
    model = _model(Path(folder), name, ops, io_type, backend, target_board, estimate, clock)
    return HlsProject(graph, Path(folder), ops, io_type, backend, target_board, estimate, model)


def hls4ml_version() -> str:
    """Return the installed hls4ml's version.

    Raises
    ------
    HlsError
        When there is none, or none that this was tested with.
    """
    from importlib.metadata import PackageNotFoundError, version

    wanted = f"hls4ml>={OLDEST[0]}.{OLDEST[1]},<{BEYOND[0]}.{BEYOND[1]}"
    try:
        found = version("hls4ml")
    except PackageNotFoundError as error:
        raise HlsError(f"hls4ml is not installed; try pip install '{wanted}'") from error
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if not OLDEST <= numbers < BEYOND:
        raise HlsError(
            f"hls4ml {found} was never tested with this back end, and a version may rewrite layers "
            f"in its own way; try pip install '{wanted}', or {AMARANTH[4:]}"
        )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keep hls4ml from printing and warning; what it printed can be read."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield said


def _model(
    folder: Path,
    name: str,
    ops: tuple[Op, ...],
    io_type: IoType,
    backend: BackendName,
    board: Board,
    estimate: HlsEstimate,
    clock_hz: int,
) -> Any:
    """Build hls4ml's model as its own converters do, and check what it made of it."""
    hls4ml_version()
    with _quiet():
        from hls4ml.model.graph import ModelGraph
        from hls4ml.utils.config import create_config

        options: dict[str, Any] = {"io_type": io_type, "clock_period": 1e9 / clock_hz}
        if backend == "VivadoAccelerator":
            options["board"] = ACCELERATOR_BOARD
        else:
            options["part"] = board.part
        config = create_config(
            output_dir=str(folder), project_name=name, backend=backend, **options
        )
        config["HLSConfig"] = {
            "Model": {
                "Precision": {"default": "fixed<16,6>"},
                "ReuseFactor": 1,
                "Strategy": "Latency",
                "BramFactor": np.inf,
                "BitExact": False,
            },
            "LayerName": {op.name: _layer_config(op, estimate) for op in ops},
        }
        layers = [_layer(op) for op in ops]
        model = ModelGraph.from_layer_list(
            config, layers, inputs=[ops[0].name], outputs=[ops[-1].name]
        )
    _check(model, ops, estimate)
    for reader, depths in estimate.fifo_depth.items():
        for read, depth in zip(_node(model, reader).inputs, depths, strict=True):
            _set_depth(model.get_layer_output_variable(read), depth)
    for producer in copied(ops) if io_type == "io_stream" else ():
        _set_depth(_node(model, producer).get_output_variable(), COPIED_DEPTH)
    return model


def _node(model: Any, name: str) -> Any:
    """Return hls4ml's node of a layer; it renames a Reshape that repacks a stream."""
    return model.graph.get(name) or model.graph[f"repack_{name}"]


def _set_depth(variable: Any, depth: int) -> None:
    """Set a stream's depth, as hls4ml's own FIFO optimization does."""
    if isinstance(variable.pragma, tuple) and variable.pragma[0] == "stream":
        variable.pragma = ("stream", depth)


def _layer_config(op: Op, estimate: HlsEstimate) -> dict[str, Any]:
    precision = {kind: str(type_) for kind, type_ in op.types.items()}
    config: dict[str, Any] = {"Precision": precision}
    if op.name in estimate.reuse:
        config["ReuseFactor"] = estimate.reuse[op.name]
        config["Strategy"] = estimate.strategy[op.name]
    return config


def _layer(op: Op) -> dict[str, Any]:
    """Return a layer as hls4ml's converters describe it."""
    layer: dict[str, Any] = {"class_name": op.kind, "name": op.name, **op.attributes}
    if op.kind == "InputLayer":
        layer["input_shape"] = list(op.shape)
    else:
        layer["inputs"] = list(op.inputs)
    for key, values in op.arrays.items():
        layer[f"{key}_data"] = values
    return layer


def _check(model: Any, ops: tuple[Op, ...], estimate: HlsEstimate) -> None:
    """Check that hls4ml's passes left every layer, type, weight and reuse factor as given."""

    def wrong(op: Op, what: str, found: object, given: object) -> HlsError:
        return HlsError(
            f"hls4ml changed {what} of layer {op.name} ({op.kind}) from {given} to {found}; this "
            f"version's passes break bit exactness; {AMARANTH}"
        )

    for op in ops:
        node = model.graph.get(op.name)
        if node is None:
            if op.kind == "Reshape":
                continue  # renamed where a stream is repacked
            raise wrong(op, "the existence", "nothing", op.kind)
        found = node.get_output_variable().type.precision
        if not _same(found, op.types["result"]):
            raise wrong(op, "the result type", found, op.types["result"])
        for kind in ("accum", "weight", "scale", "bias"):
            if kind in op.types:
                found = node.get_attr(f"{kind}_t").precision
                if not _same(found, op.types[kind]):
                    raise wrong(op, f"the {kind} type", found, op.types[kind])
        for key, values in op.arrays.items():
            data = node.weights["weight" if key == "depthwise" else key].data
            if np.sort(data, axis=None).tolist() != np.sort(values, axis=None).tolist():
                raise wrong(op, f"the {key}", "other values", "these")
        if op.name in estimate.reuse:
            reuse = node.get_attr("reuse_factor")
            if reuse != estimate.reuse[op.name]:
                raise wrong(op, "the reuse factor", reuse, estimate.reuse[op.name])
            strategy = node.get_attr("strategy")
            if strategy.lower() != estimate.strategy[op.name].lower():
                raise wrong(op, "the strategy", strategy, estimate.strategy[op.name])
    extra = [n.name for n in model.get_layers() if n.name not in {op.name for op in ops}]
    odd = [name for name in extra if not name.startswith(("clone_", "repack_"))]
    if odd:
        raise HlsError(f"hls4ml added the layers {', '.join(odd)}; {AMARANTH}")


def _same(found: Any, given: Fixed) -> bool:
    integer = given.width + given.lsb
    same = found.width == given.width and found.integer == integer
    same &= bool(found.signed) == given.signed
    modes = (str(found.rounding_mode), str(found.saturation_mode))
    wanted = (
        ("RND", "SAT_SYM" if given.symmetric else "SAT") if given.requantizes else ("TRN", "WRAP")
    )
    return same and modes == wanted
