# SPDX-License-Identifier: Apache-2.0
"""The host room: the driver that pynq binds to the accelerator of an overlay.

pynq makes an `AcceleratorIP` of every IP in an overlay whose name is `IP_VLNV`, once this module
has been imported: `host.open_overlay` does, and so does pynq itself where Shears is installed (its
entry point in pynq's group ``pynq.lib``). No other module of the room imports pynq at once.
"""

from __future__ import annotations

from typing import Any

from pynq import DefaultIP

from host.driver import Accelerator, pin_of
from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.package import IP_VLNV, config_of


class AcceleratorIP(DefaultIP):
    """One Shears accelerator of an overlay: ``overlay.accelerator``.

    ::

        overlay = host.open_overlay("shears.bit")
        with overlay.accelerator.load(bundle) as accelerator:
            logits = accelerator.run(image)

    Attributes
    ----------
    mmio, device, register_map
        As every pynq driver has them.
    parameters
        The IP's parameters, as the overlay's .hwh file has them.
    interrupt_pin
        Name of the interrupt for `pynq.Interrupt`; None where the overlay does not connect it.
        `load` hands it on, so that runs wait for it.
    """

    bindto = [IP_VLNV]

    def __init__(self, description: dict[str, Any]) -> None:
        # pynq would look the pins up in its active device, which need not be this one, and open
        # a UIO device for each in whatever event loop runs now. `host.interrupts` does it later.
        super().__init__({**description, "interrupts": {}})
        self.parameters: dict[str, str] = dict(description["parameters"])
        self.interrupt_pin: str | None = pin_of(description)

    @property
    def config(self) -> AcceleratorConfig:
        """Configuration that the bitstream was built for.

        Raises
        ------
        ValueError
            When the .hwh file is of another version of Shears, or not of one build.
        """
        return config_of(self.parameters)

    def load(self, bundle: Bundle, **options: Any) -> Accelerator:
        """Load a bundle onto this accelerator; options and errors as of `host.Accelerator`."""
        place = {"base_address": self.mmio.base_addr, "interrupt_pin": self.interrupt_pin}
        return Accelerator(bundle, self.device, **{**place, **options})
