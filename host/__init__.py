# SPDX-License-Identifier: Apache-2.0
"""The host room: what runs on the board. numpy, pynq and `hwgen.arch`, nothing else."""

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
    NoProgress,
    ProgramError,
    RunStopped,
    TransportError,
    WrongHardware,
)
from host.hls4ml import Hls4mlAccelerator, StreamMismatch, StreamRecord
from host.overlay import open_overlay
from host.profile import profile

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
    "DmaError",
    "DmaTimeout",
    "Hls4mlAccelerator",
    "InterruptUnavailable",
    "NoProgress",
    "Prediction",
    "ProgramError",
    "RunRecord",
    "RunStopped",
    "StreamMismatch",
    "StreamRecord",
    "TransportError",
    "WrongHardware",
    "open_overlay",
    "profile",
]
