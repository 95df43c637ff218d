# SPDX-License-Identifier: Apache-2.0
"""The IR room: the immutable graph, its rewriting and its printer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from hwgen.ir.nodes import Node
from hwgen.ir.preprocess import Preprocess
from hwgen.ir.types import IRError, Level

Replacement = Node | tuple[Node, ...] | str


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, and the names of the graph's inputs and outputs.

    Attributes
    ----------
    nodes
        Every node comes after those it reads.
    inputs, outputs
        Names of nodes. A node may be an output and be read by others as well.
    level
        ``float`` (as the user wrote it), ``fused`` or ``quantized``; `hwgen.ir.verify` checks
        the rules of the level.
    preprocess
        Mean and std of what the network is fed, if the module that it was read from said so.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    level: Level = "float"
    preprocess: Preprocess | None = None

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def __getitem__(self, name: str) -> Node:
        """Return the node of this name."""
        if name not in self._by_name:
            raise KeyError(f"the graph has no node {name!r}; it has {', '.join(self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        """Say whether a node of this name exists."""
        return name in self._by_name

    def consumers(self, name: str) -> tuple[Node, ...]:
        """Nodes that read `name`, each once, in order."""
        return self._consumers[name]

    def sole_consumer(self, name: str) -> Node | None:
        """Return the only reader of `name`, or None if others or the user see it too."""
        found = self._consumers[name]
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def rewrite(self, changes: Mapping[str, Replacement], *, level: Level | None = None) -> Graph:
        """Return a graph in which each named node is replaced.

        Parameters
        ----------
        changes
            For each node to replace: a node, several nodes (the last one takes over the old
            node's readers), or the name of another node (whose result its readers then read).
        level
            The new graph's level; unchanged by default.

        Nodes that nothing needs any more are dropped and the order is restored.
        """
        alias: dict[str, str] = {}
        nodes: dict[str, Node] = {}
        replaces: dict[str, str] = {}  # new node -> the old one it came for
        for node in self.nodes:
            change = changes.get(node.name, node)
            if isinstance(change, str):
                alias[node.name] = change
                continue
            added = (change,) if isinstance(change, Node) else change
            for new in added:
                nodes[new.name] = new
                replaces[new.name] = node.name
            if added[-1].name != node.name:
                alias[node.name] = added[-1].name

        def resolve(name: str, reader: str | None = None) -> str:
            while name in alias:
                # The nodes that replace an old node may still read it, if they kept it.
                if reader is not None and replaces[reader] == name and name in nodes:
                    break
                name = alias[name]
            return name

        linked = {}
        for name, node in nodes.items():
            inputs = tuple(resolve(i, name) for i in node.inputs)
            linked[name] = node if inputs == node.inputs else node.updated(inputs=inputs)
        outputs = tuple(resolve(name) for name in self.outputs)
        ordered = _sorted(linked, (*self.inputs, *outputs))
        return Graph(ordered, self.inputs, outputs, level or self.level, self.preprocess)

    def pretty(self) -> str:
        """Return the graph as text, one node a line."""
        lines = [f"graph ({self.level}) {', '.join(self.inputs)} -> {', '.join(self.outputs)}"]
        width = max((len(node.name) for node in self.nodes), default=0)
        for node in self.nodes:
            call = f"{node.op}({', '.join(node.inputs)})"
            source = f"  # {node.source}" if str(node.source) else ""
            lines.append(f"  {node.name:<{width}} = {call} {node.describe()} : {node.type}{source}")
        return "\n".join(lines)


def _sorted(nodes: Mapping[str, Node], roots: Iterable[str]) -> tuple[Node, ...]:
    """Return the nodes that `roots` need, in a stable topological order; `IRError` on a cycle."""
    order: dict[str, Node] = {}
    needed: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        if name not in nodes:
            raise IRError(f"node {name!r} is read but does not exist")
        needed.add(name)
        stack.extend(nodes[name].inputs)
    waiting = [node for name, node in nodes.items() if name in needed]
    while waiting:
        later = []
        for node in waiting:
            if all(name in order for name in node.inputs):
                order[node.name] = node
            else:
                later.append(node)
        if len(later) == len(waiting):
            names = ", ".join(repr(node.name) for node in later)
            raise IRError(f"the nodes {names} read each other in a cycle")
        waiting = later
    return tuple(order.values())
