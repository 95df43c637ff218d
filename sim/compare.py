# SPDX-License-Identifier: Apache-2.0
"""The simulation room: both back ends side by side for one network: bits, cycles, resources."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import host
from hwgen.arch import Bundle, GoldenRun, MemoryTiming, estimate
from hwgen.backends import program
from hwgen.backends.hls4ml import HlsProject
from hwgen.ir import Graph, evaluate_integer
from rtl.resource_model import predict_resources
from sim.board import SimulatedBoard


@dataclass(frozen=True)
class Side:
    """What one back end takes of the board; all of it estimated but for `counted` cycles.

    Attributes
    ----------
    equal
        Whether every code equals the quantized graph's.
    cycles, interval
        Of one image, and from one image to the next.
    counted
        The cycles are the RTL's own counter's.
    """

    equal: bool
    cycles: int
    interval: int
    dsp: int
    bram36: float
    lut: int
    ff: int
    counted: bool = False


@dataclass(frozen=True)
class Comparison:
    """Both back ends for one network on one board."""

    name: str
    board: str
    images: int
    amaranth: Side
    hls4ml: Side
    hls: dict[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether both give the quantized graph's bits."""
        return self.amaranth.equal and self.hls4ml.equal

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"what": "estimates of both back ends, not a vendor's report", **asdict(self)}


def compare_backends(
    graph: Graph, project: HlsProject, codes: NDArray[np.int8], name: str, rtl: bool = False
) -> Comparison:
    """Compile a network for both back ends and run images through both.

    Parameters
    ----------
    graph
        At the quantized level.
    project
        Of the same graph (`hwgen.backends.hls4ml.emit`); it is compiled here, with g++.
    codes
        int8 (N, H, W, C).
    rtl
        Run the Amaranth RTL in simulation too; else its golden model alone.

    Raises
    ------
    ValueError
        When `project` is of another graph.
    PlacementError, CapacityError
        When the network does not fit the board's accelerator.
    """
    if project.graph is not graph:
        raise ValueError("project must be made of the graph that is compared, not of another one")
    expected = evaluate_integer(graph, codes)[graph.outputs[0]]
    board = project.board
    bundle = program.emit(graph, board.config, name=name)
    project.compile()
    theirs = np.array_equal(project.predict(codes), expected)
    golden = GoldenRun(bundle)
    ours = np.stack([golden.run(one)[0] for one in codes]).reshape(expected.shape)
    equal = np.array_equal(ours, expected)
    cycles = estimate(bundle, MemoryTiming(board.read_latency_cycles)).cycles
    if rtl:
        results, cycles = _on_rtl(bundle, codes, board.read_latency_cycles)
        equal = equal and np.array_equal(results.reshape(expected.shape), expected)
    usage, found = predict_resources(board.config, board.family), project.estimate
    return Comparison(
        name=name,
        board=board.key,
        images=len(codes),
        amaranth=Side(
            equal, cycles, cycles, usage.dsp, usage.bram36, usage.lut, usage.ff, counted=rtl
        ),
        hls4ml=Side(
            theirs, found.cycles, found.interval, found.dsp, found.bram36, found.lut, found.ff
        ),
        hls={"io_type": project.io_type, "backend": project.backend},
    )


def _on_rtl(
    bundle: Bundle, codes: NDArray[np.int8], latency_cycles: int
) -> tuple[NDArray[np.int8], int]:
    """Run images on the simulated board; return the codes and the last image's cycles."""
    with SimulatedBoard(bundle, memory_latency_cycles=latency_cycles) as board:
        with host.Accelerator(bundle, device=board) as accelerator:
            results = np.stack([accelerator.run_int8(one) for one in codes])
            assert accelerator.last_run is not None
            return results, accelerator.last_run.cycles
