# SPDX-License-Identifier: Apache-2.0
"""Tests: the cascade rule by hand, and cascade bundles that are saved, loaded and refused."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, BundleError, CascadeBundle, CascadeRule, run_rule
from hwgen.arch.cascade import ALWAYS, NEVER, _exp, confidence_of
from hwgen.arch.cascade_bundle import _digest
from tests.host.small_bundle import CONFIG, linear_bundle


def test_the_exponential_is_the_exponential(rng) -> None:
    x = -np.concatenate([rng.random(2000) * 40, rng.random(2000), [0.0, 1e-17, 699.0]])
    exact = np.array([math.exp(v) for v in x])
    assert np.abs(_exp(x) / exact - 1).max() < 4e-16
    assert _exp(np.array([0.0]))[0] == 1.0
    assert 0 < _exp(np.array([-1e9]))[0] < 1e-300


def test_confidence_by_hand() -> None:
    logits = np.log([[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]])
    np.testing.assert_allclose(confidence_of(logits, "margin"), [0.375, 0.0], rtol=1e-14)
    np.testing.assert_allclose(confidence_of(logits, "top1"), [0.625, 0.375], rtol=1e-14)
    sure = confidence_of([[0.0, 1000.0]], "top1")
    assert sure[0] == 1.0 and not sure[0] >= ALWAYS and confidence_of([[7, 7]])[0] == 0.0


def test_confidence_does_not_depend_on_what_lies_beside_it(rng) -> None:
    logits = rng.normal(size=(300, 37)).astype(np.float32) * 5
    for kind in ("margin", "top1"):
        together = confidence_of(logits, kind)
        alone = np.concatenate([confidence_of(row[None], kind) for row in logits])
        assert np.array_equal(together, alone)
        assert np.array_equal(together, confidence_of(np.asfortranarray(logits), kind))
        assert np.array_equal(together[::-1], confidence_of(logits[::-1], kind))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros(3), r"shape \(N, classes\)"),
        (np.zeros((2, 1)), "at least 2 classes"),
        ([[0.0, np.nan]], "finite"),
        ([[0.0, np.inf]], "finite"),
    ],
)
def test_logits_are_checked(logits, message) -> None:
    with pytest.raises(ValueError, match=message):
        confidence_of(logits)


def test_run_rule_by_hand() -> None:
    # Two classes: margins of the logit differences d are tanh(d / 2).
    first = np.array([[0.0, 4.0], [0.0, 1.0], [0.5, 0.0]])
    second = np.array([[9.0, 0.0], [0.0, 3.0], [0.0, 0.25]])
    third = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 7.0]])
    rule = CascadeRule((0.9, 0.8), (2.0, 0.5))
    found = run_rule(rule, [first, second, third])
    assert found.stages.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [1, 1, 1]
    assert found.logits.tolist() == [[0.0, 4.0], [0.0, 7.0], [0.5, 4.0]]
    margins = [math.tanh(2), math.tanh(3.5), math.tanh(1.75)]
    np.testing.assert_allclose(found.confidence, margins, rtol=1e-14)


def test_thresholds_at_the_ends_and_alphas_of_0_and_1(rng) -> None:
    a, b = rng.normal(size=(2, 50, 4))
    same = np.ones(50, np.int64)
    never, always = CascadeRule((NEVER,)), CascadeRule((ALWAYS,))
    assert np.array_equal(run_rule(never, [a, b]).labels, a.argmax(axis=1))
    assert np.array_equal(run_rule(never, [a, b]).stages, same)
    assert np.array_equal(run_rule(always, [a, b]).labels, (a + b).argmax(axis=1))
    assert np.array_equal(run_rule(always, [a, b]).stages, 2 * same)
    deaf = run_rule(CascadeRule((ALWAYS,), (0.0,)), [a, b])
    assert np.array_equal(deaf.logits, a) and np.array_equal(deaf.stages, 2 * same)
    assert (never.reachable, always.reachable, CascadeRule((0.3, 0, 0.5)).reachable) == (1, 2, 2)


def test_a_threshold_is_not_below_itself() -> None:
    logits = np.array([[0.0, 1.0]])
    exactly = float(confidence_of(logits)[0])
    assert run_rule(CascadeRule((exactly,)), [logits, logits]).stages.tolist() == [1]
    above = float(np.nextafter(exactly, 1))
    assert run_rule(CascadeRule((above,)), [logits, logits]).stages.tolist() == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "thresholds must be one or more numbers"),
        (((-0.1,),), "thresholds must"),
        (((math.nan,),), "thresholds must"),
        (((0.5, 0.5), (1.0, 1.0, 1.0)), "or 2 of them, not"),
        (((0.5,), (-1.0,)), "alphas must"),
        (((0.5,), (1.0,), "entropy"), "confidence must be one of"),
    ],
)
def test_rules_are_checked(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        CascadeRule(*arguments)


def test_rules_go_through_json_and_one_alpha_counts_for_all() -> None:
    rule = CascadeRule((0.1, 1 / 3), (0.7,), "top1")
    assert rule.alphas == (0.7, 0.7) and rule.stages == 3
    assert CascadeRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ValueError, match="logits of 3 stages, not 2"):
        run_rule(rule, [np.zeros((1, 2))] * 2)
    with pytest.raises(ValueError, match="logits of one shape"):
        run_rule(rule, [np.zeros((1, 2)), np.zeros((1, 3)), np.zeros((1, 2))])


@pytest.fixture
def parts(rng):
    weights = rng.integers(-128, 128, (3, 3, 3, 3, 3)).astype(np.int8)
    boxes = rng.integers(-40, 40, (4, 3, 4, 4)).astype(np.int8)
    names = ("cat", "dog", "owl")
    return {
        "predictor": linear_bundle(boxes, "predictor", scale=1 / 64),
        "stages": (
            linear_bundle(weights[0], "small", 24, 24, labels=names),
            linear_bundle(weights[1], "large", 36, 36, labels=names),
        ),
    }


@pytest.fixture
def cascade(parts):
    return CascadeBundle("pets", CascadeRule((0.25,), (1.5,)), **parts)


def test_round_trip(cascade, tmp_path) -> None:
    file = cascade.save(tmp_path / "deep" / "pets.cascade")
    assert CascadeBundle.load(file) == cascade
    before = file.read_bytes()
    cascade.save(file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == [file.name]
    for other in ({"predictor": None}, {"glances": 1}):
        changed = dataclasses.replace(cascade, **other)
        assert CascadeBundle.load(changed.save(file)) == changed != cascade
    assert list(cascade.members) == ["predictor", "stage1", "stage2"]
    assert cascade.labels == ("cat", "dog", "owl") and (cascade.classes, cascade.channels) == (3, 3)


def test_resident_says_whether_places_overlap(cascade, parts) -> None:
    small, large = cascade.stages
    assert cascade.resident
    over = dataclasses.replace(large, placement=small.placement)
    assert not dataclasses.replace(cascade, stages=(small, over)).resident
    streams = dataclasses.replace(large, metadata={"resident": False})
    assert not dataclasses.replace(cascade, stages=(small, streams)).resident


def test_damage_is_found(cascade, tmp_path, rng) -> None:
    """A flipped byte is refused, or lies where the archive keeps nothing of ours."""
    file = cascade.save(tmp_path / "pets.cascade")
    good = file.read_bytes()
    tail = len(good) - 2500  # the archive's directory, and more
    places = [*rng.integers(0, len(good), 150), *rng.integers(tail, len(good), 150)]
    refused = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        file.write_bytes(bad)
        try:
            assert CascadeBundle.load(file) == cascade
        except BundleError:
            refused += 1
    assert refused > 150
    for size in (0, 10, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(BundleError, match="damaged"):
            CascadeBundle.load(file)


def rewritten(file, change) -> None:
    """Write the archive anew with other contents, as somebody with a zip tool could."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def test_other_archives_are_refused(cascade, tmp_path) -> None:
    file = tmp_path / "pets.cascade"

    def refused(message, change) -> None:
        cascade.save(file)
        rewritten(file, change)
        with pytest.raises(BundleError, match=message):
            CascadeBundle.load(file)

    def manifest(**values):
        def change(contents):
            body = json.loads(contents["cascade.json"])
            body.pop("manifest_sha256")
            body |= values
            contents["cascade.json"] = json.dumps(
                body | {"manifest_sha256": _digest(body)}
            ).encode()

        return change

    refused("it has no cascade.json", lambda c: c.pop("cascade.json"))
    refused("incomplete: stage2/program.bin is missing", lambda c: c.pop("stage2/program.bin"))
    swapped = {"stage1/setup.bin": cascade.predictor.setup}
    refused("checksum of stage1/setup.bin", lambda c: c.update(swapped))
    other = b'{"manifest_sha256": "0"}'
    refused("checksum of cascade.json", lambda c: c.update({"cascade.json": other}))
    refused("damaged .cascade.json: ", lambda c: c.update({"cascade.json": b"{}"}))
    refused("format version 99, this is version 2", manifest(format_version=99))
    refused("does not fit together: thresholds", manifest(rule={
        "thresholds": [9], "alphas": [1], "confidence": "margin"}))  # fmt: skip
    refused("does not fit together: stages must be the 2", manifest(members=["stage1"]))
    with pytest.raises(BundleError, match="not a file"):
        CascadeBundle.load(tmp_path / "nothing")
    (tmp_path / "photo.png").write_bytes(b"a photo")
    with pytest.raises(BundleError, match="is no cascade bundle"):
        CascadeBundle.load(tmp_path / "photo.png")


