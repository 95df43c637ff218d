# SPDX-License-Identifier: Apache-2.0
"""The contract room: the user's choice of machine, and every width and depth that follows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from hwgen.arch.isa import CHANNEL_PARAMETERS, ISA_VERSION


def _bits_for(count: int) -> int:
    """Bits that number `count` things from 0."""
    return max(1, (count - 1).bit_length())


_MAY_BE_NONE = ("dsp_lanes", "resampler_row_bytes")


@dataclass(frozen=True)
class AcceleratorConfig:
    """One configuration of the machine (DianNao's Tn and Ti, and Tp pixels an SB word).

    Parameters
    ----------
    tn
        Output channels computed together. A power of two, 4 to `ti`, that divides `ti`.
    ti
        Input channels a step, and lanes of a scratchpad word. 8, 16, 32 or 64.
    tp
        Neighbouring output pixels that share each SB word. 1, 2 or 4; 1 is DianNao.
    dsp_lanes
        Lanes of the `ti` whose products are made in DSP slices, two in each; those of the other
        lanes are made of LUTs. 0 or more; from `ti` on, all of them. It changes no bit of any
        result.
    scratchpad_banks, scratchpad_bank_words
        Activation scratchpad: banks of words of `ti` int8. The words of a bank are a power of two.
        A convolution's input and its residual must lie in different banks. With `tp` above 1 a
        bank is `scratchpad_slices` memories, interleaved word by word.
    synapse_rows
        Rows of SB; a row is tn x ti int8 weights. A power of two.
    tap_entries
        Entries of the tap buffer. A power of two.
    max_burst_beats, outstanding_reads
        AXI4 bursts: beats of 8 bytes in one (a power of two, 1 to 16, so that no burst crosses
        a 4 KiB boundary), reads in flight (1 to 16).
    queue_depth
        Instructions each of the three queues holds ahead of execution. A power of two.
    trace_entries
        Records of the trace buffer, one an instruction. A power of two, 16 to 16384. Longer
        programs are traced in several runs. 512 are two block RAMs, and so are fewer.
    resampler_row_bytes
        Longest row, in bytes, of a box that the load path resizes: a power of two, 64 to 4096; 0
        leaves the resampler out. One line of sums is block RAM, as much for 4096 as for 64, the
        other one LUTs.
    """

    tn: int = 16
    ti: int = 16
    tp: int = 1
    dsp_lanes: int = 16
    scratchpad_banks: int = 3
    scratchpad_bank_words: int = 4096
    synapse_rows: int = 1024
    tap_entries: int = 2048
    max_burst_beats: int = 16
    outstanding_reads: int = 8
    queue_depth: int = 4
    trace_entries: int = 512
    resampler_row_bytes: int = 2048

    def __post_init__(self) -> None:
        """Refuse what the machine cannot be built as."""
        for field in fields(self):
            value = getattr(self, field.name)
            least, kind = (0, "0 or a") if field.name in _MAY_BE_NONE else (1, "a")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field.name} must be {kind} positive integer, not {value!r}")
        if self.ti not in (8, 16, 32, 64):
            raise ValueError(f"ti must be 8, 16, 32 or 64, not {self.ti!r}")
        if self.tn < 4 or self.ti % self.tn or self.tn & (self.tn - 1):
            raise ValueError(
                f"tn must be a power of two from 4 to ti ({self.ti}), not {self.tn!r}; for more "
                "multipliers than ti x ti, raise tp"
            )
        if self.tp not in (1, 2, 4):
            raise ValueError(f"tp must be 1, 2 or 4, not {self.tp!r}")
        for name in ("scratchpad_bank_words", "synapse_rows", "tap_entries", "queue_depth"):
            value = getattr(self, name)
            if value & (value - 1) or value < 2:
                raise ValueError(f"{name} must be a power of two, 2 or more, not {value!r}")
        if self.scratchpad_bank_words < 2 * self.scratchpad_slices:
            raise ValueError(
                f"scratchpad_bank_words must be {2 * self.scratchpad_slices} or more at tp "
                f"{self.tp} (two words in each of {self.scratchpad_slices} slices), not "
                f"{self.scratchpad_bank_words!r}"
            )
        if self.scratchpad_words > 1 << 16:
            raise ValueError(
                f"the scratchpad must have at most 65536 words, not {self.scratchpad_words}; "
                "try fewer banks or fewer words a bank"
            )
        if self.synapse_rows > 1 << 14 or self.tap_entries > 1 << 14:
            raise ValueError(
                "synapse_rows and tap_entries must be at most 16384, not "
                f"{self.synapse_rows} and {self.tap_entries}"
            )
        if self.trace_entries & (self.trace_entries - 1) or not (
            16 <= self.trace_entries <= 1 << 14
        ):
            raise ValueError(
                f"trace_entries must be a power of two, 16 to 16384, not {self.trace_entries!r}"
            )
        longest = self.resampler_row_bytes
        if longest and (longest & (longest - 1) or not 64 <= longest <= 4096):
            raise ValueError(
                f"resampler_row_bytes must be a power of two, 64 to 4096, or 0, not {longest!r}"
            )
        for name in ("max_burst_beats", "outstanding_reads"):
            if getattr(self, name) > 16:
                raise ValueError(f"{name} must be 1 to 16, not {getattr(self, name)!r}")
        if self.max_burst_beats & (self.max_burst_beats - 1):
            raise ValueError(
                f"max_burst_beats must be a power of two, not {self.max_burst_beats!r}"
            )

    @property
    def scratchpad_words(self) -> int:
        """Words of all banks together."""
        return self.scratchpad_banks * self.scratchpad_bank_words

    @property
    def scratchpad_slices(self) -> int:
        """Memories a bank is made of: word a of it lies in slice a modulo their number.

        With 2 * tp slices, tp words whose addresses are 1, 2 or 3 apart (any step that is not a
        multiple of 4) lie in tp different slices, so that a step reads them all in one cycle.
        """
        return 1 if self.tp == 1 else 2 * self.tp

    @property
    def scratchpad_address_bits(self) -> int:
        """Bits of a word address over all banks."""
        return _bits_for(self.scratchpad_words)

    @property
    def bank_address_bits(self) -> int:
        """Bits of a word address inside a bank; the bits above number the bank."""
        return _bits_for(self.scratchpad_bank_words)

    @property
    def synapse_address_bits(self) -> int:
        """Bits of an SB row address."""
        return _bits_for(self.synapse_rows)

    @property
    def tap_address_bits(self) -> int:
        """Bits of a tap buffer address."""
        return _bits_for(self.tap_entries)

    @property
    def word_bytes(self) -> int:
        """Bytes of a scratchpad word (NBin and NBout word): one lane a byte."""
        return self.ti

    @property
    def synapse_row_bytes(self) -> int:
        """Bytes of an SB row: tn slots of ti weights."""
        return self.tn * self.ti

    @property
    def parameter_rows(self) -> int:
        """SB rows in front of a group's weights that hold its channel parameters."""
        return -(-CHANNEL_PARAMETERS.bits // (8 * self.ti))

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates the array does in a cycle: tn x ti x tp."""
        return self.tn * self.ti * self.tp

    def pixels_apart(self, pixel_step: int) -> bool:
        """Tell whether tp words that lie `pixel_step` words apart can be read in one cycle."""
        return len({p * pixel_step % self.scratchpad_slices for p in range(self.tp)}) == self.tp

    @property
    def multiplier_lanes(self) -> tuple[int, int]:
        """Lanes whose products are made in DSP slices, and lanes whose products LUTs make."""
        in_dsp = min(self.dsp_lanes, self.ti)
        return in_dsp, self.ti - in_dsp

    def bank_of(self, word_address: int) -> int:
        """Bank that holds a scratchpad word."""
        return word_address // self.scratchpad_bank_words

    def digest(self) -> int:
        """64 bit digest of the configuration and the ISA version: the build's identity.

        It sits in the DIGEST registers and in every bundle; the driver refuses a mismatch.
        """
        text = json.dumps({"isa_version": ISA_VERSION, **asdict(self)}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def to_dict(self) -> dict[str, int]:
        """Return the fields as plain data, for manifests."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, int]) -> AcceleratorConfig:
        """Rebuild from `to_dict`; unknown and missing names are refused."""
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            odd = sorted(set(data) ^ names)
            raise ValueError(f"a configuration must have exactly {sorted(names)}; check {odd}")
        return cls(**data)
