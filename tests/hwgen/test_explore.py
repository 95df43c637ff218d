# SPDX-License-Identifier: Apache-2.0
"""The tests room: the search of configurations: costs, budget, front, interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hwgen import explore as room
from hwgen.arch import AcceleratorConfig, MemoryTiming, estimate
from hwgen.backends import program
from hwgen.boards import Board, load_board
from hwgen.cli import main
from hwgen.explore import Candidate, Cost, explore, named_model, pareto, random_network
from hwgen.ir.graph import Graph

SHAPES = {"tn": (4, 8), "ti": (8, 16), "tp": (1, 2)}
MEMORIES = {"scratchpad_bank_words": (128, 256, 512), "synapse_rows": (256, 512)}


def resources(config: AcceleratorConfig) -> dict[str, float]:
    """Return made-up usage that grows as the real one does."""
    macs = config.macs_per_cycle
    words = config.scratchpad_words * config.ti
    weights = config.synapse_rows * config.synapse_row_bytes
    return {"dsp": macs // 4, "bram36": (words + weights) // 4096, "lut": 10 * macs, "ff": macs}


def small() -> nn.Module:
    """Return two convolutions with random weights."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_network(small().eval(), (3, 12, 12))


@pytest.fixture(scope="module")
def board() -> Board:
    known = load_board("pynq-z2")
    return replace(known, config=replace(known.config, scratchpad_bank_words=256, synapse_rows=256))


def test_costs_are_those_of_the_compiler(graph: Graph, board: Board) -> None:
    """Each candidate has what compile and estimate say of it, and leaves the budget its room."""
    found = explore({"net": graph}, board, resources, shapes=SHAPES, memories=MEMORIES)
    assert len({c.config.macs_per_cycle for c in found.candidates}) > 3
    for candidate in found.candidates[::7]:
        cost = candidate.costs["net"]
        if cost.refused:
            with pytest.raises(room.Refusals):
                program.emit(graph, candidate.config)
            continue
        want = estimate(program.emit(graph, candidate.config), MemoryTiming(30))
        assert (cost.cycles, cost.bytes_read) == (want.cycles, want.bytes_read)
        assert cost.bytes_per_cycle == pytest.approx(cost.bytes_per_frame / cost.cycles)
    assert found.default.config == board.config
    assert board.config in [c.config for c in found.candidates]


def test_what_does_not_fit_says_why(graph: Graph, board: Board) -> None:
    """A refused candidate keeps the compiler's reason and is on no front."""
    found = explore(
        {"net": graph},
        board,
        resources,
        shapes={"tn": (8,)},
        memories={"scratchpad_bank_words": (8, 512)},
    )
    small = next(c for c in found.candidates if c.config.scratchpad_bank_words == 8)
    assert small.costs["net"].refused.startswith("PlacementError: ")
    assert not small.fits and small not in found.front
    assert json.loads(json.dumps(small.to_dict()))["networks"]["net"]["refused"]


def test_the_limit_counts(graph: Graph, board: Board) -> None:
    """What takes more than the limit of any kind is not compiled, only counted."""
    tight = explore(
        {"net": graph}, board, resources, limit_percent=20, shapes=SHAPES, memories=MEMORIES
    )
    assert tight.beyond_budget
    assert all(c.used["dsp"] <= 44 for c in tight.candidates)


def test_memory_that_changes_nothing_is_not_tried(graph: Graph, board: Board) -> None:
    """After two sizes with the same outcome, the larger ones are left out."""
    words = (512, 1024, 2048, 4096)
    found = explore(
        {"net": graph},
        board,
        resources,
        shapes={"tn": (8,)},
        memories={"scratchpad_bank_words": words},
    )
    tried = {c.config.scratchpad_bank_words for c in found.candidates} - {256}
    assert tried == {512, 1024}


def candidate(cycles: int, dsp: int, lut: int = 0, refused: str = "") -> Candidate:
    costs = {"net": Cost(cycles=cycles, refused=refused)}
    return Candidate(AcceleratorConfig(), {"dsp": dsp, "bram36": 0, "lut": lut}, costs)


def test_front() -> None:
    """Nothing on the front is beaten in all; of equals one stays; the fastest comes first."""
    fast, slow, beaten = candidate(10, 9), candidate(20, 5), candidate(20, 6)
    misfit = candidate(1, 1, refused="no")
    assert pareto([beaten, slow, misfit, fast, candidate(10, 9, 1)]) == [fast, slow]
    assert pareto([fast, candidate(10, 9)]) == [fast]
    assert pareto([]) == []


def test_two_networks_are_one_mean() -> None:
    """The mean of cycles is geometric, and one misfit is a misfit."""
    costs = {"a": Cost(cycles=100), "b": Cost(cycles=400)}
    both = Candidate(AcceleratorConfig(), {}, costs)
    assert both.cycles == pytest.approx(200)
    assert not Candidate(AcceleratorConfig(), {}, {**costs, "c": Cost(refused="no")}).fits


def test_an_interrupted_search_goes_on(
    graph: Graph, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was costed is read from the file, a line cut short is not; the result is the same."""
    how: dict[str, Any] = {"shapes": SHAPES, "memories": MEMORIES, "cache_dir": tmp_path}
    real, calls = room._cost, []

    def dies(*arguments: Any) -> Cost:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(room, "_cost", dies)
    with pytest.raises(KeyboardInterrupt):
        explore({"net": graph}, board, resources, **how)
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"config": "12')

    found = explore({"net": graph}, board, resources, **how)
    assert found.cached >= 5
    again = explore({"net": graph}, board, resources, **how)
    assert again.candidates == found.candidates
    assert again.cached == len(again.candidates)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_another_network_has_another_file(graph: Graph, board: Board, tmp_path: Path) -> None:
    """Costs are kept by the graph's own digest."""
    other = random_network(small().eval(), (3, 12, 12))
    for each in (graph, other, graph):
        explore({"net": each}, board, resources, shapes={}, memories={}, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_names_of_networks() -> None:
    """Names of hwgen.models, the CIFAR ResNets by depth; others are refused with the list."""
    assert isinstance(named_model("resnet20"), nn.Module)
    with pytest.raises(ValueError, match="network must be one of .*'resnet8'.*not 'alexnet'"):
        named_model("alexnet")


def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table marks the best; JSON has every candidate and the command."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(room, "SHAPES", {"tn": (8, 16), "ti": (16,), "tp": (1,)})
    monkeypatch.setattr(room, "MEMORIES", {"scratchpad_bank_words": (4096,)})
    report = tmp_path / "explore.json"
    arguments = ["explore", "--board", "pynq-z2", "--network", "resnet8", "--json", str(report)]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    assert "best" in printed and "16x16x1" in printed
    data = json.loads(report.read_text())
    assert data["run"].startswith("shears explore --board pynq-z2 --network resnet8")
    assert data["front"][0]["networks"]["resnet8"]["cycles"] > 20_000
    assert len(data["candidates"]) >= len(data["front"]) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "alexnet"], "network must be one of"),
        (["--network", "resnet8", "--input", "32"], "--input must be CxHxW"),
        (["--network", "."], "is a bundle, compiled already"),
    ],
)
def test_the_verb_refuses(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work is done, and with what is accepted."""
    assert main(["explore", *options]) == 1
    assert message in capsys.readouterr().err