def test_a_cascade_of_before_there_were_glances_loads(cascade, tmp_path) -> None:
    def older(contents) -> None:
        body = json.loads(contents["cascade.json"])
        del body["manifest_sha256"], body["glances"]
        body["format_version"] = 1
        body["manifest_sha256"] = _digest(body)
        contents["cascade.json"] = json.dumps(body).encode()

    file = cascade.save(tmp_path / "pets.cascade")
    rewritten(file, older)
    assert CascadeBundle.load(file) == cascade


@pytest.mark.parametrize("manifest", ["[]", "[" * 100_000])
def test_a_manifest_of_another_kind_is_refused(cascade, tmp_path, manifest) -> None:
    def changed(contents) -> None:
        contents["cascade.json"] = manifest.encode()

    file = cascade.save(tmp_path / "pets.cascade")
    rewritten(file, changed)
    with pytest.raises(BundleError, match="pets.cascade is damaged"):
        CascadeBundle.load(file)


def test_a_manifest_that_lacks_something_is_refused(cascade, tmp_path) -> None:
    def shorter(contents) -> None:
        body = json.loads(contents["cascade.json"])
        del body["manifest_sha256"], body["rule"]
        contents["cascade.json"] = json.dumps({**body, "manifest_sha256": _digest(body)}).encode()

    file = cascade.save(tmp_path / "pets.cascade")
    rewritten(file, shorter)
    with pytest.raises(BundleError, match=r"cascade.json lacks \['rule'\]"):
        CascadeBundle.load(file)


