# SPDX-License-Identifier: Apache-2.0
"""The contract room: what is deployed. Programs, constants, tensor placement, checksums.

A bundle is a folder of four files. ``manifest.json`` says what the network is, where its tensors
lie and the SHA-256 of every file, itself included; ``setup.bin`` is the program that fills SB and
the tap buffer once, ``program.bin`` the program run for each image, ``constants.bin`` the weights,
channel parameters and taps they load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwgen.arch import numerics
from hwgen.arch.config import AcceleratorConfig

FORMAT_VERSION = 2
BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT, BASE_SCRATCH = 0, 1, 2, 3
BASE_TABLES, BASE_FRAME = 4, 5
_BLOBS = ("setup", "program", "constants")
FILES = (*(f"{name}.bin" for name in _BLOBS), "manifest.json")
"""What a bundle consists of; see `Bundle.to_files`."""


class BundleError(ValueError):
    """A bundle folder is incomplete, damaged, or of another version."""


@dataclass(frozen=True)
class Placement:
    """The region of SB and of the tap buffer that a bundle's constants occupy.

    Bundles whose regions do not overlap stay resident together.
    """

    synapse_row: int = 0
    synapse_rows: int = 0
    tap_entry: int = 0
    tap_entries: int = 0

    def overlaps(self, other: Placement) -> bool:
        """Tell whether loading one region overwrites part of the other."""

        def meet(a: int, a_size: int, b: int, b_size: int) -> bool:
            return max(a, b) < min(a + a_size, b + b_size)

        return meet(
            self.synapse_row, self.synapse_rows, other.synapse_row, other.synapse_rows
        ) or meet(self.tap_entry, self.tap_entries, other.tap_entry, other.tap_entries)


@dataclass(frozen=True)
class TensorPlacement:
    """Where and how a network input or output lies in DDR.

    Parameters
    ----------
    name
        Name of the tensor in the graph.
    shape
        (C, H, W), as in PyTorch.
    scale, zero_point
        ``real = (code - zero_point) * scale``.
    offset_bytes, pitch_bytes, size_bytes
        First row relative to the base register, distance between rows, and extent; in a batch also
        the distance from one image to the next.
    pixel_bytes
        Bytes from one pixel to the next in a row.
    lanes
        ``lanes[c]`` is where logical channel c lies, in bytes from its pixel's first one. Channels
        beyond a word's lie in further planes.
    vector
        Whether the model's tensor was (N, C) rather than (N, C, H, W).
    """

    name: str
    shape: tuple[int, int, int]
    scale: float
    zero_point: int
    offset_bytes: int
    pitch_bytes: int
    size_bytes: int
    pixel_bytes: int
    lanes: tuple[int, ...]
    vector: bool = False

    def _places(self, image: int) -> NDArray[np.intp]:
        """Return the byte of the region that holds each code of an image: (H, W, C)."""
        _, height, width = self.shape
        y = np.arange(height, dtype=np.intp)[:, None, None] * self.pitch_bytes
        x = np.arange(width, dtype=np.intp)[:, None] * self.pixel_bytes
        first = self.offset_bytes + image * self.size_bytes
        return np.asarray(first + y + x + np.asarray(self.lanes), dtype=np.intp)

    def pack(self, codes: NDArray[np.int8], raw: NDArray[np.uint8], image: int = 0) -> None:
        """Write int8 codes (H, W, C) to the place of image `image` in `raw`."""
        channels, height, width = self.shape
        row_bytes = width * self.pixel_bytes
        if self.lanes == tuple(range(channels)) and self.pixel_bytes == channels:
            # Pixels lie end to end, as in any picture: rows are copied whole.
            first = self.offset_bytes + image * self.size_bytes
            rows = raw[first : first + height * self.pitch_bytes].reshape(height, -1)
            rows[:, :row_bytes] = np.ascontiguousarray(codes).view(np.uint8).reshape(height, -1)
        else:
            raw[self._places(image)] = codes.view(np.uint8)

    def unpack(self, raw: NDArray[np.uint8], image: int = 0) -> NDArray[np.int8]:
        """Read image `image`'s int8 codes, (H, W, C) or (C,) when `vector`; always a copy."""
        codes = raw[self._places(image)].view(np.int8)
        return codes.reshape(-1) if self.vector else codes


