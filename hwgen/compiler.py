# SPDX-License-Identifier: Apache-2.0
"""The generator room: the one call from a torch.nn.Module to a Bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.quantize import quantize_model
from hwgen.quantize.observers import Scheme

if TYPE_CHECKING:
    import torch


def compile(
    model: torch.nn.Module,
    example_input: torch.Tensor,
    calibration: Any,
    board: str | Path = "pynq-z2",
    *,
    config: AcceleratorConfig | None = None,
    scheme: Scheme = "affine",
    observer: str = "mse",
    name: str | None = None,
    preprocess: tuple[Sequence[float], Sequence[float]] | None = None,
    labels: Sequence[str] | None = None,
    synapse_row: int = 0,
    tap_entry: int = 0,
    batch: int = 1,
) -> Bundle:
    """Compile a CNN for a board: front end, quantization, lowering.

    Parameters
    ----------
    model
        In any mode; it is evaluated in eval mode and not changed.
    example_input
        float32 (1, C, H, W).
    calibration
        float32 (N, C, H, W), tensor or array: representative, preprocessed as in training.
    board
        Name or TOML file; its default configuration is used unless `config` is given.
    scheme, observer
        Of the quantization: see `hwgen.quantize`.
    name, preprocess, labels, synapse_row, tap_entry, batch
        See `hwgen.backends.program.emit`; `preprocess` is by default what
        :func:`hwgen.compress.with_preprocess` gave the model.

    Raises
    ------
    UnsupportedOperation
        Naming every node of the model that the machine cannot do, before any work is done.
    PlacementError, CapacityError
        When the network does not fit the machine, naming the layer.
    """
    chosen = config or load_board(board).config
    graph = quantize_model(model, example_input, calibration, scheme=scheme, observer=observer)
    return program.emit(
        graph,
        chosen,
        name=name or type(model).__name__,
        preprocess=preprocess,
        labels=labels,
        synapse_row=synapse_row,
        tap_entry=tap_entry,
        batch=batch,
    )
