# SPDX-License-Identifier: Apache-2.0
"""The contract room: a cascade as it is deployed, several compiled networks and their rule.

A cascade bundle is one file, a zip archive without compression. ``cascade.json`` has the rule, the
members' names in the order they run, the SHA-256 of every other file, and its own; each member's
four files (`hwgen.arch.bundle`) lie in a folder of its name.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.arch.bundle import FILES, Bundle, BundleError
from hwgen.arch.cascade import CascadeRule
from hwgen.arch.files import replacing

CASCADE_FORMAT_VERSION = 2
_READABLE = (1, CASCADE_FORMAT_VERSION)  # 1 has no glances
_MANIFEST = "cascade.json"
_PREDICTOR = "predictor"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same cascade is the same file


@dataclass(frozen=True)
class CascadeBundle:
    """Networks that are tried one after the other, all compiled for one machine configuration.

    Attributes
    ----------
    name
        Of the whole.
    rule
        When the next stage is run.
    stages
        The networks, cheapest first: square uint8 pictures to one logit a class, one image a run.
        Their sides may differ; each gets the picture at its own.
    predictor
        Square uint8 picture to a box xmin, ymin, xmax, ymax: the stages then see its crop of the
        frame, by `hwgen.arch.crop`. Without one they see the whole frame.
    glances
        How many of the first stages see the whole frame all the same (Wang et al., Glance and
        Focus, NeurIPS 2020): the predictor is run behind them, only for frames that go on.

    Raises
    ------
    ValueError
        When a member does not have that shape, or they do not fit together.
    """

    name: str
    rule: CascadeRule
    stages: tuple[Bundle, ...]
    predictor: Bundle | None = None
    glances: int = 0

    def __post_init__(self) -> None:
        """Check that the members fit the rule and each other."""
        if len(self.stages) != self.rule.stages:
            raise ValueError(
                f"stages must be the {self.rule.stages} networks that the rule is for, not "
                f"{len(self.stages)}"
            )
        for role, bundle in self.members.items():
            _check_member(role, bundle)
        digests = {role: bundle.config.digest() for role, bundle in self.members.items()}
        if len(set(digests.values())) > 1:
            listed = ", ".join(f"{role} {digest:016x}" for role, digest in digests.items())
            raise ValueError(
                f"all members must be compiled for one machine configuration, not {listed}; "
                "compile them for the same board"
            )
        self._check_same("channels", {r: b.input.shape[0] for r, b in self.members.items()})
        stages = {role: b for role, b in self.members.items() if role != _PREDICTOR}
        self._check_same("classes", {r: b.outputs[0].shape[0] for r, b in stages.items()})
        self._check_same("labels", {r: b.labels for r, b in stages.items()})
        if self.classes < 2:
            raise ValueError(f"the stages must have at least 2 classes, not {self.classes}")
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"labels must be {self.classes} texts, not {len(self.labels)}")
        if self.predictor is not None and self.predictor.outputs[0].shape[0] != 4:
            raise ValueError(
                "the predictor must give 4 numbers (xmin, ymin, xmax, ymax), not "
                f"{self.predictor.outputs[0].shape[0]}"
            )
        check_glances(self.glances, len(self.stages), self.predictor is not None)

    @staticmethod
    def _check_same(what: str, values: dict[str, Any]) -> None:
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{role} {value!r}" for role, value in values.items())
            raise ValueError(f"all networks must have the same {what}, not {listed}")

    @property
    def members(self) -> dict[str, Bundle]:
        """Every network by its role: predictor, if there is one, stage1, stage2, ..."""
        stages = {f"stage{number}": bundle for number, bundle in enumerate(self.stages, 1)}
        return stages if self.predictor is None else {_PREDICTOR: self.predictor, **stages}

    @property
    def classes(self) -> int:
        """Logits of each stage."""
        return self.stages[0].outputs[0].shape[0]

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        return self.stages[0].input.shape[0]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, those of the stages."""
        return self.stages[0].labels

    @property
    def resident(self) -> bool:
        """Whether all constants stay on chip together, so that no run has to load any.

        Else networks whose places overlap take turns: the driver loads what was overwritten.
        """
        members = self.members.values()
        apart = not any(
            a.placement.overlaps(b.placement) for a, b in itertools.combinations(members, 2)
        )
        return apart and all(bundle.metadata.get("resident", True) for bundle in members)

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; one of that name is replaced."""
        contents = {
            f"{role}/{name}": data
            for role, bundle in self.members.items()
            for name, data in bundle.to_files().items()
        }
        body: dict[str, Any] = {
            "format_version": CASCADE_FORMAT_VERSION,
            "name": self.name,
            "rule": self.rule.to_dict(),
            "members": list(self.members),
            "glances": self.glances,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        }
        manifest = json.dumps({**body, "manifest_sha256": _digest(body)}, indent=1) + "\n"
        with replacing(file) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name, data in {_MANIFEST: manifest.encode(), **contents}.items():
                    archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        return Path(file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> CascadeBundle:
        """Read a cascade and check every byte of its members.

        Raises
        ------
        BundleError
            When the file is missing, truncated, changed, of another format version, or its members
            do not fit together.
        """
        path = Path(file)
        if not path.is_file():
            raise BundleError(f"{path} is no cascade bundle: it is not a file")
        contents = _read(path)
        if _MANIFEST not in contents:
            raise BundleError(f"{path} is no cascade bundle: it has no {_MANIFEST}")
        try:
            manifest = json.loads(contents[_MANIFEST].decode("utf-8"))
            stated = manifest.pop("manifest_sha256")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise BundleError(f"{path} is damaged ({_MANIFEST}: {error}); copy it again") from error
        if _digest(manifest) != stated:
            raise BundleError(
                f"{path} is damaged: the checksum of {_MANIFEST} does not match; copy it again"
            )
        missing = {"format_version", "name", "rule", "members", "sha256"} - manifest.keys()
        if missing:
            raise BundleError(f"{path} is damaged: {_MANIFEST} lacks {sorted(missing)}")
        if manifest["format_version"] not in _READABLE:
            raise BundleError(
                f"{path} has format version {manifest['format_version']}, this is version "
                f"{CASCADE_FORMAT_VERSION}; export the cascade again"
            )
        for name, checksum in manifest["sha256"].items():
            if name not in contents:
                raise BundleError(f"{path} is incomplete: {name} is missing; copy it again")
            if hashlib.sha256(contents[name]).hexdigest() != checksum:
                raise BundleError(
                    f"{path} is damaged: the checksum of {name} does not match; copy it again"
                )
        bundles = {
            role: Bundle.from_files(
                {n: contents[f"{role}/{n}"] for n in FILES if f"{role}/{n}" in manifest["sha256"]},
                f"{path}/{role}",
            )
            for role in manifest["members"]
        }
        predictor = bundles.pop(_PREDICTOR, None)
        try:
            rule = CascadeRule.from_dict(manifest["rule"])
            stages, glances = tuple(bundles.values()), manifest.get("glances", 0)
            return cls(manifest["name"], rule, stages, predictor, glances)
        except ValueError as error:
            raise BundleError(f"{path} does not fit together: {error}") from error


def check_glances(glances: int, stages: int, predictor: bool) -> None:
    """Insist on a number of stages that see the whole frame which leaves one to see the crop."""
    most = stages - 1 if predictor else 0
    if isinstance(glances, bool) or not isinstance(glances, int) or not 0 <= glances <= most:
        why = f"of {stages} stages the last must see the crop" if predictor else "without predictor"
        raise ValueError(f"glances must be an integer from 0 to {most} ({why}), not {glances!r}")


def _check_member(role: str, bundle: Bundle) -> None:
    """Insist on one square uint8 picture to one vector."""
    _, height, width = bundle.input.shape
    if bundle.batch != 1:
        raise ValueError(
            f"{role} must run one image at once, not {bundle.batch}; compile it with batch=1"
        )
    if height != width:
        raise ValueError(f"the input of {role} must be square, not {height} x {width}")
    if bundle.mean is None or bundle.std is None:
        raise ValueError(f"{role} must take uint8 pictures; compile with preprocess=(mean, std)")
    if len(bundle.outputs) != 1 or not bundle.outputs[0].vector:
        raise ValueError(f"{role} must have one output, a vector (N, C)")


def _read(path: Path) -> dict[str, bytes]:
    """Read every file of the archive; refuse what is no whole archive of stored files."""
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in infos):
                raise zipfile.BadZipFile("a file in it is compressed or encrypted")
            return {info.filename: archive.read(info) for info in infos}
    except (
        zipfile.BadZipFile, EOFError, IndexError, NotImplementedError, OSError, OverflowError,
        RuntimeError, ValueError, struct.error,
    ) as error:  # fmt: skip
        raise BundleError(
            f"{path} is no cascade bundle, or damaged ({error}); copy it again"
        ) from error


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of the manifest in canonical form."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
