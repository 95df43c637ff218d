# SPDX-License-Identifier: Apache-2.0
"""The contract room: the golden model. Runs a program instruction by instruction on DDR bytes.

Instructions run in program order, which a legal program's waits allow; the hardware overlaps
them and must come to the same bits. Arithmetic is `hwgen.arch.numerics`'s.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa, numerics, resample
from hwgen.arch.bundle import BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT, BASE_SCRATCH, Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Mode, Opcode, Queue
from hwgen.arch.registers import BASE_COUNT, ERROR_HINTS, ErrorCode

TOKEN_MAX = 255
DISPATCHER = 3
_ADDRESS_MASK = 0xFFFF
_DDR_END = 1 << 32
_PROGRAM_LENGTH_MAX = 2**24 - 1
_GATHER_LIMIT_BYTES = 64 << 20


class MachineError(RuntimeError):
    """A run stopped: `code`, `queue` (3 is the dispatcher) and index of the `instruction`."""

    def __init__(self, code: ErrorCode, queue: int, instruction: int, detail: str = "") -> None:
        self.code, self.queue, self.instruction = code, queue, instruction
        text = f"{code.name} at instruction {instruction}: {ERROR_HINTS[code]}"
        super().__init__(f"{text} ({detail})" if detail else text)


class _Stop(Exception):
    """Internal: an error before the instruction's index is known."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        self.code, self.detail = code, detail


class Memory:
    """A window of DDR: `data` (uint8) starts at `base_address`; outside of it is DECERR."""

    def __init__(self, data: NDArray[np.uint8], base_address: int = 0) -> None:
        self.data, self.base_address = data, base_address

    def view(self, address: int, size: int, error: ErrorCode) -> NDArray[np.uint8]:
        """Return `size` bytes at `address`, or stop with `error`."""
        start = address - self.base_address
        if start < 0 or start + size > len(self.data):
            raise _Stop(error, f"{size} bytes at {address:#x}")
        return self.data[start : start + size]


