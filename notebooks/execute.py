# SPDX-License-Identifier: Apache-2.0
"""The notebooks: run them all, as a reader would, top to bottom. For a PC: `make notebooks`.

Copies with their results go into ``build/notebooks``; what they made stays in ``data``, where
`shears package` finds it. The notebooks themselves stay without results.
"""

from __future__ import annotations

import ast
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

HERE = Path(__file__).resolve().parent


def execute(source: Path, parameters: Mapping[str, Any], timeout_s: float = 3600) -> Any:
    """Run a notebook in a process of its own; return it with its results.

    Parameters
    ----------
    source
        The .ipynb file. Its folder is where the cells run.
    parameters
        Values in place of those in the cell with the tag ``parameters``.
    timeout_s
        For each cell.

    Raises
    ------
    ValueError
        For a parameter that the notebook does not have.
    nbclient.exceptions.CellExecutionError
        When a cell raises.
    """
    notebook = nbformat.read(source, as_version=4)
    (place,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    known = {
        target.id
        for statement in ast.parse(notebook.cells[place].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    if unknown := sorted(set(parameters) - known):
        raise ValueError(f"{source.name} has the parameters {sorted(known)}, not {unknown}")
    if parameters:
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    # Of files, not of ports: nothing else on this computer can listen in.
    with tempfile.TemporaryDirectory() as folder:
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        NotebookClient(
            notebook, kernel_name="python3", timeout=timeout_s, config=config,
            resources={"metadata": {"path": str(source.parent)}},
        ).execute()  # fmt: skip
    return notebook


def main() -> None:
    """Run every notebook with the parameters that stand in it."""
    out = HERE.parent / "build" / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted(HERE.glob("*.ipynb")):
        began = time.perf_counter()
        print(source.name, end=" ", flush=True)
        notebook = execute(source, {})
        nbformat.write(notebook, out / source.name)
        print(f"{time.perf_counter() - began:.0f} s, {out / source.name}")


if __name__ == "__main__":
    main()
