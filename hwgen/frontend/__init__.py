# SPDX-License-Identifier: Apache-2.0
"""The front end room: networks of other tools become float graphs."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from hwgen.frontend.errors import Unsupported, UnsupportedOperation

if TYPE_CHECKING:
    import torch

    from hwgen.ir import Graph

__all__ = ["Unsupported", "UnsupportedOperation", "from_onnx", "from_torch"]


def from_torch(module: torch.nn.Module, example_input: torch.Tensor) -> Graph:
    """Read a torch module; see `hwgen.frontend.torch_export.from_torch`."""
    from hwgen.frontend.torch_export import from_torch as read

    return read(module, example_input)


def from_onnx(path: str | PathLike[str]) -> Graph:
    """Read an ONNX file; see `hwgen.frontend.onnx_import.from_onnx`."""
    from hwgen.frontend.onnx_import import from_onnx as read

    return read(path)