class Interpreter:
    """The machine's on-chip memories and the semantics of its instructions.

    Attributes
    ----------
    scratchpad
        int8 (scratchpad_words, ti).
    synapse
        int8 (synapse_rows, tn, ti).
    taps
        uint64 (tap_entries,).
    steps
        Steps of the array in the last program: what the STEPS register reads.
    tables
        The resampler's: uint64 (TABLE_WORDS,), see `hwgen.arch.resample`.
    held
        Sums that a COMPUTE held for the next one: int64 (pixels, tn).
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.scratchpad = np.zeros((config.scratchpad_words, config.ti), dtype=np.int8)
        self.synapse = np.zeros((config.synapse_rows, config.tn, config.ti), dtype=np.int8)
        self.taps = np.zeros(config.tap_entries, dtype=np.uint64)
        self.tables = np.zeros(resample.TABLE_WORDS, dtype=np.uint64)
        self.steps = 0
        self.held: NDArray[np.int64] = np.zeros((0, config.tn), dtype=np.int64)

    def execute(
        self, memory: Memory, program_address: int, length: int, bases: Mapping[int, int]
    ) -> None:
        """Run a program of `length` instructions at `program_address` until END.

        Raises
        ------
        MachineError
            With the code the hardware would report.
        """
        tokens = dict.fromkeys(((a, b) for a in Queue for b in Queue), 0)
        registers = [bases.get(i, 0) for i in range(BASE_COUNT)]
        self.steps = 0
        for index in range(length):
            queue = DISPATCHER
            try:
                require(program_address % isa.INSTRUCTION_BYTES == 0, "program address")
                require(length <= _PROGRAM_LENGTH_MAX, "program length")
                address = program_address + index * isa.INSTRUCTION_BYTES
                in_range(address + isa.INSTRUCTION_BYTES <= _DDR_END, "program")
                data = memory.view(address, isa.INSTRUCTION_BYTES, ErrorCode.READ_DECERR)
                opcode, fields = self._decode(data.tobytes())
                if opcode == Opcode.END:
                    return
                queue = isa.QUEUE_OF[opcode]
                self._take_tokens(tokens, queue, fields)
                if opcode == Opcode.LOAD:
                    self._load(memory, registers, fields)
                elif opcode == Opcode.STORE:
                    self._store(memory, registers, fields)
                else:
                    self._compute(fields)
                self._give_tokens(tokens, queue, fields)
            except _Stop as stop:
                raise MachineError(stop.code, queue, index, stop.detail) from None
        raise MachineError(ErrorCode.PROGRAM_OVERRUN, DISPATCHER, length)

    @staticmethod
    def _rows(bases: list[int], f: dict[str, int], row_bytes: int) -> list[int]:
        """Addresses of the rows of a LOAD or STORE, each of them aligned and inside 4 GiB."""
        base, offset, pitch = bases[f["base"]], f["offset_bytes"], f["pitch_bytes"]
        require(not any(value % BEAT_BYTES for value in (base, offset, pitch)), "alignment")
        start = base + offset
        in_range(start + (f["rows"] - 1) * pitch + row_bytes <= _DDR_END, "DDR address")
        return [start + r * pitch for r in range(f["rows"])]

    @staticmethod
    def _decode(data: bytes) -> tuple[Opcode, dict[str, int]]:
        try:
            return isa.decode(data)
        except isa.DecodeError as error:
            code = ErrorCode.INSTRUCTION_CHECKSUM if error.checksum else ErrorCode.BAD_OPCODE
            raise _Stop(code, str(error)) from None

    @staticmethod
    def _take_tokens(
        tokens: dict[tuple[Queue, Queue], int], queue: Queue, fields: dict[str, int]
    ) -> None:
        for giver in Queue:
            if fields[f"wait_{giver.name.lower()}"]:
                if tokens[giver, queue] == 0:
                    raise _Stop(ErrorCode.NO_PROGRESS, f"no token from {giver.name}")
                tokens[giver, queue] -= 1

    @staticmethod
    def _give_tokens(
        tokens: dict[tuple[Queue, Queue], int], queue: Queue, fields: dict[str, int]
    ) -> None:
        for taker in Queue:
            if fields[f"signal_{taker.name.lower()}"]:
                tokens[queue, taker] += 1
                if tokens[queue, taker] > TOKEN_MAX:
                    raise _Stop(ErrorCode.TOKEN_OVERFLOW)

    def _load(self, memory: Memory, bases: list[int], f: dict[str, int]) -> None:
        config, target = self.config, f["target"]
        require(
            f["rows"] >= 1 and f["row_bytes"] >= 1 and target in tuple(LoadTarget),
            "rows, row_bytes or target",
        )
        there = bool(config.resampler_row_bytes) or target != LoadTarget.RESAMPLER
        require(there, "target: there is no resampler")
        unit = config.synapse_row_bytes if target == LoadTarget.SYNAPSE else isa.TAP_BYTES
        if target == LoadTarget.SCRATCHPAD:
            sizes = f["words_per_row"], f["step_bytes"], f["take_bytes"]
            require(min(sizes) >= 1 and sizes[2] <= config.ti, "words_per_row, step or take")
        else:
            require(f["rows"] == 1 and f["row_bytes"] % unit == 0, "rows or size of a buffer load")
        if f["resample"]:
            self._load_words(self._resampled(memory, bases[f["base"]], f), f)
            return
        fetched = -(-f["row_bytes"] // BEAT_BYTES) * BEAT_BYTES
        rows = [
            memory.view(address, fetched, ErrorCode.READ_DECERR)
            for address in self._rows(bases, f, fetched)
        ]
        if target == LoadTarget.SCRATCHPAD:
            self._load_words(rows, f)
        else:
            count, first = f["row_bytes"] // unit, f["destination"]
            entries = np.frombuffer(rows[0].tobytes(), dtype="<u8")
            if target == LoadTarget.SYNAPSE:
                in_range(first + count <= config.synapse_rows, "SB rows")
                shape = (count, config.tn, config.ti)
                self.synapse[first : first + count] = rows[0].view(np.int8).reshape(shape)
            elif target == LoadTarget.TAP:
                in_range(first + count <= config.tap_entries, "tap entries")
                self.taps[first : first + count] = entries
            else:
                in_range(first + count <= resample.TABLE_WORDS, "table words")
                self.tables[first : first + count] = entries
        if f["check"]:
            crc = 0
            for row in rows:
                crc = zlib.crc32(row.tobytes(), crc)
            if crc != f["crc32"]:
                raise _Stop(ErrorCode.DATA_CHECKSUM, f"{crc:#010x}, expected {f['crc32']:#010x}")

    def _resampled(self, memory: Memory, base: int, f: dict[str, int]) -> list[NDArray[np.uint8]]:
        """Return the rows that a resampled LOAD makes of a frame's."""
        channels, size, pitch = f["channels"], f["source_bytes"], f["pitch_bytes"]
        start = base + f["offset_bytes"]
        require(f["target"] == LoadTarget.SCRATCHPAD and not f["check"], "target or check")
        require(pitch % BEAT_BYTES == 0, "alignment")
        require(1 <= channels <= resample.CHANNELS_MOST, "channels")
        longest = self.config.resampler_row_bytes
        require(0 < size and start % BEAT_BYTES + size <= longest, "source_bytes")
        end = f["first_step"] + f["row_steps"]
        require(0 < f["row_steps"] and end <= resample.STEPS, "row steps")
        require(0 < f["column_steps"] <= resample.STEPS, "column steps")
        steps = self.tables.view("<u2").astype(np.uint16)
        columns = resample.unpack_steps(steps[4 * resample.COLUMN_STEPS_AT :][: f["column_steps"]])
        pointer = np.cumsum(columns["advance"])
        require(
            bool((pointer > columns["previous"]).all()) and pointer[-1] * channels <= size,
            "column steps",
        )
        require(
            int(columns["last"].sum()) * channels == f["row_bytes"], "column steps or row_bytes"
        )
        outputs = np.cumsum(columns["last"]) - columns["last"]
        weights = np.zeros((f["row_bytes"] // channels + 1, int(pointer[-1])), dtype=np.int64)
        np.add.at(weights, (outputs, pointer - 1 - columns["previous"]), columns["weight"])
        codes = self.tables[resample.CODES_AT :].view(np.uint8).reshape(-1, resample.CODES)

        made: list[NDArray[np.uint8]] = []
        sums = np.zeros(size, dtype=np.int64)
        rows = resample.unpack_steps(steps[f["first_step"] : end])
        y = np.cumsum(rows["advance"]) - 1 - rows["previous"]
        for place, weight, last in zip(y, rows["weight"], rows["last"], strict=True):
            require(len(made) < f["rows"], "row steps behind the last row's")
            address = start + int(place) * pitch
            skip = address % BEAT_BYTES
            fetched = -(-(skip + size) // BEAT_BYTES) * BEAT_BYTES
            in_range(0 <= address and address + fetched <= _DDR_END, "DDR address")
            row = memory.view(address - skip, fetched, ErrorCode.READ_DECERR)
            sums += weight * row[skip : skip + size].astype(np.int64)
            if last:
                pixels = sums[: int(pointer[-1]) * channels].reshape(-1, channels)
                rounded = (weights[:-1] @ pixels + 32768) >> 16
                made.append(codes[np.arange(channels), rounded].reshape(-1))
                sums = np.zeros(size, dtype=np.int64)
        require(len(made) == f["rows"], "row steps or rows")
        return made

    def _load_words(self, rows: list[NDArray[np.uint8]], f: dict[str, int]) -> None:
        ti, words, step, take = self.config.ti, f["words_per_row"], f["step_bytes"], f["take_bytes"]
        last = f["destination"] + (f["rows"] - 1) * f["destination_pitch"] + words
        in_range(last <= self.config.scratchpad_words, "scratchpad words")
        length = max((words - 1) * step + take, f["lead_bytes"] + f["row_bytes"])
        index = np.arange(words)[:, None] * step + np.arange(take)
        for r, row in enumerate(rows):
            stream = np.full(length, f["pad_value"], dtype=np.int8)
            end = f["lead_bytes"] + f["row_bytes"]
            stream[f["lead_bytes"] : end] = row[: f["row_bytes"]].view(np.int8)
            place = f["destination"] + r * f["destination_pitch"]
            word = np.full((words, ti), f["pad_value"], dtype=np.int8)
            word[:, :take] = stream[index]
            self.scratchpad[place : place + words] = word

    def _store(self, memory: Memory, bases: list[int], f: dict[str, int]) -> None:
        words = f["words_per_row"]
        require(f["rows"] >= 1 and words >= 1, "rows or words_per_row")
        size = words * self.config.word_bytes
        last = f["source"] + (f["rows"] - 1) * f["source_pitch"]
        in_range(last + words <= self.config.scratchpad_words, "scratchpad words")
        for r, address in enumerate(self._rows(bases, f, size)):
            first = f["source"] + r * f["source_pitch"]
            row = memory.view(address, size, ErrorCode.WRITE_DECERR)
            row[:] = self.scratchpad[first : first + words].reshape(-1).view(np.uint8)

    def _compute(self, f: dict[str, int]) -> None:
        config = self.config
        height, width, taps = f["output_height"], f["output_width"], f["tap_count"]
        require(min(height, width, taps) >= 1, "output size or tap_count")
        require(f["lane_block"] < config.ti // config.tn, "lane_block")
        mode = Mode(f["mode"])
        if f["resume"] or f["hold"]:
            one = mode == Mode.DENSE and height == 1 and width <= config.tp
            require(one, "resume or hold of more than tp pixels")
            require(not f["resume"] or len(self.held) == width, "resume of what was not held")
        rows = {Mode.DENSE: taps, Mode.DEPTHWISE: -(-taps // config.tn)}.get(mode, 0)
        in_range(f["tap_address"] + taps <= config.tap_entries, "tap entries")
        first_weight = f["weight_address"]
        in_range(not rows or first_weight + rows <= config.synapse_rows, "SB rows")
        parameters_end = f["synapse_address"] + config.parameter_rows
        in_range(parameters_end <= config.synapse_rows, "SB rows")
        channels = self._channel_parameters(f["synapse_address"])
        entries = [
            isa.TAP.unpack(int(word))
            for word in self.taps[f["tap_address"] : f["tap_address"] + taps]
        ]
        y = np.repeat(np.arange(height), width)
        x = np.tile(np.arange(width), height)
        lanes = slice(f["lane_block"] * config.tn, (f["lane_block"] + 1) * config.tn)
        input_banks: set[int] = set()
        if mode == Mode.DENSE:
            acc = self._dense(f, entries, y, x, first_weight, input_banks)
        else:
            acc = np.zeros((len(y), config.tn), dtype=np.int64)
            for k, tap in enumerate(entries):
                lane = self._seen(f, [tap], y, x, input_banks)[:, 0, lanes].astype(np.int64)
                if mode == Mode.DEPTHWISE:
                    row = self.synapse[first_weight + k // config.tn, k % config.tn]
                    acc += lane * row[: config.tn].astype(np.int64)
                elif mode == Mode.SUM:
                    acc += lane
                else:
                    acc = lane if k == 0 else np.maximum(acc, lane)
        if f["resume"]:
            acc = acc + self.held
        elif mode != Mode.MAXIMUM:
            acc = acc + channels["bias"]
        if f["hold"]:
            self.held = acc
        else:
            self._write_back(f, acc, channels, y, x, lanes, input_banks)
        self.steps += taps * height * -(-width // config.tp)

    def _dense(
        self,
        f: dict[str, int],
        entries: list[dict[str, int]],
        y: NDArray,
        x: NDArray,
        first_weight: int,
        input_banks: set[int],
    ) -> NDArray[np.int64]:
        """Sum over taps and lanes as matrix products in an exact float type."""
        config = self.config
        weight = self.synapse[first_weight : first_weight + len(entries)]
        real = numerics.exact_float(weight.transpose(1, 0, 2))
        chunk = max(1, _GATHER_LIMIT_BYTES // (len(y) * config.ti * 8))
        acc: NDArray = np.zeros((len(y), config.tn), dtype=real)
        for k in range(0, len(entries), chunk):
            seen = self._seen(f, entries[k : k + chunk], y, x, input_banks)
            matrix = weight[k : k + chunk].transpose(0, 2, 1).reshape(-1, config.tn)
            acc += seen.reshape(len(y), -1).astype(real) @ matrix.astype(real)
        return acc.astype(np.int64)

    def _seen(
        self,
        f: dict[str, int],
        entries: list[dict[str, int]],
        y: NDArray,
        x: NDArray,
        input_banks: set[int],
    ) -> NDArray[np.int8]:
        """Words the taps see for every output pixel: int8 (pixels, taps, ti)."""
        dy, dx, offset = (
            np.array([tap[name] for tap in entries]) for name in ("dy", "dx", "offset")
        )
        iy = (f["origin_y"] + y * f["stride_y"])[:, None] + dy
        ix = (f["origin_x"] + x * f["stride_x"])[:, None] + dx
        base = f["input_start"] + y * f["input_row_step"] + x * f["input_pixel_step"]
        address = (base[:, None] + offset) & _ADDRESS_MASK
        inside = (iy >= 0) & (iy < f["input_height"]) & (ix >= 0) & (ix < f["input_width"])
        used = np.unique(address[inside])
        in_range(not len(used) or used[-1] < self.config.scratchpad_words, "input word")
        input_banks.update(np.unique(used // self.config.scratchpad_bank_words).tolist())
        self._check_slices(f, address, inside)
        words = self.scratchpad[np.where(inside, address, 0)]
        words[~inside] = f["pad_value"]
        return words

    def _check_slices(
        self, f: dict[str, int], address: NDArray[np.int64], inside: NDArray[np.bool_]
    ) -> None:
        """Stop with BANK_CONFLICT where two of tp neighbours are in one slice of one bank."""
        tp, slices = self.config.tp, self.config.scratchpad_slices
        if self.config.pixels_apart(f["input_pixel_step"]):
            return
        height, width = f["output_height"], f["output_width"]
        bank = address // self.config.scratchpad_bank_words
        where = np.where(inside, bank * slices + address % slices, -1)
        where = where.reshape(height, width, -1)
        for first in range(0, width, tp):
            group = np.sort(where[:, first : first + tp], axis=1)
            if ((group[:, 1:] == group[:, :-1]) & (group[:, 1:] >= 0)).any():
                raise _Stop(ErrorCode.BANK_CONFLICT, "neighbouring pixels in one slice")

    def _channel_parameters(self, row: int) -> dict[str, NDArray[np.int64]]:
        """Channel parameters in SB rows from `row`: one int64 array (tn,) a field."""
        config = self.config
        slots = self.synapse[row : row + config.parameter_rows].transpose(1, 0, 2)
        values = [
            isa.CHANNEL_PARAMETERS.unpack(int.from_bytes(slot.tobytes(), "little"))
            for slot in slots
        ]
        names = isa.CHANNEL_PARAMETERS.by_name
        return {name: np.array([v[name] for v in values], dtype=np.int64) for name in names}

    def _write_back(
        self,
        f: dict[str, int],
        acc: NDArray[np.int64],
        channels: dict[str, NDArray[np.int64]],
        y: NDArray,
        x: NDArray,
        lanes: slice,
        input_banks: set[int],
    ) -> None:
        """Requantize (NFU-3) and write the group's lanes of every output word."""
        config = self.config
        here = y * f["output_row_step"] + x * f["output_pixel_step"]
        address = f["output_address"] + here
        in_range(int(address.max()) < config.scratchpad_words, "output word")
        residual = None
        if f["residual"]:
            source = f["residual_address"] + here
            in_range(int(source.max()) < config.scratchpad_words, "residual word")
            if input_banks & {config.bank_of(int(a)) for a in np.unique(source)}:
                raise _Stop(ErrorCode.BANK_CONFLICT)
            residual = self.scratchpad[source, lanes]
        if acc.min() < -(2**31) or acc.max() >= 2**31:
            raise OverflowError("an accumulator left 32 bits; the compiler must not allow it")
        self.scratchpad[address, lanes] = numerics.requantize(
            acc.astype(np.int32),
            channels["multiplier"],
            channels["shift"],
            f["zero_point"],
            f["lo"],
            f["hi"],
            residual,
            f["residual_zero_point"],
            channels["residual_multiplier"],
        )


def require(condition: bool, what: str) -> None:
    """Stop with BAD_FIELD unless `condition`."""
    if not condition:
        raise _Stop(ErrorCode.BAD_FIELD, what)


def in_range(condition: bool, what: str) -> None:
    """Stop with ADDRESS_RANGE unless `condition`."""
    if not condition:
        raise _Stop(ErrorCode.ADDRESS_RANGE, what)


class GoldenRun:
    """A bundle set up on an `Interpreter`: give it codes, get codes.

    Parameters
    ----------
    bundle
        The network. Its setup program runs once, here.
    machine
        An interpreter to share between several resident bundles; by default a new one.
    """

    def __init__(self, bundle: Bundle, machine: Interpreter | None = None) -> None:
        self.bundle = bundle
        self.machine = machine or Interpreter(bundle.config)
        sizes = (
            ("setup", len(bundle.setup)),
            ("program", len(bundle.program)),
            (BASE_CONSTANTS, len(bundle.constants)),
            (BASE_INPUT, bundle.input_bytes),
            (BASE_OUTPUT, bundle.output_bytes),
            (BASE_SCRATCH, bundle.scratch_bytes),
        )
        self._address: dict[str | int, int] = {}
        total = 0
        for key, size in sizes:
            self._address[key] = total
            total += -(-size // 64) * 64 + 64
        self.memory = Memory(np.zeros(total, dtype=np.uint8))
        for key, data in (
            ("setup", bundle.setup),
            ("program", bundle.program),
            (BASE_CONSTANTS, bundle.constants),
        ):
            self._region(key, len(data))[:] = np.frombuffer(data, dtype=np.uint8)
        if bundle.setup:
            self._execute("setup", bundle.setup)

    def _region(self, key: str | int, size: int) -> NDArray[np.uint8]:
        return self.memory.data[self._address[key] : self._address[key] + size]

    def _execute(self, key: str, program: bytes) -> None:
        bases = {k: a for k, a in self._address.items() if isinstance(k, int)}
        length = len(program) // isa.INSTRUCTION_BYTES
        self.machine.execute(self.memory, self._address[key], length, bases)

    def run(self, codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], ...]:
        """Run the program once: int8 (H, W, C), or (batch, H, W, C), to the outputs' codes."""
        bundle = self.bundle
        self._region(BASE_INPUT, bundle.input_bytes)[:] = bundle.pack_input(codes)
        self._execute("program", bundle.program)
        return bundle.unpack_outputs(self._region(BASE_OUTPUT, bundle.output_bytes))
