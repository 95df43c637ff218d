# SPDX-License-Identifier: Apache-2.0
"""The host room: `Hls4mlAccelerator`, a network that is a bitstream of its own, behind a DMA.

What hls4ml's own driver leaves out: it waits for ever, hands out its DMA buffer as the result,
sends a buffer of any size (the design then waits in the middle of an image, and every result after
that is wrong), and does not know what network is loaded.

The design counts its input's words and has no reset that software reaches. A transfer that breaks
off may leave it in the middle of an image; then the bitstream is loaded again, and the bundle's
test images are run, before anybody trusts it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from host.board import Board, active_device, answering, board_at, import_pynq
from host.dma import HALTED, IDLE, Dma, DmaError, DmaStatus, DmaTimeout, after, find_dma
from host.driver import RunRecord, cma_bytes
from host.errors import AcceleratorClosed, AcceleratorError, AllocationError, WrongHardware
from hwgen.arch.hls_bundle import WORD_BYTES, HlsBundle, StreamTensor

LOG = logging.getLogger("shears.host")

_ADDRESS_LIMIT = 1 << 32


class StreamMismatch(WrongHardware):
    """The design does not give what the bundle says: it is of another network, or out of step."""


@dataclass(frozen=True)
class StreamRecord(RunRecord):
    """What the last run took; `counters` are BYTES_SENT, BYTES_RECEIVED and IMAGES."""

    @property
    def cycles(self) -> int:
        """An hls4ml design counts no cycles; raises AttributeError."""
        raise AttributeError(
            "an hls4ml design counts no cycles; device_seconds is what a run took, bundle.cycles "
            "what was estimated"
        )


class Hls4mlAccelerator:
    """An hls4ml network on a board, with the interface of `host.Accelerator`.

    Parameters
    ----------
    bundle
        ``HlsBundle.load("PROJECT/bundle.json")``.
    device
        A pynq Device; None is the board this runs on.
    overlay
        The path of the project's bitstream, which is loaded, or a `pynq.Overlay`. Its ip_dict
        tells where the DMA is.
    dma
        Name of the DMA in the overlay, where it holds several.
    timeout_s
        Longest wait for one transfer.
    most_images
        Images that `run_batch` sends in one transfer at most; fewer where the DMA's length
        register does not hold their bytes.
    reload
        Whether to load the bitstream again after a failure. Everything else in it starts anew
        too. Without it a design that was left in the middle of an image stays unusable.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense.
    DeviceNotFound, WrongHardware, AllocationError, DmaTimeout, DmaError
        See `host.errors` and `host.dma`; nothing stays allocated.
    StreamMismatch
        When the bundle's test images do not give its results.
    """

    def __init__(
        self,
        bundle: HlsBundle,
        device: Any = None,
        *,
        overlay: Any = None,
        dma: str | None = None,
        timeout_s: float = 30.0,
        most_images: int = 32,
        reload: bool = True,
    ) -> None:
        if not isinstance(bundle, HlsBundle):
            raise TypeError(
                f"bundle must be an HlsBundle, not {type(bundle).__name__}; try "
                "HlsBundle.load('PROJECT/bundle.json')"
            )
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s!r}")
        if most_images < 1:
            raise ValueError(f"most_images must be 1 or more, not {most_images!r}")
        if overlay is None:
            raise ValueError(
                "overlay must be the bitstream's path or a pynq.Overlay: it tells where the DMA "
                "is and how long a transfer may be"
            )
        if isinstance(overlay, (str, os.PathLike)):
            overlay = import_pynq().Overlay(os.fspath(overlay), device=device)
        self.bundle = bundle
        self.timeout_s = timeout_s
        self.reload = reload
        self._overlay = overlay
        self._device = getattr(overlay, "device", None) or device or active_device()
        _check_network(overlay.ip_dict, bundle)
        name = find_dma(overlay.ip_dict, dma)
        with answering(f"opening the DMA {name!r}"):
            self._dma = Dma(name, overlay.ip_dict[name], self._device, WORD_BYTES)
        self._images = min(most_images, self._most_images())
        self._board: Board = board_at(self._device, self._dma.base_address)
        self._buffers: dict[str, Any] = {}
        self._last_run: RunRecord | None = None
        self._open = True
        self._suspect = self._checking = False
        try:
            self.load()
        except BaseException:
            self.close()
            raise

    @property
    def last_run(self) -> RunRecord | None:
        """Times and bytes of the last transfer that succeeded; None before the first."""
        return self._last_run

    def load(self) -> None:
        """Start the DMA and run the bundle's test images.

        The constructor calls it. Call it again after loading a bitstream anew.

        Raises
        ------
        WrongHardware
            When the DMA does not answer as one.
        StreamMismatch
            When the design does not give the bundle's results.
        AllocationError
            When the board has no memory for it.
        DmaTimeout, DmaError
            When the test images do not come through.
        """
        with self._held("loading"), self._board.answering(self._what("loading")):
            self._check_open()
            if not self._buffers:
                self._allocate()
            first: AcceleratorError | None = None
            left = self._dma.status()
            if not self._suspect and (self._dma.untouched or left.done):
                try:
                    self._dma.start()
                    self._check()
                    return
                except AcceleratorError as error:
                    if not self.reload:
                        raise
                    first = error
            # A transfer broke off, ours or that of another program, or the results are wrong.
            LOG.warning("the DMA was left at %s, %s; starting anew", left, first or "unfinished")
            trouble = self._recover()
            if trouble:
                raise first or StreamMismatch(f"{self._what('loading')}: {after(trouble)}")

    def locked(self) -> AbstractContextManager[Any]:
        """Keep the board for this thread: ``with accelerator.locked(): ...``.

        Raises
        ------
        BoardBusy
            When another thread keeps it for all of `timeout_s`.
        """
        return self._held("locking")

    def run(self, image: ArrayLike) -> NDArray[np.float32]:
        """Run one image through the network.

        Parameters
        ----------
        image
            float32 (C, H, W) or (1, C, H, W); or uint8 (H, W, C), when the bundle has mean and std.

        Returns
        -------
        numpy.ndarray
            float32, a copy: (classes,) for a network that ends in a vector, else (H, W, C).

        Raises
        ------
        ValueError
            For another shape or dtype, NaN or infinity.
        DmaTimeout, DmaError, StreamMismatch, TransportError, AcceleratorClosed
            See `host.dma`. The board is usable afterwards, unless the message says otherwise.
        """
        started = time.perf_counter()
        codes = self._execute(self._quantize(image)[None], started)[0]
        return self.bundle.dequantize_output(0, codes)

    async def run_async(self, image: ArrayLike) -> NDArray[np.float32]:
        """Run one image as `run` does, while the caller's event loop goes on.

        Runs of a board take place one after the other, in a thread of the board's own.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._board.worker(), self.run, image)

    def run_int8(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Run int8 codes (H, W, C); returns the output's int8 codes, a copy. Raises as `run`."""
        started = time.perf_counter()
        array = np.asarray(codes)
        channels, height, width = self.bundle.input.shape
        wanted = (height, width, channels)
        if array.shape != wanted or array.dtype != np.int8:
            raise ValueError(
                f"codes must be int8 of shape {wanted} (H, W, C), not {array.dtype} of "
                f"{array.shape}"
            )
        return self._execute(array[None], started)[0]

    def run_outputs_int8(self, codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], ...]:
        """Run int8 codes as `run_int8`; returns the one output's in a tuple. Raises as `run`."""
        return (self.run_int8(codes),)

    def run_batch(self, images: Iterable[ArrayLike]) -> NDArray[np.float32]:
        """Run images, many in one transfer; float32 (N, ...), one row each. Raises as `run`.

        `images` may be an array (N, C, H, W) or any iterable of what `run` takes; none at all is
        a ValueError. `last_run` is the last transfer's.
        """
        results, waiting = [], iter(images)
        while True:
            started = time.perf_counter()
            piece = [self._quantize(image) for image in itertools.islice(waiting, self._images)]
            if not piece:
                break
            codes = self._execute(np.stack(piece), started)
            results.append(self.bundle.dequantize_output(0, codes))
        if not results:
            raise ValueError("images must hold at least one image, not none")
        return np.concatenate(results)

    def close(self) -> None:
        """Free the DMA memory. Closing again does nothing."""
        with self._held("closing"):
            if not self._open:
                return
            self._open = False
            buffers, self._buffers = self._buffers, {}
            self._board.let_go(self, buffers, self._stopped, "DMA")

    def __enter__(self) -> Hls4mlAccelerator:
        """Return the accelerator; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _held(self, doing: str) -> AbstractContextManager[Any]:
        return self._board.hold(self.timeout_s, self._what(doing))

    def _what(self, doing: str) -> str:
        return f"{doing} {self.bundle.name!r}"

    def _check_open(self) -> None:
        if not self._open:
            raise AcceleratorClosed(f"{self.bundle.name!r} was used after close(); make another")

    def _stopped(self) -> bool:
        """Tell whether the DMA writes nothing any more, after a reset if need be."""
        try:
            status = self._dma.status()
            still = status.send & (HALTED | IDLE) and status.receive & (HALTED | IDLE)
            return bool(still) or self._dma.reset()
        except (OSError, RuntimeError) as error:
            # A register of a Zynq can always be read; a device that went away took its DDR along.
            LOG.warning("the device does not answer while it is closed: %s", error)
            return True

    def _most_images(self) -> int:
        """Images of one transfer that the DMA's length register allows."""
        bundle, limit = self.bundle, self._dma.most_bytes
        largest = max(bundle.input.image_bytes, bundle.output.image_bytes)
        if largest > limit:
            raise WrongHardware(
                f"one image of {bundle.name!r} has {bundle.input.image_bytes} bytes of input and "
                f"{bundle.output.image_bytes} of output, but DMA {self._dma.name!r} transfers at "
                f"most {limit}; raise c_sg_length_width in design.tcl (it goes up to 26)"
            )
        return limit // largest

    def _allocate(self) -> None:
        """Allocate exactly as many words as the images of one transfer have, or nothing."""
        sizes = {
            key: (self._images, math.prod(tensor.shape))
            for key, tensor in (("input", self.bundle.input), ("output", self.bundle.output))
        }
        total = sum(math.prod(shape) * WORD_BYTES for shape in sizes.values())
        allocate = import_pynq().allocate
        try:
            for key, shape in sizes.items():
                buffer = allocate(shape, dtype="f4", target=self._device)
                self._buffers[key] = buffer
                address = int(buffer.device_address)
                if address % WORD_BYTES or address + buffer.nbytes > _ADDRESS_LIMIT:
                    raise RuntimeError(f"it lies at {address:#x}, not below 4 GiB")
        except Exception as error:
            for buffer in self._buffers.values():
                buffer.freebuffer()
            self._buffers = {}
            free = cma_bytes()
            state = "" if free is None else f"; CMA has {free[0]} of {free[1]} bytes free"
            raise AllocationError(
                f"no DMA memory for the {key} of {self._images} images of {self.bundle.name!r} "
                f"({str(error).rstrip('.') or type(error).__name__}); {total} bytes are needed in "
                f"all{state}; close other accelerators, or give a smaller most_images"
            ) from error
        self._board.allocated[self] = (self.bundle.name, total)

    def _quantize(self, image: ArrayLike) -> NDArray[np.int8]:
        """Turn an image into codes (H, W, C)."""
        array = np.asarray(image)
        if array.dtype == np.uint8:
            channels, height, width = self.bundle.input.shape
            if array.shape != (height, width, channels):
                raise ValueError(
                    f"a picture for {self.bundle.name!r} must have shape "
                    f"{(height, width, channels)} (H, W, C), not {array.shape}"
                )
            if self.bundle.mean is None:
                raise ValueError(
                    f"an image for {self.bundle.name!r} must be float32 (C, H, W), not uint8: the "
                    "bundle has no mean and std; write it with save_bundle(preprocess=(mean, std))"
                )
            array = self.bundle.preprocess(array)
        return self.bundle.quantize_input(array)

    def _execute(self, codes: NDArray[np.int8], started: float) -> NDArray[np.int8]:
        """Run codes (n, H, W, C), n no more than one transfer takes, and keep the record."""
        words = self.bundle.input.to_words(codes)
        packed = time.perf_counter()
        with self._held("running"), self._board.answering(self._what("running")):
            self._check_open()
            held = time.perf_counter()
            self._make_ready()
            ready = time.perf_counter()
            status, raw = self._transfer(words)
            ran = time.perf_counter()
            result = self._codes(status, raw, len(codes))
            ended = time.perf_counter()
            self._last_run = StreamRecord(
                counters={
                    "BYTES_SENT": words.nbytes,
                    "BYTES_RECEIVED": status.received,
                    "IMAGES": len(codes),
                },
                pack_seconds=packed - started,
                setup_seconds=ready - held,
                device_seconds=ran - ready,
                unpack_seconds=ended - ran,
                total_seconds=ended - started,
                attempts=1,
            )
            return result

    def _make_ready(self) -> None:
        """Have a DMA that pynq's driver can use and a design at the start of an image."""
        if self._suspect or not self._dma.ready:
            self.load()

    def _transfer(self, words: NDArray[np.float32]) -> tuple[DmaStatus, NDArray[np.float32]]:
        """Send the words of n images, and receive n results; raises unless all came.

        The lengths are exactly what the design takes and gives: the DMA sets TLAST at the end of
        what it sends, and the design sets TLAST at the end of the image that it came with.
        """
        count = len(words)
        sent = count * self.bundle.input.image_bytes
        received = count * self.bundle.output.image_bytes
        self._suspect = True  # until the result is seen, whatever happens
        source, target = self._buffers["input"], self._buffers["output"]
        source[:count] = words.reshape(count, -1)
        try:
            status = self._dma.exchange(source, sent, target, received, self.timeout_s)
        except BaseException:  # KeyboardInterrupt too: nothing may go on writing to our buffers
            try:
                self._dma.reset()
            except OSError as error:  # the next run resets it
                LOG.warning("%s can't be stopped: %s", self._what("running"), error)
            raise
        if not status.done:
            what, trouble = self._what("running"), self._recover()
            if status.failed:
                raise DmaError(what, status, trouble)
            raise DmaTimeout(what, self.timeout_s, status, trouble)
        if status.received != received:
            trouble = self._recover()
            raise StreamMismatch(
                f"{self._what('running')} must give {received} bytes for {count} images, not "
                f"{status.received}: the bitstream is of another network than the bundle, or was "
                f"in the middle of an image; {after(trouble)}"
            )
        self._suspect = False
        return status, np.array(target[:count], dtype=np.float32)

    def _codes(self, status: DmaStatus, raw: NDArray[np.float32], count: int) -> NDArray[np.int8]:
        """Turn the received words into codes."""
        tensor: StreamTensor = self.bundle.output
        try:
            return tensor.to_codes(raw)
        except ValueError as error:
            trouble = self._recover()
            raise StreamMismatch(
                f"{self._what('running')} gave what is no code of the output: {error}; the "
                f"bitstream is of another network than the bundle; {after(trouble)}"
            ) from error

    def _check(self) -> None:
        """Run the bundle's test images; raises StreamMismatch unless every bit is right."""
        bundle = self.bundle
        self._checking = True
        try:
            for at, (image, right) in enumerate(
                zip(bundle.check_input, bundle.check_output, strict=True)
            ):
                status, raw = self._transfer(bundle.input.to_words(image[None]))
                found = self._codes(status, raw, 1).reshape(right.shape)
                wrong = int((found != right).sum())
                if wrong:
                    self._suspect = True
                    raise StreamMismatch(
                        f"the design must give the results of {bundle.name!r}, but {wrong} of "
                        f"{right.size} codes of test image {at} differ: it is of another network "
                        "than the bundle, or in the middle of an image; load the bitstream of the "
                        "project that the bundle lies in"
                    )
        finally:
            self._checking = False

    def _recover(self) -> str:
        """Reset the DMA, load the bitstream again, run the test images; returns what went wrong.

        Nothing is done while the test images run: who runs them says what their failure means.
        """
        self._suspect = True
        if self._checking:
            return "the bundle's test images do not come through"
        try:
            if not self._dma.reset():
                return "the reset of the DMA did not end"
            if self.reload:
                self._overlay.download()
            self._dma.start()
            self._check()  # which clears the suspicion
        except Exception as error:  # of pynq, of the driver: the first failure is the one to raise
            LOG.warning("%s could not be brought back: %s", self.bundle.name, error)
            return f"{type(error).__name__}: {error}"
        return ""


def _check_network(ip_dict: Any, bundle: HlsBundle) -> None:
    """Refuse an overlay that names other hls4ml designs alone.

    Overlays name only what has registers, in most versions of pynq; the design has none.
    """
    kinds = [str(entry.get("type")) for entry in ip_dict.values()]
    designs = {kind.rpartition(":")[0] for kind in kinds if kind.startswith("xilinx.com:hls:")}
    networks = sorted(design for design in designs if design.endswith("_axi"))
    if networks and bundle.ip not in networks:
        raise WrongHardware(
            f"the overlay must hold {bundle.ip}, not {', '.join(networks)}; load the bitstream of "
            "the project that the bundle lies in"
        )