@dataclass(frozen=True)
class LayerRecord:
    """What one layer of the network became: COMPUTE instructions first to last, and its cost.

    In a batch that runs image by image, `first_instruction`, `last_instruction` and `steps` are the
    first image's; in one that runs layer by layer, they are all images'. `macs` are one image's,
    as papers count them; `padding_macs` of them see padding above or below the input.
    """

    name: str
    kind: str
    first_instruction: int
    last_instruction: int
    macs: int
    padding_macs: int
    steps: int
    output_shape: tuple[int, int, int]

    @property
    def useful_macs(self) -> int:
        """Multiply-accumulates of one image that see the map and not padding above or below it."""
        return self.macs - self.padding_macs


class ImageInput:
    """What a deployed network of any back end does to an image before it runs."""

    name: str
    input: Any
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def preprocess(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn a uint8 (H, W, C) picture into the model's float32 (C, H, W) input.

        ``(picture / 255 - mean) / std`` per channel.

        Raises
        ------
        BundleError
            When the bundle was compiled without mean and std.
        """
        if self.mean is None or self.std is None:
            raise BundleError(
                "this bundle has no mean and std, so it takes float32 (C, H, W); "
                "compile with preprocess=(mean, std) to pass uint8 pictures"
            )
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        scaled = (np.asarray(image, dtype=np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)

    def quantize_input(self, image: ArrayLike) -> NDArray[np.int8]:
        """Turn float32 (C, H, W) into int8 codes (H, W, C).

        Raises
        ------
        ValueError
            For another shape, another dtype, or values that are not finite.
        """
        x = np.asarray(image)
        if x.ndim == 4 and x.shape[0] == 1:
            x = x[0]
        if x.shape != self.input.shape:
            raise ValueError(
                f"an image for {self.name!r} must have shape {self.input.shape} (C, H, W), "
                f"not {np.asarray(image).shape}"
            )
        if x.dtype != np.float32:
            raise ValueError(f"an image must be float32, not {x.dtype}; try .astype('float32')")
        if not np.isfinite(x).all():
            raise ValueError("an image must be finite; it holds NaN or infinity")
        codes = numerics.quantize(x, self.input.scale, self.input.zero_point)
        return np.ascontiguousarray(codes.transpose(1, 2, 0))


@dataclass(frozen=True)
class Bundle(ImageInput):
    """A compiled network for one machine configuration. See the module's docstring.

    The program runs `batch` images at once. Input and output codes have a leading axis of that
    length where it is above 1.
    """

    name: str
    config: AcceleratorConfig
    placement: Placement
    setup: bytes
    program: bytes
    constants: bytes
    input: TensorPlacement
    outputs: tuple[TensorPlacement, ...]
    output_bytes: int
    scratch_bytes: int
    layers: tuple[LayerRecord, ...]
    batch: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, as papers count them."""
        return sum(layer.macs for layer in self.layers)

    @property
    def padding_macs(self) -> int:
        """Those of `macs` that see padding above or below; the machine may leave them out."""
        return sum(layer.padding_macs for layer in self.layers)

    @property
    def input_bytes(self) -> int:
        """Size of the input region in DDR."""
        return self.batch * self.input.size_bytes

    def pack_input(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Lay int8 codes (H, W, C), or (batch, H, W, C), out as the input region's bytes."""
        channels, height, width = self.input.shape
        wanted = (
            (height, width, channels) if self.batch == 1 else (self.batch, height, width, channels)
        )
        if codes.shape != wanted or codes.dtype != np.int8:
            axes = "(H, W, C)" if self.batch == 1 else "(batch, H, W, C)"
            raise ValueError(
                f"codes must be int8 of shape {wanted} {axes}, not {codes.dtype} of {codes.shape}"
            )
        raw = np.zeros(self.input_bytes, dtype=np.uint8)
        for image, one in enumerate(codes.reshape(self.batch, height, width, channels)):
            self.input.pack(one, raw, image)
        return raw

    def unpack_outputs(self, raw: NDArray[np.uint8]) -> tuple[NDArray[np.int8], ...]:
        """Read every output's int8 codes from the output region's bytes."""
        if self.batch == 1:
            return tuple(tensor.unpack(raw) for tensor in self.outputs)
        return tuple(
            np.stack([tensor.unpack(raw, image) for image in range(self.batch)])
            for tensor in self.outputs
        )

    def dequantize_output(self, index: int, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Turn an output's codes into float32, same shape."""
        tensor = self.outputs[index]
        return numerics.dequantize(codes, tensor.scale, tensor.zero_point)

    def to_files(self) -> dict[str, bytes]:
        """Return what `save` writes, by file name."""
        manifest = json.dumps(self._manifest(), indent=1) + "\n"
        return {
            **{f"{name}.bin": getattr(self, name) for name in _BLOBS},
            "manifest.json": manifest.encode(),
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the bundle; a folder of that name is replaced only once all is written."""
        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not (target / "manifest.json").is_file() and any(target.iterdir()):
            raise BundleError(f"{target} exists and is no bundle; choose another folder")
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for name, data in self.to_files().items():
                (work / name).write_bytes(data)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
                os.replace(target, old / "bundle")
                os.replace(work, target)
                shutil.rmtree(old)
            else:
                os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return target

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest, its own checksum included."""
        body: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "config": self.config.to_dict(),
            "digest": f"{self.config.digest():016x}",
            "placement": asdict(self.placement),
            "input": asdict(self.input),
            "outputs": [asdict(tensor) for tensor in self.outputs],
            "output_bytes": self.output_bytes,
            "scratch_bytes": self.scratch_bytes,
            "layers": [asdict(layer) for layer in self.layers],
            "batch": self.batch,
            "mean": self.mean,
            "std": self.std,
            "labels": self.labels,
            "metadata": self.metadata,
            "sha256": {name: hashlib.sha256(getattr(self, name)).hexdigest() for name in _BLOBS},
        }
        return {**body, "manifest_sha256": _manifest_digest(body)}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Read a bundle and check every byte of it.

        Raises
        ------
        BundleError
            When a file is missing, truncated or changed, or the format version is another.
        """
        path = Path(folder)
        if path.is_file():
            raise BundleError(
                f"{path} is a file, and a bundle is a folder; a cascade in one file is for "
                "CascadeBundle.load, host.CascadeClassifier and shears package"
            )
        found = {name: path / name for name in FILES if (path / name).is_file()}
        return cls.from_files({name: file.read_bytes() for name, file in found.items()}, str(path))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], path: str) -> Bundle:
        """Rebuild a bundle from `to_files`' data; errors call it `path`. Raises as `load`."""
        if "manifest.json" not in files:
            raise BundleError(f"{path} is no bundle: it has no manifest.json")
        try:
            manifest = json.loads(files["manifest.json"].decode("utf-8"))
            stated = manifest.pop("manifest_sha256")
        except (ValueError, KeyError, AttributeError) as error:
            raise BundleError(
                f"{path}/manifest.json is damaged ({error}); copy it again"
            ) from error
        if _manifest_digest(manifest) != stated:
            raise BundleError(f"{path}/manifest.json is damaged: its checksum does not match")
        if manifest["format_version"] != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {manifest['format_version']}, this is version "
                f"{FORMAT_VERSION}; compile the network again"
            )
        blobs = {}
        for name in _BLOBS:
            file = f"{name}.bin"
            if file not in files:
                raise BundleError(f"{path} is incomplete: {file} is missing; copy it again")
            blobs[name] = files[file]
            if hashlib.sha256(blobs[name]).hexdigest() != manifest["sha256"][name]:
                raise BundleError(
                    f"{path}/{file} is damaged ({len(blobs[name])} bytes, checksum does not "
                    "match); copy the bundle again"
                )
        config = AcceleratorConfig.from_dict(manifest["config"])
        if f"{config.digest():016x}" != manifest["digest"]:
            raise BundleError(
                f"{path} was compiled for digest {manifest['digest']}, but its configuration now "
                f"has {config.digest():016x}; compile it again with this version"
            )
        return cls(
            name=manifest["name"],
            config=config,
            placement=Placement(**manifest["placement"]),
            input=_tensor(manifest["input"]),
            outputs=tuple(_tensor(data) for data in manifest["outputs"]),
            output_bytes=manifest["output_bytes"],
            scratch_bytes=manifest["scratch_bytes"],
            layers=tuple(
                LayerRecord(**{**data, "output_shape": tuple(data["output_shape"])})
                for data in manifest["layers"]
            ),
            batch=manifest["batch"],
            mean=_optional_tuple(manifest["mean"]),
            std=_optional_tuple(manifest["std"]),
            labels=_optional_tuple(manifest["labels"]),
            metadata=manifest["metadata"],
            **blobs,
        )


def _tensor(data: dict[str, Any]) -> TensorPlacement:
    """Rebuild a TensorPlacement from plain data."""
    return TensorPlacement(**{**data, "shape": tuple(data["shape"]), "lanes": tuple(data["lanes"])})


def _optional_tuple(data: list[Any] | None) -> tuple[Any, ...] | None:
    """Give JSON's lists back as tuples."""
    return None if data is None else tuple(data)


def _manifest_digest(body: dict[str, Any]) -> str:
    """SHA-256 of the manifest in canonical form."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
