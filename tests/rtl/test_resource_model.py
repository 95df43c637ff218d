# SPDX-License-Identifier: Apache-2.0
"""The tests room: the model of resources against what Yosys counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl import resource_model
from rtl.resource_model import (
    FEATURES,
    block_rams,
    calibrate,
    predict_blocks,
    predict_resources,
    worst_error,
)
from rtl.resources import FAMILIES, Usage

RECORD = json.loads(
    (Path(__file__).parents[2] / "benchmarks/results/resources.json").read_text(encoding="utf-8")
)
TOLERANCE_PERCENT = 10

# What Yosys 0.70's memory_libmap made of a memory with one read and one write port for xc7: words,
# bits, bits written together, 36 Kbit block RAMs.
MAPPED = [
    *((64, 28, 28, 0), (128, 28, 28, 0.5), (1024, 28, 28, 1), (2048, 28, 28, 2)),
    *((4096, 28, 28, 3.5), (8192, 28, 28, 7), (16384, 28, 28, 14), (1024, 32, 32, 1)),
    *((32, 64, 64, 0), (128, 64, 64, 1), (512, 64, 32, 1), (1024, 64, 32, 2)),
    *((2048, 64, 64, 4), (4096, 64, 32, 8), (8192, 64, 64, 16), (16384, 64, 64, 32)),
    *((256, 128, 128, 2), (512, 128, 32, 2), (1024, 128, 64, 4), (2048, 128, 128, 7.5)),
    *((2048, 128, 64, 8), (4096, 128, 128, 15), (4096, 128, 32, 16), (8192, 128, 128, 30)),
    *((8192, 128, 64, 32), (16384, 128, 128, 60), (16384, 128, 32, 64), (512, 256, 256, 4)),
    *((1024, 256, 256, 7.5), (2048, 256, 256, 14.5), (4096, 256, 256, 29), (16384, 256, 256, 116)),
]


@pytest.mark.parametrize(("words", "bits", "part", "rams"), MAPPED)
def test_block_rams(words: int, bits: int, part: int, rams: float) -> None:
    """Exact: the shape that Yosys takes, parity bits, parts and stacks included."""
    assert block_rams(words, bits, "xc7", part) == rams


def test_ecp5_block_rams() -> None:
    """EBR have 18 Kbit, of which 36 bits are the widest."""
    assert block_rams(1024, 64, "ecp5") == 2
    assert block_rams(2048, 64, "ecp5") == 4
    assert block_rams(512, 28, "ecp5") == 0.5


def test_the_record_is_met() -> None:
    """DSP and block RAM exactly, LUT and FF to 10 %: the configuration was in no calibration."""
    config = AcceleratorConfig.from_dict(RECORD["config"])
    found = predict_resources(config)
    assert (found.dsp, found.bram36) == (RECORD["dsp"], RECORD["bram36"])
    assert found.lut == pytest.approx(RECORD["lut"], rel=TOLERANCE_PERCENT / 100)
    assert found.ff == pytest.approx(RECORD["ff"], rel=TOLERANCE_PERCENT / 100)
    blocks = predict_blocks(config)
    assert set(blocks) == set(RECORD["per_block"])
    for name, block in RECORD["per_block"].items():
        assert (blocks[name].dsp, blocks[name].bram36) == (block["dsp"], block["bram36"]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stated_error_is_small(family: str) -> None:
    """What the file says of its own samples is within the tolerance."""
    assert all(0 <= value <= TOLERANCE_PERCENT for value in worst_error(family).values())


def test_more_takes_more() -> None:
    """A larger array, deeper buffers and more pixels never take less."""
    base = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024)
    small = predict_resources(base)
    for changes in ({"tp": 2}, {"ti": 16}, {"tn": 8, "ti": 16}, {"scratchpad_bank_words": 4096}):
        large = predict_resources(replace(base, **changes))
        assert large.dsp >= small.dsp and large.bram36 >= small.bram36
        assert large.lut >= small.lut and large.ff >= small.ff


def test_calibration_finds_what_made_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that are linear in the features give those coefficients, and no error."""
    configs = [
        AcceleratorConfig(tn=tn, ti=ti, tp=tp)
        for tn, ti, tp in ((4, 8, 1), (8, 8, 1), (4, 8, 2), (8, 16, 2), (4, 16, 1))
    ]
    samples = []
    for config in configs:
        lanes = Usage(lut=100 * config.tn * config.tp, ff=20 * config.tn * config.tp)
        samples.append((config, {"compute.accumulators": lanes, "control": Usage(lut=7, ff=9)}))
    found = calibrate(samples)
    assert found["blocks"]["compute.accumulators"]["lut"] == pytest.approx([0, 100], abs=1e-3)
    assert found["blocks"]["control"] == {"lut": [7.0], "ff": [9.0]}
    assert found["worst_error_percent"] == pytest.approx({"lut": 0, "ff": 0}, abs=0.01)
    monkeypatch.setattr(resource_model, "_coefficients", lambda: {"xc7": found})
    assert predict_blocks(configs[3])["compute.accumulators"] == Usage(lut=1600, ff=320)


def test_unknown_family_is_refused() -> None:
    """The message names the known ones."""
    with pytest.raises(ValueError, match=r"family must be one of \('xc7', 'ecp5'\), not 'ice40'"):
        predict_resources(AcceleratorConfig(), "ice40")


def test_every_block_has_features() -> None:
    """A block that Yosys reports and the model does not know would be left out."""
    assert set(RECORD["per_block"]) <= set(FEATURES)
