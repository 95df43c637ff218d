# SPDX-License-Identifier: Apache-2.0
"""The host room: the programs of the self test, written with the instruction set alone.

Each builder returns a `Job`: a program, what it reads, and the bytes that it must leave. For
memories the answer is known by construction; for layers the golden model computes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa, resample
from hwgen.arch.bundle import BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.crop import resize
from hwgen.arch.interpreter import Interpreter, Memory
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Mode, Opcode
from hwgen.arch.timing import read_after_write_cycles

Bytes = NDArray[np.uint8]

UNTOUCHED = 0xA5
"""What the output region holds before a run."""

_ADDRESSES = 1 << 16
_PROGRAM_INSTRUCTIONS = 1024


@dataclass(frozen=True)
class Job:
    """One run and its answer.

    Attributes
    ----------
    program
        Instructions; END is the last.
    constants, inputs
        What the base registers of constants and input point to.
    wanted
        The output region after the run, bytes that the program leaves alone included.
    compared
        Which bytes of it count; None is all.
    """

    program: bytes
    constants: bytes
    inputs: Bytes
    wanted: Bytes
    compared: NDArray[np.bool_] | None = None


class Program:
    """Instructions one after the other; tokens make each queue wait where it says so."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, opcode: Opcode, **fields: int) -> None:
        """Append an instruction."""
        self._parts.append(isa.encode(opcode, **fields))

    def load(
        self, target: LoadTarget, base: int, offset: int, size: int, place: int, **more: int
    ) -> None:
        """Append a LOAD of one row of `size` bytes."""
        fields = {"offset_bytes": offset, "row_bytes": size, "rows": 1, "destination": place}
        self.add(Opcode.LOAD, target=target, base=base, **{**fields, **more})

    def load_words(
        self, config: AcceleratorConfig, base: int, offset: int, words: int, place: int, **more: int
    ) -> None:
        """Append a LOAD of whole scratchpad words that lie end to end in DDR."""
        ti = config.ti
        sizes = {"words_per_row": words, "step_bytes": ti, "take_bytes": ti}
        self.load(LoadTarget.SCRATCHPAD, base, offset, words * ti, place, **sizes, **more)

    def store_words(self, offset: int, words: int, source: int, **more: int) -> None:
        """Append a STORE of whole words, end to end."""
        where = {"base": BASE_OUTPUT, "offset_bytes": offset, "source": source}
        self.add(Opcode.STORE, rows=1, words_per_row=words, **where, **more)

    def end(self) -> bytes:
        """Append END; returns the program."""
        self.add(Opcode.END)
        return b"".join(self._parts)


def random_bytes(rng: np.random.Generator, size: int) -> Bytes:
    """Return `size` random bytes."""
    return rng.integers(0, 256, size, dtype=np.uint8)


def nothing() -> Job:
    """Return a program of END alone."""
    return Job(Program().end(), b"", np.zeros(0, np.uint8), np.zeros(0, np.uint8))


def bad_opcode() -> Job:
    """Return an instruction that does not exist, with a good checksum."""
    data = bytes(isa.INSTRUCTION_BYTES - isa.CRC_BYTES)
    program = data + zlib.crc32(data).to_bytes(isa.CRC_BYTES, "little")
    return Job(program, b"", np.zeros(0, np.uint8), np.zeros(0, np.uint8))


def bus_patterns(config: AcceleratorConfig) -> Job:
    """Take each line of the 64 bit bus high alone and low alone, to the scratchpad and back."""
    ones = np.uint64(1) << np.arange(64, dtype=np.uint64)
    data = np.stack([ones, ~ones], axis=1).view(np.uint8).reshape(-1)
    data = data[: config.scratchpad_words * config.ti]
    return _through(config, data, [(0, len(data), 1, len(data), 0)])