def test_a_member_of_another_version_is_refused(cascade, tmp_path, monkeypatch) -> None:
    file = cascade.save(tmp_path / "pets.cascade")
    monkeypatch.setattr("hwgen.arch.bundle.FORMAT_VERSION", 99)
    with pytest.raises(BundleError, match="pets.cascade/predictor has format version 2"):
        CascadeBundle.load(file)


@pytest.mark.parametrize("glances", [-1, 2, 0.5, True])
def test_a_stage_must_be_left_for_the_crop(cascade, glances) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1 \(of 2 stages the last must see the crop"):
        dataclasses.replace(cascade, glances=glances)
    with pytest.raises(ValueError, match=r"glances must be an integer from 0 to 0 \(without pred"):
        dataclasses.replace(cascade, predictor=None, glances=1)


def test_members_must_fit(cascade, parts) -> None:
    small, large = cascade.stages

    def refused(message, **changes) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(cascade, **changes)

    def stage(**changes):
        return {"stages": (small, dataclasses.replace(large, **changes))}

    refused("stages must be the 2 networks that the rule is for, not 1", stages=(small,))
    other = AcceleratorConfig()
    digests = f"predictor {CONFIG.digest():016x}.*stage2 {other.digest():016x}"
    refused(f"one machine configuration, not {digests}", **stage(config=other))
    refused("stage2 must run one image at once, not 4", **stage(batch=4))
    flat = dataclasses.replace(large.input, shape=(3, 2, 3))
    refused("input of stage2 must be square, not 2 x 3", **stage(input=flat))
    refused("stage2 must take uint8 pictures", **stage(mean=None, std=None))
    picture = dataclasses.replace(large.outputs[0], vector=False)
    refused("stage2 must have one output, a vector", **stage(outputs=(picture,)))
    grey = dataclasses.replace(large.input, shape=(1, 3, 3))
    refused("same channels, not predictor 3, stage1 3, stage2 1", **stage(input=grey))
    two = dataclasses.replace(large.outputs[0], shape=(2, 1, 1))
    refused("same classes, not stage1 3, stage2 2", **stage(outputs=(two,)))
    refused("same labels", **stage(labels=("owl", "dog", "cat")))
    refused("predictor must give 4 numbers", predictor=small)
    short = tuple(dataclasses.replace(bundle, labels=("cat",)) for bundle in cascade.stages)
    refused("labels must be 3 texts, not 1", stages=short)
    one = dataclasses.replace(large.outputs[0], shape=(1, 1, 1))
    lone = tuple(dataclasses.replace(bundle, outputs=(one,)) for bundle in cascade.stages)
    refused("stages must have at least 2 classes, not 1", stages=lone)
