# SPDX-License-Identifier: Apache-2.0
"""The contract room: what the board needs beside the bitstream of an hls4ml project.

One JSON file: what the network is, how its codes travel, and test images with the results that
the bitstream must give, bit for bit. The design has no register that says what it is, so the
driver runs these images to know.

hls4ml's AXI stream wrapper takes and gives one float32 word a value, pixel by pixel, channels
innermost. A code is an int8 times 2**k, which float32 holds exactly, and which the wrapper's
casts to and from ``ap_fixed`` leave as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import numerics
from hwgen.arch.bundle import BundleError, ImageInput
from hwgen.arch.files import write_json

HLS_FORMAT_VERSION = 1
KIND = "hls4ml"
WORD = "float32"
WORD_BYTES = 4
#: Codes are exact as float32, subnormal numbers left out, from 2**-126 up to 128 * 2**120.
SCALES_LOG2 = (-126, 120)


@dataclass(frozen=True)
class StreamTensor:
    """An input or output as it travels: float32 words of ``code * 2**scale_log2``, (H, W, C).

    Parameters
    ----------
    name
        Name of the tensor in the graph.
    shape
        (C, H, W), as in PyTorch.
    scale_log2
        ``real = code * 2**scale_log2``.
    vector
        Whether results are (C,) rather than (H, W, C).
    """

    name: str
    shape: tuple[int, int, int]
    scale_log2: int
    vector: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.shape) != 3 or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(f"shape of {self.name!r} must be (C, H, W), not {self.shape!r}")
        low, high = SCALES_LOG2
        if type(self.scale_log2) is not int or not low <= self.scale_log2 <= high:
            raise ValueError(
                f"scale_log2 of {self.name!r} must be {low} to {high}, so that float32 holds every "
                f"code, not {self.scale_log2!r}"
            )
        if self.vector and self.shape[1:] != (1, 1):
            raise ValueError(f"{self.name!r} must be (C, 1, 1) to be a vector, not {self.shape}")

    @property
    def scale(self) -> float:
        """What a code of 1 is worth."""
        return math.ldexp(1.0, self.scale_log2)

    @property
    def zero_point(self) -> int:
        """Code of zero: 0."""
        return 0

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's words: exactly what the wrapper takes or gives."""
        return math.prod(self.shape) * WORD_BYTES

    def to_words(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Turn int8 codes into the stream's words, same shape."""
        return np.ldexp(codes.astype(np.float32), self.scale_log2)

    def to_codes(self, words: NDArray[np.float32]) -> NDArray[np.int8]:
        """Turn the words of n images into int8 codes (n, H, W, C), or (n, C) when `vector`.

        Raises
        ------
        ValueError
            When a word is no code.
        """
        # Another design's words may be NaN, signalling ones too: no codes, and no warnings.
        with np.errstate(all="ignore"):
            real = np.ldexp(np.asarray(words).astype(np.float64), -self.scale_log2)
            wrong = np.flatnonzero(~((real == np.rint(real)) & (real >= -128) & (real <= 127)))
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} of {real.size} words are no codes of scale 2**{self.scale_log2}, "
                f"the first is word {wrong[0]}, {float(words.flat[wrong[0]])!r}"
            )
        channels, height, width = self.shape
        codes = real.astype(np.int8)
        return codes.reshape((-1, channels) if self.vector else (-1, height, width, channels))