def loopback(config: AcceleratorConfig, rng: np.random.Generator) -> Job:
    """Move sizes around words, beats and bursts, on both sides of a 4 KiB boundary."""
    ti, burst = config.ti, config.max_burst_beats * BEAT_BYTES
    most = config.scratchpad_words * ti
    sizes = {1, 7, 8, 9, ti, ti + 3, burst - 8, burst, burst + 8, 2 * burst + 5, 1000, 4096, 5000}
    cases = []
    for number, size in enumerate(sorted(size for size in sizes if size + ti <= most)):
        offset = (0, 8, 4096 - 8, 4096 - burst - 8, 24)[number % 5]
        cases.append((offset, size, 1, 0, number % ti))
    words = min(config.scratchpad_words // 4, 5)
    cases += [(16, words * ti - 3, 4, -(-words * ti // 8) * 8 + 40, 0)]
    return _through(config, random_bytes(rng, 2 * 4096 + 5000 + 8), cases)


def _through(
    config: AcceleratorConfig, data: Bytes, cases: Sequence[tuple[int, int, int, int, int]]
) -> Job:
    """Load and store cases of (offset, bytes a row, rows, pitch, lead) one after the other."""
    ti, program = config.ti, Program()
    answers: list[Bytes] = []
    place = 0
    for number, (offset, size, rows, pitch, lead) in enumerate(cases):
        lead = lead if lead + size <= config.scratchpad_words // rows * ti else 0
        words, pad = -(-(lead + size) // ti), (number * 37 + 1) % 128
        # From the second on, a LOAD waits until the STORE before has read its words.
        program.load(
            LoadTarget.SCRATCHPAD,
            BASE_INPUT,
            offset,
            size,
            0,
            rows=rows,
            pitch_bytes=pitch,
            destination_pitch=words,
            words_per_row=words,
            step_bytes=ti,
            take_bytes=ti,
            lead_bytes=lead,
            pad_value=pad,
            wait_store=int(number > 0),
            signal_store=1,
        )
        more = int(number + 1 < len(cases))
        program.store_words(place, rows * words, 0, wait_load=1, signal_load=more)
        for row in range(rows):
            stream = np.full(words * ti, pad, np.uint8)
            first = offset + row * pitch
            stream[lead : lead + size] = data[first : first + size]
            answers.append(stream)
        gap = np.full(BEAT_BYTES, UNTOUCHED, np.uint8)
        answers.append(gap)  # nothing may be written between
        place += rows * words * ti + len(gap)
    return Job(program.end(), b"", data, np.concatenate(answers))


def scratchpad(config: AcceleratorConfig, data: Bytes) -> Job:
    """Fill every bank, then read every bank: `data` goes in and comes out."""
    program, words = Program(), config.scratchpad_bank_words
    size, banks = words * config.ti, config.scratchpad_banks
    for bank in range(banks):
        last = int(bank == banks - 1)
        program.load_words(config, BASE_INPUT, bank * size, words, bank * words, signal_store=last)
    for bank in range(banks):
        program.store_words(bank * size, words, bank * words, wait_load=int(bank == 0))
    return Job(program.end(), b"", data, data)


def plain_parameters(config: AcceleratorConfig) -> NDArray[np.int8]:
    """Rows of channel parameters that leave a sum as it is: times 2^14, shifted by 14."""
    return parameter_rows(config, [{"multiplier": 1 << 14, "shift": 14}] * config.tn)


def parameter_rows(
    config: AcceleratorConfig, channels: Sequence[dict[str, int]]
) -> NDArray[np.int8]:
    """Lay the parameters of tn channels out as SB rows: int8 (parameter_rows, tn, ti)."""
    size = config.parameter_rows * config.ti
    slots = [isa.CHANNEL_PARAMETERS.pack(one).to_bytes(size, "little") for one in channels]
    raw = np.frombuffer(b"".join(slots), np.int8)
    return raw.reshape(config.tn, config.parameter_rows, config.ti).transpose(1, 0, 2).copy()


def tap_bytes(taps: Sequence[tuple[int, int, int]]) -> bytes:
    """Lay taps of (offset, dy, dx) out as the tap buffer takes them."""
    return b"".join(
        isa.TAP.pack({"offset": offset, "dy": dy, "dx": dx}).to_bytes(isa.TAP_BYTES, "little")
        for offset, dy, dx in taps
    )


def _output_place(config: AcceleratorConfig, after: int) -> tuple[int, int]:
    """Return where results go, and how many words fit: behind bank 0, or behind `after` words."""
    first = config.scratchpad_bank_words if config.scratchpad_banks > 1 else after
    return first, config.scratchpad_words - first


def synapse(
    config: AcceleratorConfig, rng: np.random.Generator, inverted: bool, low: bool
) -> list[Job]:
    """Read SB through the array: each row times every unit vector gives every weight.

    The channel parameters need rows of their own: the last ones when `low`, and then only the
    first rows are looked at; otherwise the first ones, and all others are looked at.
    """
    tn, ti, rows, own = config.tn, config.ti, config.synapse_rows, config.parameter_rows
    weights = random_bytes(rng, rows * tn * ti).view(np.int8).reshape(rows, tn, ti).copy()
    if inverted:
        weights = ~weights
    place = rows - own if low else 0
    weights[place : place + own] = plain_parameters(config)
    looked = range(0, own) if low else range(own, rows)
    first, room = _output_place(config, ti)
    batch = max(1, min(room // ti, _PROGRAM_INSTRUCTIONS))
    jobs = []
    for start in range(0, len(looked), batch):
        chosen = looked[start : start + batch]
        program = Program()
        program.load(LoadTarget.SYNAPSE, BASE_CONSTANTS, 0, weights.nbytes, 0)
        program.load(LoadTarget.TAP, BASE_CONSTANTS, weights.nbytes, isa.TAP_BYTES, 0)
        program.load_words(config, BASE_INPUT, 0, ti, 0, signal_compute=1)
        for number, row in enumerate(chosen):
            program.add(
                Opcode.COMPUTE,
                wait_load=int(number == 0),
                signal_store=int(number == len(chosen) - 1),
                tap_count=1,
                synapse_address=place,
                weight_address=row,
                input_pixel_step=1,
                input_height=1,
                input_width=ti,
                stride_x=1,
                stride_y=1,
                output_address=first + number * ti,
                output_pixel_step=1,
                output_height=1,
                output_width=ti,
                lo=-128,
                hi=127,
            )
        program.store_words(0, len(chosen) * ti, first, wait_compute=1)
        wanted = np.zeros((len(chosen), ti, ti), np.int8)
        wanted[:, :, :tn] = weights[list(chosen)].transpose(0, 2, 1)
        compared = np.zeros(wanted.shape, np.bool_)
        compared[:, :, :tn] = True
        constants = weights.tobytes() + tap_bytes([(0, 0, 0)])
        units = np.eye(ti, dtype=np.int8).reshape(-1).view(np.uint8)
        flat = wanted.reshape(-1).view(np.uint8)
        jobs.append(Job(program.end(), constants, units, flat, compared.reshape(-1)))
    return jobs


def taps(config: AcceleratorConfig, rng: np.random.Generator, inverted: bool) -> list[Job]:
    """Read the tap buffer through what each tap points to.

    A map of one pixel whose origin is the tap's own distance is seen by this tap alone, and only
    the right offset leads to the word that is wanted.
    """
    ti, tn, count, words = config.ti, config.tn, config.tap_entries, config.scratchpad_bank_words
    entries = np.stack(
        [rng.integers(0, most, count) for most in (_ADDRESSES, 64, 64)], axis=1
    ).astype(np.int64)
    if inverted:
        entries = np.array([_ADDRESSES - 1, 63, 63]) - entries
    single = config.scratchpad_banks == 1
    words = words // 2 if single else words
    first, room = _output_place(config, words)
    memory = random_bytes(rng, words * ti).reshape(words, ti)
    parameters = plain_parameters(config)
    listed = tap_bytes([tuple(entry) for entry in entries.tolist()])
    batch = min(room, _PROGRAM_INSTRUCTIONS)
    jobs = []
    for start in range(0, count, batch):
        chosen = range(start, min(start + batch, count))
        seen = rng.integers(0, words, len(chosen))
        program = Program()
        program.load(LoadTarget.SYNAPSE, BASE_CONSTANTS, 0, parameters.nbytes, 0)
        program.load(LoadTarget.TAP, BASE_CONSTANTS, parameters.nbytes, len(listed), 0)
        program.load_words(config, BASE_INPUT, 0, words, 0, signal_compute=1)
        for number, index in enumerate(chosen):
            offset, dy, dx = (int(value) for value in entries[index])
            program.add(
                Opcode.COMPUTE,
                mode=Mode.MAXIMUM,
                wait_load=int(number == 0),
                signal_store=int(number == len(chosen) - 1),
                tap_address=index,
                tap_count=1,
                input_start=(int(seen[number]) - offset) % _ADDRESSES,
                input_height=1,
                input_width=1,
                origin_y=-dy,
                origin_x=-dx,
                stride_x=1,
                stride_y=1,
                pad_value=-128,
                output_address=first + number,
                output_height=1,
                output_width=1,
                lo=-128,
                hi=127,
            )
        program.store_words(0, len(chosen), first, wait_compute=1)
        compared = np.zeros((len(chosen), ti), np.bool_)
        compared[:, :tn] = True
        jobs.append(
            Job(
                program.end(),
                parameters.tobytes() + listed,
                memory.reshape(-1),
                memory[seen].reshape(-1),
                compared.reshape(-1),
            )
        )
    return jobs


def boxes(config: AcceleratorConfig, rng: np.random.Generator) -> list[Job]:
    """Resize boxes of a frame: the widest there can be, one to a larger size, one as it is.

    The last one has every byte value in every channel, where the scratchpad is large enough.
    """
    channels, most = resample.CHANNELS_MOST, config.scratchpad_words
    widest = (config.resampler_row_bytes - BEAT_BYTES + 1) // channels
    side = min(16, int(most**0.5))
    jobs = []
    for height, width, size, skip in ((5, widest, side, 3), (3, 5, side, 5), (side, side, side, 0)):
        pitch = -(-(skip + width * channels) // BEAT_BYTES) * BEAT_BYTES
        frame = random_bytes(rng, height * pitch)
        if height == width:
            values = rng.permuted(np.tile(np.arange(256), (channels, 1)), axis=1)
            lines = frame.reshape(height, pitch)
            lines[:, : width * channels] = values.T[: side * side].reshape(height, -1)
        codes = random_bytes(rng, channels * resample.CODES).reshape(channels, -1)
        rows, columns = resample.resize_steps(height, size), resample.resize_steps(width, size)
        tables, program = bytearray(), Program()
        for word, data in resample.table_blocks(rows, columns, codes):
            program.load(LoadTarget.RESAMPLER, BASE_CONSTANTS, len(tables), len(data), word)
            tables += data
        program.load(
            LoadTarget.SCRATCHPAD,
            BASE_INPUT,
            skip,
            size * channels,
            0,
            resample=1,
            channels=channels,
            source_bytes=width * channels,
            row_steps=len(rows),
            column_steps=len(columns),
            pitch_bytes=pitch,
            rows=size,
            destination_pitch=size,
            words_per_row=size,
            step_bytes=channels,
            take_bytes=channels,
            signal_store=1,
        )
        program.store_words(0, size * size, 0, wait_load=1)
        lines = frame.reshape(height, pitch)[:, skip : skip + width * channels]
        pixels = resize(lines.reshape(height, width, channels), size)
        wanted = np.zeros((size * size, config.ti), np.uint8)
        wanted[:, :channels] = codes[np.arange(channels), pixels].reshape(-1, channels)
        jobs.append(Job(program.end(), bytes(tables), frame, wanted.reshape(-1)))
    return jobs


@dataclass(frozen=True)
class Map:
    """A feature map of ti channels in the scratchpad: first word, height, width."""

    place: int
    height: int
    width: int


class Network:
    """Layers on maps of ti channels with random weights; `job` has the golden model's answer.

    Parameters
    ----------
    config
        The machine.
    rng
        Of weights, parameters and the picture.
    side
        Height and width of the first map, in bank 0.
    """

    def __init__(self, config: AcceleratorConfig, rng: np.random.Generator, side: int) -> None:
        self._config, self._rng = config, rng
        self.picture = Map(0, side, side)
        self._rows: list[NDArray[np.int8]] = []
        self._taps: list[tuple[int, int, int]] = []
        self._computes: list[dict[str, int]] = []

    def bank(self, number: int) -> int:
        """Return the first word of a bank."""
        return number * self._config.scratchpad_bank_words

    def layer(
        self,
        mode: Mode,
        source: Map,
        place: int,
        window: int,
        stride: int = 1,
        pad: int = 0,
        residual: Map | None = None,
    ) -> Map:
        """Add a layer of a square window; returns the map that it writes, from word `place`."""
        config, rng = self._config, self._rng
        height = (source.height + 2 * pad - window) // stride + 1
        width = (source.width + 2 * pad - window) // stride + 1
        spots = [(y, x) for y in range(window) for x in range(window)]
        first_tap = len(self._taps)
        self._taps += [(y * source.width + x, y, x) for y, x in spots]
        fields = {
            "mode": mode,
            "tap_address": first_tap,
            "tap_count": len(spots),
            "input_start": (source.place - pad * (source.width + 1)) % _ADDRESSES,
            "input_pixel_step": stride,
            "input_row_step": stride * source.width,
            "input_height": source.height,
            "input_width": source.width,
            "origin_y": -pad,
            "origin_x": -pad,
            "stride_y": stride,
            "stride_x": stride,
            "pad_value": int(rng.integers(-9, 9)),
            "output_address": place,
            "output_pixel_step": 1,
            "output_row_step": width,
            "output_height": height,
            "output_width": width,
            "zero_point": int(rng.integers(-20, 20)),
            "lo": int(rng.integers(-128, -90)),
            "hi": int(rng.integers(90, 128)),
        }
        if residual is not None:
            fields |= {
                "residual": 1,
                "residual_address": residual.place,
                "residual_zero_point": int(rng.integers(-9, 9)),
            }
        for block in range(config.ti // config.tn):
            rows, weights = self._block(mode, len(spots))
            fields |= {"synapse_address": rows, "weight_address": weights, "lane_block": block}
            # Only a layer's first instruction has to wait for the last pixel of the layer before.
            fields["start_delay"] = read_after_write_cycles(config) if block == 0 else 0
            self._computes.append(dict(fields))
        return Map(place, height, width)

    def _block(self, mode: Mode, count: int) -> tuple[int, int]:
        """Make the SB rows of tn channels; returns where parameters and weights lie."""
        config, rng = self._config, self._rng
        # Sums of random products grow with the root of their number; results fill their range.
        terms = count * config.ti if mode == Mode.DENSE else count
        spread = {Mode.MAXIMUM: 60, Mode.SUM: 60 * count}.get(mode, 74 * 74 * terms**0.5)
        scale = 60 / spread
        shift = int(np.clip(np.floor(np.log2((1 << 15) / scale)), 0, 40))
        channels = []
        for _ in range(config.tn):
            multiplier = int(np.clip(scale * 2**shift * rng.uniform(0.7, 1.3), 1, 0xFFFF))
            channels.append(
                {
                    "bias": 0
                    if mode == Mode.MAXIMUM
                    else int(rng.integers(-int(spread), int(spread) + 1)),
                    "multiplier": multiplier,
                    "shift": shift,
                    "residual_multiplier": min(1 << shift, (1 << 24) - 1) // 2,
                }
            )
        place = sum(map(len, self._rows))
        self._rows.append(parameter_rows(config, channels))
        rows = {Mode.DENSE: count, Mode.DEPTHWISE: -(-count // config.tn)}.get(mode, 0)
        if rows:
            shape = (rows, config.tn, config.ti)
            self._rows.append(rng.integers(-128, 128, shape).astype(np.int8))
        return place, place + config.parameter_rows

    def job(self, *results: Map, loaded: int | None = None) -> Job | None:
        """Return the whole program, with `results` stored at its end.

        `loaded` is how many words the picture has; by default those of its map. None is returned
        where the machine's buffers are too small.
        """
        config = self._config
        rows = np.concatenate(self._rows)
        words = self.picture.height * self.picture.width if loaded is None else loaded
        if len(rows) > config.synapse_rows or len(self._taps) > config.tap_entries:
            return None
        program, listed = Program(), tap_bytes(self._taps)
        program.load(LoadTarget.SYNAPSE, BASE_CONSTANTS, 0, rows.nbytes, 0)
        program.load(LoadTarget.TAP, BASE_CONSTANTS, rows.nbytes, len(listed), 0)
        program.load_words(config, BASE_INPUT, 0, words, 0, signal_compute=1)
        for number, fields in enumerate(self._computes):
            last = number == len(self._computes) - 1
            tokens = {"wait_load": int(number == 0), "signal_store": int(last)}
            program.add(Opcode.COMPUTE, **{**fields, **tokens})
        size = 0
        for number, result in enumerate(results):
            words_here = result.height * result.width
            program.store_words(
                size * config.ti, words_here, result.place, wait_compute=int(number == 0)
            )
            size += words_here
        inputs = random_bytes(self._rng, words * config.ti)
        text, constants = program.end(), rows.tobytes() + listed
        return Job(text, constants, inputs, golden(config, text, constants, inputs, size))


def golden(
    config: AcceleratorConfig, program: bytes, constants: bytes, inputs: Bytes, words: int
) -> Bytes:
    """Return what a program leaves in the first `words` words of its output."""
    parts = (program, constants, inputs.tobytes(), bytes([UNTOUCHED]) * (words * config.ti))
    places, total = [], 0
    for part in parts:
        places.append(total)
        total += -(-len(part) // isa.INSTRUCTION_BYTES) * isa.INSTRUCTION_BYTES
    memory = np.zeros(total, np.uint8)
    for place, part in zip(places, parts, strict=True):
        memory[place : place + len(part)] = np.frombuffer(part, np.uint8)
    bases = dict(zip((BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT), places[1:], strict=True))
    machine = Interpreter(config)
    machine.execute(Memory(memory), 0, len(program) // isa.INSTRUCTION_BYTES, bases)
    return memory[places[-1] : places[-1] + len(parts[-1])].copy()


def known_layer(config: AcceleratorConfig, rng: np.random.Generator) -> Job | None:
    """Return a 3 x 3 convolution with padding and a residual; None where it does not fit."""
    if not _fits(config):
        return None
    network = Network(config, rng, _side(config))
    source = network.picture
    residual = Map(network.bank(1), source.height, source.width)
    result = network.layer(Mode.DENSE, source, network.bank(2), 3, pad=1, residual=residual)
    return network.job(result, loaded=residual.place + residual.height * residual.width)


def known_network(config: AcceleratorConfig, rng: np.random.Generator) -> Job | None:
    """Return a network of every mode; None where it does not fit.

    Dense, depthwise, max pool, a residual block, average, a linear layer.
    """
    if not _fits(config):
        return None
    network = Network(config, rng, _side(config))
    bank, half = network.bank, config.scratchpad_bank_words // 2
    wide = network.layer(Mode.DENSE, network.picture, bank(1), 3, pad=1)
    deep = network.layer(Mode.DEPTHWISE, wide, bank(2), 3, pad=1)
    small = network.layer(Mode.MAXIMUM, deep, bank(0), 2, stride=2)
    inner = network.layer(Mode.DENSE, small, bank(1), 1)
    block = network.layer(Mode.DENSE, inner, bank(2), 1, residual=small)
    mean = network.layer(Mode.SUM, block, bank(0) + half, block.height)
    # Of the block too, since an average forgives much.
    return network.job(block, network.layer(Mode.DENSE, mean, bank(1) + half, 1))


def _side(config: AcceleratorConfig) -> int:
    """Side of the picture: even, and a map takes a bank at most."""
    return 8 if config.scratchpad_bank_words >= 256 else 6


def _fits(config: AcceleratorConfig) -> bool:
    """Whether there is a bank for each of the maps that live together."""
    return config.scratchpad_banks > 2 and config.scratchpad_bank_words >= _side(config) ** 2
