# SPDX-License-Identifier: Apache-2.0
"""The command line: networks as one names them, loaded and quantized."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwgen.cli.console import UsageError


def load_model(text: str, weights: Path | None) -> Any:
    """Load FILE.py:NAME, package.module:NAME or FILE.onnx."""
    import importlib
    import importlib.util

    if text.endswith(".onnx"):
        return Path(text)
    place, _, name = text.rpartition(":")
    if not place:
        raise UsageError(
            f"MODEL must be FILE.py:NAME, package.module:NAME or FILE.onnx, not {text!r}"
        )
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"shears_model_{Path(place).stem}", place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UsageError(f"there is no file {place!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        with _neighbours(place):
            spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{error}; give FILE.py:NAME or an installed module") from error
    if not hasattr(module, name):
        names = [held for held in sorted(vars(module)) if not held.startswith("_")]
        raise UsageError(f"{place} has no {name!r}; it has {names}")
    import torch

    model = getattr(module, name)
    if callable(model) and not isinstance(model, torch.nn.Module):
        with _neighbours(place):
            model = model()
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{text} must be a torch.nn.Module or a function without arguments that returns one, "
            f"not {type(model).__name__}"
        )
    if weights is not None:
        from hwgen.compress import insert_approximations, load_compressed

        # Of the network as it is, or of its compressed form, which has other shapes.
        state = _state_dict(weights)
        model = load_compressed(insert_approximations(model, state), state)
    return model.eval()


@contextmanager
def _neighbours(place: str) -> Iterator[None]:
    """Let a file of a network import the modules beside it, and name it where an import fails."""
    beside = [str(Path(place).resolve().parent)] if place.endswith(".py") else []
    sys.path[:0] = beside
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{place} cannot be imported: {error}; is it there?") from error
    finally:
        for path in beside:
            sys.path.remove(path)


def _state_dict(path: Path) -> dict[str, Any]:
    """Load a state dict; refuse anything else that torch.save may have written, or another file."""
    import torch

    from hwgen.compress.training import load_saved

    what = f"a state dict, as torch.save(model.state_dict(), {path.name!r}) writes"
    held = load_saved(path, what, "cpu")
    if not isinstance(held, dict):
        raise UsageError(f"{path} must be {what}, not {type(held).__name__}")
    others = [key for key, value in held.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UsageError(
            f"{path} must be {what}, and hold tensors alone, not {others[:5]} too; try saving the "
            "state dict that may be in it by itself"
        )
    return held


def quantized(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """Load and quantize a network; return its graph, its `Calibration` and its name.

    The graph has the calibration's mean and std, if that file holds them.
    """
    from hwgen.frontend import from_onnx
    from hwgen.passes.pipeline import to_fused
    from hwgen.quantize import quantize, quantize_model, read_calibration

    if arguments.model is None or arguments.calibration is None:
        raise UsageError(
            "a network is needed: FILE.py:NAME, package.module:NAME or FILE.onnx, and images "
            "with --calibration FILE"
        )
    calibration = read_calibration(arguments.calibration)
    images = calibration.images
    model = load_model(arguments.model, arguments.weights)
    how: dict[str, Any] = {"scheme": arguments.scheme, "observer": arguments.observer}
    if isinstance(model, Path):
        graph = quantize(to_fused(from_onnx(model)), images, **how)
    else:
        import torch

        graph = quantize_model(model, torch.from_numpy(images[:1]), images, **how)
    if calibration.preprocess is not None:
        graph = replace(graph, preprocess=calibration.preprocess)
    return graph, calibration, Path(arguments.model.partition(":")[0]).stem
