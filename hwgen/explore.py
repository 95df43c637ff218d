# SPDX-License-Identifier: Apache-2.0
"""The generator room: which configurations of the machine suit a network and a board.

`explore` compiles a network for each configuration that a board has room for, predicts what it
would take, and `pareto` keeps those that no other one beats in everything. What a configuration
takes of the FPGA is told by a function that the caller hands in, because this room does not know
the hardware.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.estimate import MemoryTiming, estimate
from hwgen.arch.fields import FieldRangeError
from hwgen.backends import program
from hwgen.boards import Board
from hwgen.ir.graph import Graph
from hwgen.passes.place import PlacementError
from hwgen.passes.schedule import CapacityError

#: Kinds of a budget that a configuration must leave room in, and that the front is about.
KINDS = ("dsp", "bram36", "lut", "ff")

#: What a search tries of the array, each with each.
SHAPES: dict[str, tuple[int, ...]] = {
    "tn": (4, 8, 16, 32),
    "ti": (8, 16, 32),
    "tp": (1, 2, 4),
    "scratchpad_banks": (3, 4),
}

#: What it tries of the memories, smallest first, until more changes nothing.
MEMORIES: dict[str, tuple[int, ...]] = {
    "scratchpad_bank_words": (512, 1024, 2048, 4096, 8192, 16384),
    "synapse_rows": (256, 512, 1024, 2048, 4096),
    "tap_entries": (1024, 2048, 4096),
}

#: Shares of the lanes whose multipliers are DSP slices.
DSP_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)

ResourceModel = Callable[[AcceleratorConfig], Mapping[str, float]]
Refusals = (PlacementError, CapacityError, FieldRangeError)


@dataclass(frozen=True)
class Cost:
    """What a network takes of a configuration; `refused` says why it does not fit, if so."""

    cycles: int = 0
    setup_cycles: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    refused: str = ""

    @property
    def bytes_per_frame(self) -> int:
        """DDR traffic of an image, both ways."""
        return self.bytes_read + self.bytes_written

    @property
    def bytes_per_cycle(self) -> float:
        """DDR traffic over the whole image; the port carries 8 each way."""
        return self.bytes_per_frame / self.cycles if self.cycles else 0.0


@dataclass(frozen=True)
class Candidate:
    """A configuration, its use of the FPGA by `KINDS`, and each network's cost on it."""

    config: AcceleratorConfig
    used: Mapping[str, float]
    costs: Mapping[str, Cost]

    @property
    def fits(self) -> bool:
        """Whether every network runs on it."""
        return not any(cost.refused for cost in self.costs.values())

    @property
    def cycles(self) -> float:
        """Geometric mean of the networks' cycles; infinite if one does not fit."""
        if not self.fits:
            return math.inf
        logs = [math.log(cost.cycles) for cost in self.costs.values()]
        return math.exp(sum(logs) / len(logs))

    @property
    def objectives(self) -> tuple[float, ...]:
        """What less is better of: cycles and DDR bytes a network, DSP, BRAM36, LUT."""
        costs = self.costs.values()
        return (
            *(cost.cycles for cost in costs),
            *(cost.bytes_per_frame for cost in costs),
            *(self.used[kind] for kind in ("dsp", "bram36", "lut")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        costs = {
            name: {
                **asdict(cost),
                "bytes_per_frame": cost.bytes_per_frame,
                "bytes_per_cycle": round(cost.bytes_per_cycle, 4),
            }
            for name, cost in self.costs.items()
        }
        return {"config": self.config.to_dict(), "used": dict(self.used), "networks": costs}


@dataclass
class Search:
    """What `explore` found: candidates in the order tried, how many had no room, how many cached.

    `default` is the board's own configuration, whether or not it has room.
    """

    default: Candidate
    candidates: list[Candidate] = field(default_factory=list)
    shapes_done: int = 0
    beyond_budget: int = 0
    cached: int = 0

    @property
    def front(self) -> list[Candidate]:
        """Candidates that none beats in all objectives, fastest first."""
        return pareto(self.candidates)


def explore(
    networks: Mapping[str, Graph],
    board: Board,
    resources: ResourceModel,
    limit_percent: float = 85,
    cache_dir: Path | str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    memories: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[int, int, AcceleratorConfig], None] | None = None,
) -> Search:
    """Cost networks on every configuration of a grid that a board has room for.

    Parameters
    ----------
    networks
        Quantized graphs by name. Weights only matter by where they are zero, calibration not at
        all, so random ones will do.
    resources
        What a configuration takes, by `KINDS`.
    limit_percent
        Of each kind of the board's budget, the most that may be taken.
    cache_dir
        Where each cost is kept as it is found, a file of JSON lines a network, so that a search
        that was interrupted goes on where it was.
    shapes, memories
        The grid by names of `AcceleratorConfig`; `SHAPES` and `MEMORIES` by default, and
        `DSP_SHARES` of the lanes. What is not named is the board's default. Memories are tried
        smallest first; a larger one is left out once it changed neither cycles nor traffic.
    progress
        Called with the number of array shapes done, that of all, and the configuration at hand.
    """
    known = {name: _Costs(graph, board, cache_dir) for name, graph in networks.items()}

    def evaluate(config: AcceleratorConfig, used: Mapping[str, float]) -> Candidate:
        return Candidate(config, used, {name: costs.of(config) for name, costs in known.items()})

    default = evaluate(board.config, resources(board.config))
    search = Search(default)
    room = {kind: getattr(board.budget, kind) * limit_percent / 100 for kind in KINDS}
    dimensions = list((MEMORIES if memories is None else memories).items())

    def walk(config: AcceleratorConfig, left: list[tuple[str, Sequence[int]]]) -> set[Any]:
        """Try the memories that are left; return the distinct outcomes, refusals apart."""
        if not left:
            used = resources(config)
            if any(used[kind] > room[kind] for kind in KINDS):
                search.beyond_budget += 1
                return set()
            if progress is not None:
                progress(search.shapes_done, len(bases), config)
            candidate = evaluate(config, used)
            search.candidates.append(candidate)
            costs = candidate.costs.values()
            return (
                {tuple((c.cycles, c.bytes_per_frame) for c in costs)} if candidate.fits else set()
            )
        name, values = left[0]
        outcomes: set[Any] = set()
        before: set[Any] = set()
        for value in sorted(values):
            larger = _replaced(config, {name: value})
            if larger is None:
                continue
            found = walk(larger, left[1:])
            if found and found == before:
                break
            before = found
            outcomes |= found
        return outcomes

    smallest = {name: min(values) for name, values in dimensions}
    bases = list(_shapes(board.config, SHAPES if shapes is None else shapes, smallest))
    for base in bases:
        walk(base, dimensions)
        search.shapes_done += 1
    if all(candidate.config != board.config for candidate in search.candidates):
        if all(default.used[kind] <= room[kind] for kind in KINDS):
            search.candidates.append(default)
    search.cached = sum(costs.read for costs in known.values())
    return search


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that fit and that no other one equals or beats in all objectives.

    The fastest comes first. Of several with equal objectives, the one tried first stays.
    """
    front: list[Candidate] = []
    for candidate in sorted((c for c in candidates if c.fits), key=lambda c: c.objectives):
        mine = candidate.objectives
        # Sorted: one that comes later cannot dominate one that came before.
        if not any(
            all(a <= b for a, b in zip(other.objectives, mine, strict=True)) for other in front
        ):
            front.append(candidate)
    return sorted(front, key=lambda c: (c.cycles, c.objectives))


def _shapes(
    base: AcceleratorConfig, grid: Mapping[str, Sequence[int]], smallest: Mapping[str, int]
) -> Iterator[AcceleratorConfig]:
    """Every legal combination of the grid, with shares of DSP lanes unless it names them.

    The memories are the smallest, because the board's may be more than a wide word allows.
    """
    found: dict[AcceleratorConfig, None] = {}
    combinations: list[dict[str, int]] = [{}]
    for name, values in grid.items():
        combinations = [{**c, name: value} for c in combinations for value in values]
    for changes in combinations:
        ti = changes.get("ti", base.ti)
        shares = [{}] if "dsp_lanes" in grid else [{"dsp_lanes": round(s * ti)} for s in DSP_SHARES]
        for lanes in shares:
            config = _replaced(base, {**changes, **lanes, **smallest})
            if config is not None:
                found[config] = None
    yield from found


def _replaced(config: AcceleratorConfig, changes: Mapping[str, int]) -> AcceleratorConfig | None:
    """Return a configuration with changes, or None if the machine cannot be built so."""
    try:
        return replace(config, **changes)
    except ValueError:
        return None


class _Costs:
    """A network's costs by configuration, each kept in a file as soon as it is known."""

    def __init__(self, graph: Graph, board: Board, cache_dir: Path | str | None) -> None:
        self.graph = graph
        self.memory = MemoryTiming(board.read_latency_cycles)
        self.known: dict[str, Cost] = {}
        self.read = 0
        self.path: Path | None = None
        if cache_dir is not None:
            name = hashlib.sha256(
                "\0".join((network_digest(graph), _code_digest(), str(self.memory))).encode()
            )
            self.path = Path(cache_dir) / f"{name.hexdigest()[:32]}.jsonl"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                self._load(self.path.read_text(encoding="utf-8"))

    def _load(self, text: str) -> None:
        """Read the lines; one that an interruption cut short is not a line."""
        whole = text[: text.rfind("\n") + 1]
        for line in whole.splitlines():
            data = json.loads(line)
            key = data.pop("config")
            self.known[key] = Cost(**data)
        if self.path is not None and whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def of(self, config: AcceleratorConfig) -> Cost:
        key = f"{config.digest():016x}"
        if key in self.known:
            self.read += 1
            return self.known[key]
        cost = self.known[key] = _cost(self.graph, config, self.memory)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"config": key, **asdict(cost)}) + "\n")
        return cost


