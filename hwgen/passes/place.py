# SPDX-License-Identifier: Apache-2.0
"""The passes room: where every feature map lives, and in which strips each layer runs.

A map stays in the scratchpad from the layer that makes it to the last one that reads it. Where not
all of them fit, the largest ones of the tightest layer are *spilled*: they live in DDR, and the
layers that write or read them work on strips of rows, in buffers of two strips each, so that one is
loaded or stored while the other is computed::

    x     0 ..  4095  bank 0            y = conv(x)
    y  4096 ..  8191  bank 1            z = conv(y) + x      x and y in different banks
    z  spilled: rows 0..6, 7..13, ...   two strips of 7 rows in bank 2, stored as they are done

Maps alive together do not overlap, and a layer's input and residual lie in different banks.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from hwgen.arch.bundle import BASE_INPUT, BASE_OUTPUT, BASE_SCRATCH
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, Mode
from hwgen.ir.machine import MachineGraph, MachineLayer, TensorLayout
from hwgen.passes.scratchpad_search import Tenant, search

_DDR_ALIGNMENT = 64
_FIRST_STRIP_ROWS = 2
#: A strip of the picture may be this much taller than the one that computes while it is loaded.
_STRIP_GROWTH = 4 / 3
_CHUNK_OF_SYNAPSE = 0.6
#: Bus beats that loading a strip may take for each step of the array, to be hidden behind it.
_BEATS_A_STEP = 0.5
#: Steps of a COMPUTE, at least, that make its dispatch and its parameters small beside it.
_LEAST_STEPS = 256


class PlacementError(ValueError):
    """The feature maps do not fit the scratchpad; the message names the layer and the sizes."""


class _DoesNotFit(Exception):
    """Internal: nothing more fits at the layer with this index."""

    def __init__(self, layer: int) -> None:
        self.layer = layer


@dataclass(frozen=True)
class Region:
    """Words of the scratchpad: `slots` maps or strips of `rows` rows, one behind the other."""

    address: int
    rows: int
    slots: int


@dataclass(frozen=True)
class DdrTensor:
    """Where a map lies in DDR: tiles of rows of pixels; image k is `image_bytes` * k further on."""

    base: int
    offset_bytes: int
    image_bytes: int
    plane_bytes: int
    row_bytes: int

    def at(self, image: int, tile: int, row: int) -> int:
        """Return the offset of a row from the base register."""
        return (
            self.offset_bytes
            + image * self.image_bytes
            + tile * self.plane_bytes
            + row * self.row_bytes
        )


@dataclass(frozen=True)
class Strip:
    """Output rows [first, last) of one image."""

    image: int
    first: int
    last: int


@dataclass(frozen=True)
class LayerPlan:
    """How one layer runs: for each chunk of groups, for each strip, for each group of the chunk.

    Attributes
    ----------
    chunks
        Ranges [a, b) of groups whose weights are on chip together.
    strips
        Of one image, or of all of them when the network runs layer by layer.
    buffers
        Strip buffers of the spilled ones among ``input``, ``residual`` and ``output``.
    interleaved
        Its strips run between those of the layer before, whose output it reads, each as soon as its
        rows are there: the bus then loads for this layer while the array works for that one.
    """

    chunks: tuple[tuple[int, int], ...]
    strips: tuple[Strip, ...]
    buffers: dict[str, Region]
    interleaved: bool = False


@dataclass(frozen=True)
class Placement:
    """The result.

    Attributes
    ----------
    regions
        Scratchpad regions of the maps that stay on chip; a slot an image.
    ddr
        Where the input and the spilled maps lie in DDR.
    outputs
        Where the network's outputs lie in DDR.
    plans
        One a layer.
    layer_major
        Whether each layer runs for all images before the next one begins.
    """

    regions: dict[str, Region]
    ddr: dict[str, DdrTensor]
    outputs: dict[str, DdrTensor]
    plans: tuple[LayerPlan, ...]
    images: int
    layer_major: bool
    scratch_bytes: int


def place(
    graph: MachineGraph,
    config: AcceleratorConfig,
    images: int = 1,
    layer_major: bool = False,
    synapse_rows: int | None = None,
) -> Placement:
    """Find a home for every map of a network that runs `images` images a program.

    Parameters
    ----------
    layer_major
        Every layer runs for all images, so that weights are fetched once; else every image runs
        through all layers before the next one.
    synapse_rows
        SB rows that weights may take; all of them if None.

    Raises
    ------
    PlacementError
        When a layer does not even fit in strips of one row (or no placement was found in a
        bounded search).
    """
    planner = _Planner(graph, config, images, layer_major, synapse_rows or config.synapse_rows)
    spilled: set[str] = set()
    while True:
        try:
            return planner.attempt(spilled)
        except _DoesNotFit as tight:
            # An input that is an output too is loaded whole to be stored again.
            kept = {graph.input} & set(graph.outputs)
            resident = [t for t in planner.lifetimes(spilled) if t.name not in kept]
            here = [tensor for tensor in resident if tensor.alive_at(tight.layer)]
            if not resident:
                raise PlacementError(planner.explain(tight.layer)) from None
            spilled.add(max(here or resident, key=lambda tensor: tensor.words).name)


class _Planner:
    """One network on one machine, tried with more and more maps spilled."""

    def __init__(
        self,
        graph: MachineGraph,
        config: AcceleratorConfig,
        images: int,
        layer_major: bool,
        synapse_rows: int,
    ) -> None:
        self.graph, self.config = graph, config
        self.images, self.layer_major = images, layer_major
        self.synapse_rows = synapse_rows
        self.slots = images if layer_major else 1

    def lifetimes(self, spilled: set[str]) -> list[Tenant]:
        """List the maps that stay on chip, in order of birth.

        The network's outputs live to the end. When images follow each other, input and outputs
        share their place with nobody, so that loads and stores overlap with computing.
        """
        graph = self.graph
        whole = self.images > 1 and not self.layer_major
        last = len(graph.layers)
        tensors = {graph.input: Tenant(graph.input, self._words(graph.input), -1, -1)}
        for index, layer in enumerate(graph.layers):
            for name in (layer.input, layer.residual):
                if name is not None:
                    tensors[name].death = index
            tensors[layer.output] = Tenant(layer.output, self._words(layer.output), index, index)
        for name in graph.outputs:
            tensors[name].death = last
        if whole:
            for name in (graph.input, *graph.outputs):
                tensors[name].birth, tensors[name].death = -1, last
        return [tensor for tensor in tensors.values() if tensor.name not in spilled]

    def _words(self, name: str) -> int:
        return self.graph.layouts[name].words * self.slots

    def attempt(self, spilled: set[str]) -> Placement:
        """Place everything with these maps spilled, or raise _DoesNotFit.

        A pair of layers that does not fit together runs one after the other.
        """
        pairs = self._pairs(spilled)
        while True:
            try:
                return self._attempt(spilled, pairs)
            except _DoesNotFit as tight:
                if tight.layer not in pairs:
                    raise
                pairs = pairs - {tight.layer}

    def _attempt(self, spilled: set[str], pairs: set[int]) -> Placement:
        """Place the maps that stay; then, layer by layer, strip buffers into what is left free."""
        resident = [
            # The maps of one layer of a pair live while the other one runs, too.
            replace(
                tensor,
                birth=tensor.birth - (tensor.birth in pairs),
                death=tensor.death + (tensor.death + 1 in pairs),
            )
            for tensor in self.lifetimes(spilled)
        ]
        indices = range(len(self.graph.layers))
        wanted = [sum(t.words for t in resident if t.alive_at(i)) for i in indices]
        worst = max(indices, key=wanted.__getitem__)
        if wanted[worst] > self.config.scratchpad_words:
            raise _DoesNotFit(worst)
        for quick in (True, False):
            placed: dict[str, int] = {}
            apart = self._apart(spilled, quick)
            if search(resident, 0, placed, apart, self.config):
                break
        else:
            raise _DoesNotFit(worst)
        plans: list[LayerPlan] = []
        before: list[Tenant] = []
        for index in indices:
            if index + 1 not in pairs:
                together = [index - 1, index] if index in pairs else [index]
                found, before = self._place_buffers(together, spilled, resident, before, placed)
                plans += found
        return self._result(spilled, plans, placed)

    def _pairs(self, spilled: set[str]) -> set[int]:
        """Choose the layers that run interleaved with the one before.

        They are those that work lane by lane on a spilled map: they do so little with each word
        that loading it takes longer, while the layer that made it kept the bus idle.
        """
        pairs: set[int] = set()
        for index, layer in enumerate(self.graph.layers[1:], 1):
            before = self.graph.layers[index - 1]
            if (
                layer.mode != Mode.DENSE
                and layer.input == before.output
                and layer.input in spilled
                and layer.residual is None
                and index - 1 not in pairs
                and self._fits(before, 0, len(before.groups))
            ):
                pairs.add(index)
        return pairs

    def explain(self, index: int) -> str:
        """Say what layer `index` would need at the least."""
        layer = self.graph.layers[index]
        rows = {"input": layer.span, "residual": 1, "output": 1}
        chunks = self._chunks(layer, True)
        need = {
            role: rows[role] * self._row_words(layer, role, name, chunks)
            for role, name in _roles(layer)
        }
        listed = ", ".join(f"{role} {words}" for role, words in need.items())
        return (
            f"layer {layer.name!r} needs {sum(need.values())} scratchpad words even in strips of "
            f"one output row ({listed}), and the machine has {self.config.scratchpad_words} in "
            f"{self.config.scratchpad_banks} banks, input and residual in different ones; try more "
            "or larger banks, fewer channels, or a smaller input resolution"
        )

    def _apart(self, spilled: set[str], quick: bool) -> dict[str, set[str]]:
        """Which regions do not share a bank.

        Those of a layer's input and residual must not. To be `quick`, what is loaded lies apart
        from what is written meanwhile, too: a slice takes one write a cycle.
        """
        apart: dict[str, set[str]] = {}
        for index, layer in enumerate(self.graph.layers):
            places = {
                role: _buffer(index, role) if name in spilled else name
                for role, name in _roles(layer)
            }
            *read, output = places.values()
            pairs = [tuple(read)] if len(read) == 2 else []
            for role, name in _roles(layer)[:-1]:
                if quick and (name in spilled or name == self.graph.input):
                    pairs.append((places[role], output))
            for a, b in itertools.chain(pairs, (pair[::-1] for pair in pairs)):
                apart.setdefault(a, set()).add(b)
        return apart

    def _place_buffers(
        self,
        together: list[int],
        spilled: set[str],
        resident: list[Tenant],
        before: list[Tenant],
        placed: dict[str, int],
    ) -> tuple[list[LayerPlan], list[Tenant]]:
        """Choose the strips of a layer, or of a pair, and place their buffers; raise _DoesNotFit.

        Strips are as short as keeps the bus less busy than the array, so that little time is lost
        before the first of them is loaded and after the last one is computed; two of each in a
        buffer. Best of all their first loads find room beside the buffers of the layer `before`,
        and what is loaded lies apart from what is written.
        """
        if not any(name in spilled for i in together for _, name in _roles(self.graph.layers[i])):
            return [self._plan(i, 0, 1, spilled, False, False)[0] for i in together], []
        apart = {quick: self._apart(spilled, quick) for quick in (True, False)}
        for slots in (2, 1):
            for rows in self._heights(together):
                for early, quick in itertools.product((True, False), repeat=2):
                    plans, buffers = self._buffers(together, rows, slots, spilled, early)
                    first = min(buffer.birth for buffer in buffers)
                    living = [t for t in resident if t.birth <= together[-1] and t.death >= first]
                    living += before if early else []
                    trial = dict(placed)
                    if search(
                        [*living, *buffers],
                        len(living),
                        trial,
                        apart[quick],
                        self.config,
                        downwards=together[0] % 2 == 1,
                    ):
                        placed.update(trial)
                        return plans, buffers
        raise _DoesNotFit(together[-1])

    def _heights(self, together: list[int]) -> list[int]:
        """List strip heights worth trying, in rows of the last layer, the best first.

        That is the shortest strip that keeps the array busier than the bus, with maps and with
        fresh weights; then shorter ones.
        """
        layers, layouts = [self.graph.layers[i] for i in together], self.graph.layouts
        whole = layouts[layers[-1].output].height
        heights = sorted({-(-whole // count) for count in range(1, whole + 1)})

        def keeps_busy(rows: int) -> bool:
            beats, steps, least, fresh = 0, 0, math.inf, math.inf
            for layer in reversed(layers):
                _, height, width = layouts[layer.output].shape
                into = layouts[layer.input]
                rows = min(rows, height)
                first, last = layer.input_rows(1, min(rows + 1, height), into.height)
                words = (last - first) * into.row_words * into.tiles
                if layer.residual is not None:
                    words += (
                        rows * layouts[layer.residual].row_words * layouts[layer.residual].tiles
                    )
                beats += words * self.config.word_bytes // BEAT_BYTES
                pixels = rows * -(-width // self.config.tp)
                steps += pixels * sum(len(group.taps) for group in layer.groups)
                least = min(least, pixels * min(len(group.taps) for group in layer.groups))
                if layer.mode == Mode.DENSE:
                    fresh = min(fresh, pixels)
                rows *= layer.stride[0]
            # The first strip takes a step a pixel with each SB row, while the next rows are loaded.
            row_beats = self.config.synapse_row_bytes // BEAT_BYTES
            return (
                beats <= _BEATS_A_STEP * steps
                and least >= _LEAST_STEPS
                and _BEATS_A_STEP * fresh >= row_beats
            )

        best = next(filter(keeps_busy, heights), whole)
        return [rows for rows in reversed(heights) if rows <= best]

    def _buffers(
        self, together: list[int], rows: int, slots: int, spilled: set[str], early: bool
    ) -> tuple[list[LayerPlan], list[Tenant]]:
        """Plan a layer, or a pair, in strips of `rows` of the last one's rows.

        Where `early`, what is loaded has its place while the layer before still runs.
        """
        plans, buffers = [], []
        for index in together:
            height = rows
            if index != together[-1]:
                height = rows * self.graph.layers[together[-1]].stride[0]
            plan, more = self._plan(
                index, height, slots, spilled, index != together[0], len(together) > 1
            )
            plans.append(plan)
            for buffer in more:
                ahead = early and not buffer.name.endswith("output") and index == together[0]
                buffers.append(replace(buffer, birth=together[0] - ahead, death=together[-1]))
        return plans, buffers

    def _plan(
        self,
        index: int,
        height: int,
        slots: int,
        spilled: set[str],
        interleaved: bool,
        whole: bool,
    ) -> tuple[LayerPlan, list[Tenant]]:
        """Cut a layer into chunks and strips of `height` rows; list the buffers that it needs.

        Height 0 is the whole map. All groups are one chunk where `whole`.
        """
        layer = self.graph.layers[index]
        roles = [(role, name) for role, name in _roles(layer) if name in spilled]
        chunks = self._chunks(layer, bool(roles))
        if whole:
            chunks = ((0, len(layer.groups)),)
        strips = self._strips(layer, height or self.graph.layouts[layer.output].height)
        regions, buffers = {}, []
        for role, name in roles:
            rows = self._buffer_rows(layer, role, strips)
            used = slots if len(strips) * len(chunks) > 1 else 1
            words = self._row_words(layer, role, name, chunks) * rows * used
            buffers.append(Tenant(_buffer(index, role), words, index, index))
            regions[role] = Region(0, rows, used)
        return LayerPlan(chunks, strips, regions, interleaved), buffers

    def _chunks(self, layer: MachineLayer, spilled: bool) -> tuple[tuple[int, int], ...]:
        """Cut the groups into chunks whose weights are on chip together, whole tiles each.

        With every map on chip a chunk is a group: its weights are used up, then freed. A layer
        that works lane by lane sees one tile of its input for each of its output.
        """
        count = len(layer.groups)
        step = self.config.ti // self.config.tn
        streamed_input = layer.input == self.graph.input and self._fits(layer, 0, count)
        if not spilled and not streamed_input:
            return tuple((g, g + 1) for g in range(count))
        if spilled and layer.mode != Mode.DENSE:
            return tuple((g, min(g + step, count)) for g in range(0, count, step))
        chunks, first = [], 0
        while first < count:
            last = min(first + step, count)
            while last < count and self._fits(layer, first, min(last + step, count)):
                last = min(last + step, count)
            chunks.append((first, last))
            first = last
        if len(chunks) == 2 and self._fits(layer, 0, count, share=0.9):
            return ((0, count),)
        return tuple(chunks)

    def _fits(
        self, layer: MachineLayer, first: int, last: int, share: float = _CHUNK_OF_SYNAPSE
    ) -> bool:
        rows = sum(group.synapse_rows + 2 for group in layer.groups[first:last])
        return rows <= share * self.synapse_rows

    def _row_words(
        self, layer: MachineLayer, role: str, name: str, chunks: tuple[tuple[int, int], ...]
    ) -> int:
        """Words of one row of a strip buffer."""
        layout = self.graph.layouts[name]
        if role == "input":
            return layout.row_words * max(len(input_tiles(layer, c, layout)) for c in chunks)
        return layout.row_words * max(len(chunk_tiles(layer, c)) for c in chunks)

    def _buffer_rows(self, layer: MachineLayer, role: str, strips: tuple[Strip, ...]) -> int:
        if role != "input":
            return max(strip.last - strip.first for strip in strips)
        height = self.graph.layouts[layer.input].height
        spans = (layer.input_rows(strip.first, strip.last, height) for strip in strips)
        return max(last - first for first, last in spans)

    def _strips(self, layer: MachineLayer, height: int) -> tuple[Strip, ...]:
        """Cut the output's rows; small strips first where the picture comes from DDR."""
        whole = self.graph.layouts[layer.output].height
        strips = []
        for image in range(self.slots):
            first = 0
            step = _FIRST_STRIP_ROWS if layer.input == self.graph.input else height
            while first < whole:
                last = min(first + min(step, height), whole)
                if whole - last < min(step, height) // 2 and whole - first <= height:
                    last = whole
                strips.append(Strip(image, first, last))
                first, step = last, math.ceil(step * _STRIP_GROWTH)
        return tuple(strips)

    def _result(
        self, spilled: set[str], plans: list[LayerPlan], placed: dict[str, int]
    ) -> Placement:
        """Fill in the addresses, and lay out DDR."""
        graph, layouts = self.graph, self.graph.layouts
        regions = {
            name: Region(placed[name], layouts[name].height, self.slots)
            for name in layouts
            if name in placed
        }
        final = []
        for index, plan in enumerate(plans):
            buffers = {
                role: Region(placed[_buffer(index, role)], region.rows, region.slots)
                for role, region in plan.buffers.items()
            }
            final.append(replace(plan, buffers=buffers))
        load = graph.input_load
        image = load.plane_bytes * layouts[graph.input].tiles or (
            load.pitch_bytes * layouts[graph.input].height
        )
        ddr = {
            graph.input: DdrTensor(
                BASE_INPUT, 0, _aligned(image), load.plane_bytes, load.pitch_bytes
            )
        }
        ends = {BASE_OUTPUT: 0, BASE_SCRATCH: 0}

        def reserve(name: str, base: int) -> DdrTensor:
            row = layouts[name].row_words * self.config.word_bytes
            plane = row * layouts[name].height
            size = _aligned(plane * layouts[name].tiles)
            tensor = DdrTensor(base, ends[base], size, plane, row)
            ends[base] += size * self.images
            return tensor

        outputs = {name: reserve(name, BASE_OUTPUT) for name in graph.outputs}
        for name in layouts:
            if name in spilled and name != graph.input:
                ddr[name] = outputs[name] if name in outputs else reserve(name, BASE_SCRATCH)
        return Placement(
            regions,
            ddr,
            outputs,
            tuple(final),
            self.images,
            self.layer_major,
            ends[BASE_SCRATCH],
        )


def chunk_tiles(layer: MachineLayer, chunk: tuple[int, int]) -> range:
    """Return the output tiles that a chunk of groups writes."""
    first, last = layer.groups[chunk[0]], layer.groups[chunk[1] - 1]
    return range(first.output_tile, last.output_tile + 1)


def input_tiles(layer: MachineLayer, chunk: tuple[int, int], layout: TensorLayout) -> range:
    """Return the input tiles that a chunk of groups reads: all, or lane by lane its own."""
    return range(layout.tiles) if layer.mode == Mode.DENSE else chunk_tiles(layer, chunk)


def _roles(layer: MachineLayer) -> list[tuple[str, str]]:
    """List (role, tensor) of a layer; input and residual come first."""
    roles = [("input", layer.input)]
    if layer.residual is not None:
        roles.append(("residual", layer.residual))
    return [*roles, ("output", layer.output)]


def _buffer(index: int, role: str) -> str:
    """Name of a strip buffer; no tensor has it."""
    return f"layer {index}: {role}"


def _aligned(size: int) -> int:
    return -(-size // _DDR_ALIGNMENT) * _DDR_ALIGNMENT