@dataclass(frozen=True, eq=False)
class HlsBundle(ImageInput):
    """A network that is a bitstream of its own, made with hls4ml's VivadoAccelerator.

    Parameters
    ----------
    name
        Of the project; its IP in the overlay is ``xilinx.com:hls:NAME_axi``.
    board, io_type
        What it was made for and how.
    input, output
        Of the network.
    layers
        hls4ml layers.
    cycles, interval
        Estimated before HLS: of an image, and from one image to the next.
    check_input, check_output
        Test images as int8 codes (n, H, W, C), and the codes that the bitstream must give.
    mean, std, labels
        As in `Bundle`.

    Raises
    ------
    ValueError
        When the parts do not fit together.
    """

    name: str
    board: str
    io_type: str
    input: StreamTensor
    output: StreamTensor
    layers: int
    cycles: int
    interval: int
    check_input: NDArray[np.int8]
    check_output: NDArray[np.int8]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        count = len(self.check_input)
        if count < 1:
            raise ValueError("check_input must hold at least one image")
        for what, tensor in (("check_input", self.input), ("check_output", self.output)):
            codes = getattr(self, what)
            channels, height, width = tensor.shape
            wanted = (count, height, width, channels)
            if codes.dtype != np.int8 or codes.shape != wanted:
                raise ValueError(f"{what} must be int8 {wanted}, not {codes.dtype} {codes.shape}")
        channels = self.input.shape[0]
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise ValueError(f"{what} must be {channels} numbers, not {len(values)}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, not {self.std}")
        if self.labels is not None and len(self.labels) != self.output.shape[0]:
            raise ValueError(f"labels must be {self.output.shape[0]} texts, not {len(self.labels)}")

    @property
    def outputs(self) -> tuple[StreamTensor, ...]:
        """The one output, as `Bundle` has several."""
        return (self.output,)

    @property
    def batch(self) -> int:
        """Images that must run together: 1."""
        return 1

    @property
    def ip(self) -> str:
        """Type of the network's IP in an overlay, without its version."""
        return f"xilinx.com:hls:{self.name}_axi"

    def dequantize_output(self, index: int, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Turn output `index`'s codes into float32, same shape."""
        return numerics.dequantize(codes, self.outputs[index].scale, 0)

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all."""
        body: dict[str, Any] = {
            "kind": KIND,
            "format_version": HLS_FORMAT_VERSION,
            "name": self.name,
            "board": self.board,
            "io_type": self.io_type,
            "word": WORD,
            "input": asdict(self.input),
            "output": asdict(self.output),
            "layers": self.layers,
            "estimate": {"cycles": self.cycles, "interval": self.interval},
            "check": {
                "images": len(self.check_input),
                "input": _pack(self.check_input),
                "output": _pack(self.check_output),
            },
            "mean": self.mean,
            "std": self.std,
            "labels": self.labels,
            "metadata": self.metadata,
        }
        path = Path(file)
        write_json(path, {**body, "sha256": _digest(body)})
        return path

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> HlsBundle:
        """Read a bundle and check every byte of it.

        Raises
        ------
        BundleError
            When the file is missing, damaged, something else, or of another version.
        """
        path = Path(file)
        if path.is_dir():
            raise BundleError(
                f"{path} is a folder, not an hls4ml bundle; Bundle.load reads the accelerator's, "
                "an hls4ml project has its own in bundle.json"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(f"{path} does not exist; copy it from the hls4ml project") from None
        except ValueError as error:
            raise BundleError(f"{path} is damaged ({error}); copy it again") from error
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise BundleError(f"{path} is no hls4ml bundle")
        if _digest({k: v for k, v in data.items() if k != "sha256"}) != data.get("sha256"):
            raise BundleError(f"{path} is damaged: its checksum does not match; copy it again")
        if data["format_version"] != HLS_FORMAT_VERSION or data["word"] != WORD:
            raise BundleError(
                f"{path} has format version {data['format_version']} and {data['word']} words, "
                f"this is version {HLS_FORMAT_VERSION} with {WORD}; write it again with "
                "HlsProject.save_bundle"
            )
        try:
            first, last = _tensor(data["input"]), _tensor(data["output"])
            check = data["check"]
            return cls(
                name=data["name"],
                board=data["board"],
                io_type=data["io_type"],
                input=first,
                output=last,
                layers=data["layers"],
                cycles=data["estimate"]["cycles"],
                interval=data["estimate"]["interval"],
                check_input=_unpack(check["input"], check["images"], first),
                check_output=_unpack(check["output"], check["images"], last),
                mean=None if data["mean"] is None else tuple(data["mean"]),
                std=None if data["std"] is None else tuple(data["std"]),
                labels=None if data["labels"] is None else tuple(data["labels"]),
                metadata=data["metadata"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path} does not fit together: {error}") from error


def _tensor(data: dict[str, Any]) -> StreamTensor:
    return StreamTensor(**{**data, "shape": tuple(data["shape"])})


def _pack(codes: NDArray[np.int8]) -> str:
    return base64.b64encode(np.ascontiguousarray(codes).tobytes()).decode("ascii")


def _unpack(text: str, images: int, tensor: StreamTensor) -> NDArray[np.int8]:
    channels, height, width = tensor.shape
    codes = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.int8)
    return codes.reshape(images, height, width, channels)


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of the file's content in canonical form."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
