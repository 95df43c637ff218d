# SPDX-License-Identifier: Apache-2.0
"""The host room: overlays, opened so that pynq knows the accelerator in them."""

from __future__ import annotations

import importlib
import os
from typing import Any

from host.board import import_pynq


def open_overlay(bitstream: str | os.PathLike[str], device: Any = None, **options: Any) -> Any:
    """Load a bitstream and return its `pynq.Overlay`; each Shears IP is a `host.ip.AcceleratorIP`.

    Parameters
    ----------
    bitstream
        Path of the .bit file; the .hwh file of the same name lies beside it.
    device
        A pynq Device, a simulated board among them; None is the board this runs on.
    options
        Of `pynq.Overlay`; ``download=False`` leaves the FPGA as it is.

    Raises
    ------
    DeviceNotFound
        When pynq is not installed.
    OSError
        When there is no such file.
    """
    pynq = import_pynq()
    importlib.import_module("host.ip")  # pynq binds the drivers that it knows at this moment
    return pynq.Overlay(os.fspath(bitstream), device=device, **options)