def _cost(graph: Graph, config: AcceleratorConfig, memory: MemoryTiming) -> Cost:
    """Compile and predict."""
    try:
        bundle = program.emit(graph, config)
    except Refusals as error:
        return Cost(refused=f"{type(error).__name__}: {error}")
    found = estimate(bundle, memory)
    return Cost(found.cycles, found.setup_cycles, found.bytes_read, found.bytes_written)


def network_digest(graph: Graph) -> str:
    """Return a digest of a graph: its nodes as printed and every array in them."""
    digest = hashlib.sha256(graph.pretty().encode())
    for node in graph.nodes:
        for entry in dataclasses.fields(node):
            value = getattr(node, entry.name)
            if isinstance(value, np.ndarray):
                digest.update(value.tobytes())
    return digest.hexdigest()


def _code_digest() -> str:
    """Return a digest of what compiles and predicts, so that no cost outlives its compiler."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for folder in ("arch", "backends", "ir", "passes"):
        for path in sorted((here / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def random_network(
    model: Any, input_shape: tuple[int, int, int], seed: int = 0, scheme: str = "affine"
) -> Graph:
    """Quantize a network on random pictures, which is enough to cost it.

    `model` is a torch module or the path of an ONNX file (whose own input shape counts). Its
    weights are taken as they are; make them random under `torch.manual_seed` for a new one.
    """
    from hwgen.frontend import from_onnx
    from hwgen.passes.pipeline import to_fused
    from hwgen.quantize import quantize, quantize_model

    rng = np.random.default_rng(seed)
    how: dict[str, Any] = {"scheme": scheme, "observer": "minmax"}
    if isinstance(model, Path):
        fused = to_fused(from_onnx(model))
        shape = fused[fused.inputs[0]].type.shape
        return quantize(fused, rng.normal(size=(4, *shape)).astype(np.float32), **how)
    import torch

    pictures = rng.normal(size=(4, *input_shape)).astype(np.float32)
    return quantize_model(model, torch.from_numpy(pictures[:1]), pictures, **how)


def named_model(name: str, seed: int = 0) -> Any:
    """Return a network of `hwgen.models` with random weights, by its name.

    Raises
    ------
    ValueError
        For another name; the message lists them.
    """
    import re

    import torch

    from hwgen import models

    torch.manual_seed(seed)
    plain: dict[str, Callable[[], Any]] = {
        "resnet8": models.resnet8,
        "vgg16_bn": models.vgg16_bn,
        "mobilenet_v1": models.mobilenet_v1,
        "lenet": models.lenet,
        "demo_classifier": models.demo_classifier,
        "foreground_predictor": models.ForegroundPredictor,
    }
    if name in plain:
        return plain[name]().eval()
    if match := re.fullmatch(r"resnet(\d+)", name):
        return models.resnet_cifar(int(match.group(1))).eval()
    raise ValueError(
        f"network must be one of {sorted(plain)}, resnet20, resnet32 and so on, FILE.py:NAME, "
        f"package.module:NAME or FILE.onnx, not {name!r}"
    )
