# SPDX-License-Identifier: Apache-2.0
"""The host room: what runs on the board. numpy, pynq and `hwgen.arch`, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from host.board import import_pynq
from host.cascade import CascadeClassifier, CascadePrediction
from host.cropped import CroppedClassifier, Prediction
from host.dma import DmaError, DmaTimeout
from host.driver import Accelerator, RunRecord
from host.errors import (
    AcceleratorClosed,
    AcceleratorError,
    AcceleratorTimeout,
    AllocationError,
    BoardBusy,
    BusError,
    ChecksumError,
    DeviceNotFound,
    DigestMismatch,
    InterruptUnavailable,
    LinkDamaged,
    LinkError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    NoProgress,
    ProgramError,
    RunStopped,
    TransportError,
    WrongHardware,
    WrongLink,
)
from host.frames import Frame
from host.hls4ml import Hls4mlAccelerator, StreamMismatch, StreamRecord
from host.overlay import open_overlay
from host.profile import profile
from hwgen.arch.frames import FrameError

if TYPE_CHECKING:
    from host.serial_link import SerialBoard

__all__ = [
    "Accelerator",
    "AcceleratorClosed",
    "AcceleratorError",
    "AcceleratorTimeout",
    "AllocationError",
    "BoardBusy",
    "BusError",
    "CascadeClassifier",
    "CascadePrediction",
    "ChecksumError",
    "CroppedClassifier",
    "DeviceNotFound",
    "DigestMismatch",
    "Frame",
    "FrameError",
    "DmaError",
    "DmaTimeout",
    "Hls4mlAccelerator",
    "InterruptUnavailable",
    "LinkDamaged",
    "LinkError",
    "LinkLost",
    "LinkRefused",
    "LinkTimeout",
    "NoProgress",
    "Prediction",
    "ProgramError",
    "RunRecord",
    "RunStopped",
    "SerialBoard",
    "StreamMismatch",
    "StreamRecord",
    "TransportError",
    "WrongHardware",
    "WrongLink",
    "open_overlay",
    "profile",
]


def __getattr__(name: str) -> Any:
    """Import `SerialBoard`, a pynq Device, when it is first used: the rest needs numpy alone."""
    if name == "SerialBoard":
        import_pynq()  # says what to install
        from host.serial_link import SerialBoard

        return SerialBoard
    raise AttributeError(f"module 'host' has no attribute {name!r}")
