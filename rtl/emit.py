# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the accelerator as one Verilog file, with the port names Vivado expects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import replacing
from hwgen.arch.isa import ISA_VERSION
from rtl.top import Accelerator

TOP_NAME = "shears"

#: Verilator's warnings that stay, each with its reason.
LINT_WAIVERS = {
    "UNUSEDSIGNAL": "bus inputs that a rule makes redundant (IDs, protection, low address bits), "
    "and fields of wide instruction words that one block does not look at",
    "DECLFILENAME": "one file holds every module, and is named by the user",
    "WIDTHEXPAND": "the Verilog writer leaves sign and zero extension to the language's rules",
    "WIDTHTRUNC": "as WIDTHEXPAND: a sum is cut to the width of what it is assigned to",
    "CASEINCOMPLETE": "an assignment in front of the case says what its other values give",
    "PROCASSINIT": "registers have an initial value and a synchronous reset to the same value",
}


class _Shears(wiring.Component):
    """`Accelerator` in a clock domain of `aclk` and the active low, synchronous `aresetn`."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.accelerator = Accelerator(config)
        super().__init__(
            {"aclk": In(1), "aresetn": In(1), **dict(self.accelerator.signature.members)}
        )

    def elaborate(self, platform: Any) -> Module:
        """Make the domain; the reset is registered once, which takes its fan-out off the port."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.domains.reset = ClockDomain(reset_less=True)
        reset = Signal(init=1)
        m.d.reset += reset.eq(~self.aresetn)
        m.d.comb += [
            ClockSignal("sync").eq(self.aclk),
            ClockSignal("reset").eq(self.aclk),
            ResetSignal("sync").eq(reset),
        ]
        m.submodules.accelerator = self.accelerator
        for name, member in self.accelerator.signature.members.items():
            outer, inner = getattr(self, name), getattr(self.accelerator, name)
            m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        return m


_ZEROED_MEMORY = re.compile(r"  initial begin\n((?:    (\S+)\[\d+\] = (\d+)'h0+;\n){2,})  end\n")


def _zero_in_a_loop(match: re.Match[str]) -> str:
    """Write a memory's zeros as a loop, and for simulators alone.

    A line a word makes megabytes, and Yosys spends a minute in a loop over the scratchpad.
    Synthesis tools define SYNTHESIS; without the loop an FPGA's memories power up as zeros too.
    """
    lines, memory, bits = match.groups()
    count = lines.count("\n")
    block = "zero_" + re.sub(r"\W", "_", memory)
    return (
        f"`ifndef SYNTHESIS\n  initial begin : {block}\n    integer i;\n"
        f"    for (i = 0; i < {count}; i = i + 1) {memory}[i] = {bits}'h0;\n  end\n`endif\n"
    )


def emit_verilog(config: AcceleratorConfig) -> str:
    """Return the Verilog of a configuration: one file, top module `shears`, no source attributes.

    The text depends on the configuration alone.
    """
    return to_verilog(_Shears(config), TOP_NAME, config)


def to_verilog(
    component: Any, name: str, config: AcceleratorConfig, more: Mapping[str, Any] | None = None
) -> str:
    """Return the Verilog of a top that has an accelerator in it; the header tells its numbers."""
    text = verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)
    text = _ZEROED_MEMORY.sub(_zero_in_a_loop, text)
    numbers = {**config.to_dict(), **(more or {})}
    header = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// Shears accelerator, instruction set {ISA_VERSION}, digest {config.digest():016x}",
        *(f"//   {key} = {value}" for key, value in numbers.items()),
    ]
    return "\n".join(header) + "\n" + text


def write_verilog(config: AcceleratorConfig, path: Path | str) -> Path:
    """Write `emit_verilog`'s text to `path`, whole or not at all, and return the path."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(emit_verilog(config))
    return path
