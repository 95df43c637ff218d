# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: fits `rtl.resource_model` to what Yosys counts of small configurations.

``python -m benchmarks.calibrate`` synthesises each sample of each family (a minute or more each,
kept in ``build/resources``) and rewrites ``rtl/resource_model.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from hwgen.arch import AcceleratorConfig
from hwgen.arch.files import write_json
from rtl.resource_model import COEFFICIENTS, calibrate
from rtl.resources import FAMILIES, estimate_resources

#: Small memories: they count exactly and their LUTs are few.
_MEMORIES = {
    "scratchpad_bank_words": 1024,
    "synapse_rows": 512,
    "tap_entries": 512,
    "resampler_row_bytes": 0,
}

SAMPLES: dict[str, list[dict[str, int]]] = {
    "xc7": [
        {"tn": 4, "ti": 8, "tp": 1},
        {"tn": 4, "ti": 8, "tp": 1, "resampler_row_bytes": 2048},
        {"tn": 8, "ti": 8, "tp": 1},
        {"tn": 4, "ti": 8, "tp": 2, "dsp_lanes": 4},
        {"tn": 8, "ti": 8, "tp": 2, "dsp_lanes": 8},
        {"tn": 4, "ti": 16, "tp": 2, "dsp_lanes": 12},
        {"tn": 8, "ti": 16, "tp": 1, "dsp_lanes": 16, "scratchpad_banks": 4},
        {"tn": 16, "ti": 16, "tp": 1, "dsp_lanes": 12},
    ],
    "ecp5": [
        {"tn": 4, "ti": 8, "tp": 1},
        {"tn": 4, "ti": 8, "tp": 1, "resampler_row_bytes": 2048},
        {"tn": 8, "ti": 8, "tp": 1},
        {"tn": 8, "ti": 8, "tp": 2, "dsp_lanes": 4},
        {"tn": 8, "ti": 16, "tp": 1, "dsp_lanes": 16, "scratchpad_banks": 4},
    ],
}


def samples(family: str) -> list[AcceleratorConfig]:
    """Return a family's samples; all lanes in DSP slices unless one says otherwise."""
    return [
        AcceleratorConfig(**{**_MEMORIES, "dsp_lanes": sample["ti"], **sample})
        for sample in SAMPLES[family]
    ]


def main() -> None:
    """Synthesise, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--cache", type=Path, default=Path("build/resources"))
    arguments = parser.parse_args()
    fitted: dict[str, Any] = {}
    with Console(stderr=True).status("Yosys") as status:
        for family in arguments.family or FAMILIES:
            counted = []
            for config in samples(family):
                text = f"{family} {config.tn} x {config.ti} x {config.tp}"
                found = estimate_resources(
                    config,
                    family,
                    cache_dir=arguments.cache,
                    progress=lambda step, text=text: status.update(f"{text}: {step}"),
                )
                counted.append((config, found.per_block))
            fitted[family] = calibrate(counted)
            print(f"{family}: worst error in percent {fitted[family]['worst_error_percent']}")
    write_json(COEFFICIENTS, {**_before(), **fitted})
    print(COEFFICIENTS)


def _before() -> dict[str, Any]:
    """Return the file's families, which those that were not asked for keep."""
    import json

    return json.loads(COEFFICIENTS.read_text(encoding="utf-8")) if COEFFICIENTS.is_file() else {}


if __name__ == "__main__":
    main()
