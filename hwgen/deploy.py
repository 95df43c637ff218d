# SPDX-License-Identifier: Apache-2.0
"""The generator room: one archive with all that a board needs, for a board without a network.

It holds a wheel of the board's part of Shears (`hwgen.arch`, `host`, the report of profiles: pure
Python that needs what a PYNQ image has), bundles, the overlay where it was built, notebooks with
their networks, a page that says what to do, and checksums. The same input gives the same bytes:
times are fixed, files are in order, and the wheel is written here, without a build backend that
would have to be fetched.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from hwgen.arch.bundle import FILES, Bundle
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import replacing
from hwgen.arch.package import IP_VLNV, config_of
from hwgen.boards import Board

NOT_BUILT = "overlay/NOT-BUILT.txt"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_TAR_TIME = 315532800  # the same moment, in seconds
_GENERATOR = "shears package"
_NUMPY = "numpy>=1.21"  # PYNQ 3.0 images have Ubuntu 22.04's 1.21.5
# Beside `hwgen.arch`, which is all that they import; the second draws with matplotlib, if asked to.
_FROM_HWGEN = ("__init__.py", "profile_report.py")
_NOTEBOOK_FILES = (".ipynb", ".py", ".md", ".npz", ".npy", ".png", ".jpg", ".json", ".bin")


class PackageError(ValueError):
    """What is to be packed does not exist or does not belong together."""


@dataclass(frozen=True)
class Package:
    """A written archive.

    Attributes
    ----------
    path, sha256
        The file, and its checksum.
    files
        Size in bytes of each file in it.
    overlay
        Whether a bitstream is among them.
    digest
        Of the configuration that bundles and bitstream are for.
    """

    path: Path
    sha256: str
    files: dict[str, int]
    overlay: bool
    digest: int


def write_package(
    board: Board,
    bundles: Sequence[Path],
    path: Path,
    *,
    bitstream: Path | None = None,
    notebooks: Path | None = None,
) -> Package:
    """Write the archive, whole or not at all.

    Parameters
    ----------
    board
        The board; without a bitstream, its configuration is what bundles must be for.
    bundles
        Folders of bundles, and files of cascades. None at all makes an archive for the self test.
    path
        The .tar.gz to write.
    bitstream
        Folder with one .bit and the .hwh beside it, as `shears build` leaves them.
    notebooks
        Folder to take along, with its bundles; ignored where there is none.

    Raises
    ------
    PackageError
        When a bundle or the bitstream is for another configuration, two bundles have one name,
        or the folder of the bitstream has none.
    BundleError
        When a bundle is damaged.
    """
    overlay = _overlay_files(bitstream) if bitstream is not None else None
    config = board.config if overlay is None else _overlay_config(overlay[1])
    contents: dict[str, bytes] = {}
    name, wheel = board_wheel()
    contents[name] = wheel
    packed: dict[str, _Found] = {}

    def checked(source: Path) -> _Found:
        """Read a bundle, or a cascade; it must be for the configuration."""
        found = _bundle_files(source)
        wrong = {digest for digest in found.digests if digest != config.digest()}
        if wrong:
            raise PackageError(
                f"{source} must be compiled for configuration {config.digest():016x}, which "
                f"{'the bitstream' if overlay else board.key} has, not {min(wrong):016x}; compile "
                f"it for this board, or give the bitstream of its own with --bitstream"
            )
        return found

    for source in bundles:
        found = checked(source)
        if found.name in packed:
            raise PackageError(f"two bundles are called {found.name!r}; rename one of them")
        packed[found.name] = found
        contents |= {f"bundles/{name}": data for name, data in found.files.items()}
    if overlay is not None:
        for place in overlay:
            contents[f"overlay/shears{place.suffix}"] = place.read_bytes()
    else:
        contents[NOT_BUILT] = _not_built(board).encode()
    if notebooks is not None and notebooks.is_dir():
        for place in sorted(notebooks.rglob("manifest.json")):
            checked(place.parent)
        for place in sorted(notebooks.rglob("*")):
            relative = place.relative_to(notebooks)
            hidden = any(part.startswith(".") for part in relative.parts)
            if place.is_file() and place.suffix in _NOTEBOOK_FILES and not hidden:
                contents[f"notebooks/{relative.as_posix()}"] = place.read_bytes()
    contents["INSTALL.md"] = _instructions(
        board, config, list(packed.values()), overlay is not None, _has_notebooks(contents)
    ).encode()
    sums = [
        f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in sorted(contents.items())
    ]
    contents["SHA256SUMS"] = ("\n".join(sums) + "\n").encode()
    data = _tar_gz({f"shears-{board.key}/{name}": part for name, part in contents.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Package(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        files={name: len(part) for name, part in sorted(contents.items())},
        overlay=overlay is not None,
        digest=config.digest(),
    )


def board_wheel() -> tuple[str, bytes]:
    """Return the name and the bytes of a wheel of the board's part.

    It is the distribution ``shears`` under a local version ``+board``, so that the whole one,
    should it be installed some day, takes its place.
    """
    version = _version()
    local = f"{version}.board" if "+" in version else f"{version}+board"
    files = {**_sources("hwgen.arch", "hwgen/arch"), **_sources("host", "host")}
    for name in _FROM_HWGEN:
        files[f"hwgen/{name}"] = _package_folder("hwgen").joinpath(name).read_bytes()
    info = f"shears-{local}.dist-info"
    headers = [
        "Metadata-Version: 2.1",
        "Name: shears",
        f"Version: {local}",
        "Summary: The board's part of Shears: driver and contract",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        f"Requires-Dist: {_NUMPY}",
    ]
    files[f"{info}/METADATA"] = ("\n".join(headers) + "\n").encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {_GENERATOR}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    files[f"{info}/entry_points.txt"] = (
        b"[console_scripts]\nshears-selftest = host.selftest:main\n\n[pynq.lib]\nshears = host.ip\n"
    )
    if (text := _license()) is not None:
        files[f"{info}/LICENSE"] = text
    record = [f"{name},sha256={_urlsafe(data)},{len(data)}" for name, data in sorted(files.items())]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    return f"shears-{local}-py3-none-any.whl", _zip(files)


def _urlsafe(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _version() -> str:
    """Return the version of the Shears that runs; a bare checkout has none."""
    try:
        return metadata.version("shears")
    except metadata.PackageNotFoundError:
        return "0"


def _license() -> bytes | None:
    """Return the licence, from a checkout or from where a wheel has put it."""
    beside = _package_folder("hwgen").parent / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    try:
        text = metadata.distribution("shears").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        return None
    return None if text is None else text.encode()


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise PackageError(f"the package {name!r} must be installed beside this one")
    return Path(next(iter(spec.submodule_search_locations)))


def _sources(package: str, folder: str) -> dict[str, bytes]:
    """Return the Python files of a package, by their place in the wheel."""
    root = _package_folder(package)
    return {
        f"{folder}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.py"))
    }


@dataclass(frozen=True)
class _Found:
    """A bundle or cascade: its name here, its files, and what configurations it is for."""

    name: str
    files: dict[str, bytes]
    digests: set[int]
    channels: int
    cascade: bool = False

    @property
    def snippet(self) -> str:
        """Python that runs it on the board."""
        if self.cascade:
            return f"""\
import numpy as np

import host
from hwgen.arch import CascadeBundle

bundle = CascadeBundle.load("bundles/{self.name}")
with host.CascadeClassifier(bundle, overlay="overlay/shears.bit") as classifier:
    print(classifier.run(np.zeros((64, 64, {self.channels}), np.uint8)))
"""
        return f"""\
import numpy as np

import host
from hwgen.arch import Bundle

overlay = host.open_overlay("overlay/shears.bit")
bundle = Bundle.load("bundles/{self.name}")
with overlay.accelerator.load(bundle) as accelerator:
    images = np.zeros((bundle.batch, *bundle.input.shape), np.float32)
    print(accelerator.run_batch(images), accelerator.last_run.cycles, "cycles")
"""


def _bundle_files(source: Path) -> _Found:
    """Read a bundle or a cascade, every byte checked."""
    name = source.resolve().name
    if source.is_file():
        cascade = CascadeBundle.load(source)
        digests = {bundle.config.digest() for bundle in cascade.members.values()}
        return _Found(name, {name: source.read_bytes()}, digests, cascade.channels, cascade=True)
    bundle = Bundle.load(source)
    files = {f"{name}/{file}": (source / file).read_bytes() for file in FILES}
    return _Found(name, files, {bundle.config.digest()}, bundle.input.shape[0])


def _overlay_files(folder: Path) -> tuple[Path, Path]:
    """Return the .bit and the .hwh of a folder."""
    found = sorted(folder.glob("*.bit"))
    pairs = [(bit, bit.with_suffix(".hwh")) for bit in found if bit.with_suffix(".hwh").is_file()]
    if len(pairs) != 1:
        raise PackageError(
            f"{folder} must hold one .bit with the .hwh of the same name, not "
            f"{[path.name for path in found] or 'none'}; shears build makes them with Vivado, and "
            "without --bitstream the archive is made without"
        )
    return pairs[0]


def _overlay_config(hwh: Path) -> AcceleratorConfig:
    """Return the configuration that an overlay's .hwh says its bitstream has."""
    try:
        tree = ElementTree.parse(hwh)
    except ElementTree.ParseError as error:
        raise PackageError(f"{hwh} is damaged ({error}); copy it again") from error
    kind = IP_VLNV.rpartition(":")[0]
    modules = [m for m in tree.iter("MODULE") if m.get("VLNV", "").rpartition(":")[0] == kind]
    if not modules:
        raise PackageError(f"{hwh} must have a Shears accelerator, {IP_VLNV}, but has none")
    found = []
    for module in modules:
        parameters = {
            p.get("NAME", ""): p.get("VALUE", "") for p in module.iterfind("PARAMETERS/PARAMETER")
        }
        found.append(config_of(parameters))
    if len({config.digest() for config in found}) > 1:
        raise PackageError(f"{hwh} must have accelerators of one configuration, not of several")
    return found[0]


def _has_notebooks(contents: Mapping[str, bytes]) -> bool:
    return any(name.endswith(".ipynb") for name in contents)


def _not_built(board: Board) -> str:
    return (
        "No bitstream is in this archive: it was not built when the archive was made.\n\n"
        f"On a PC with Vivado: shears build --board {board.key}\n"
        f"Then: shears package --board {board.key} --bitstream build/{board.key} BUNDLE...\n"
        "or copy shears.bit and shears.hwh of that build into this folder.\n"
    )


def _instructions(
    board: Board,
    config: AcceleratorConfig,
    bundles: Sequence[_Found],
    overlay: bool,
    notebooks: bool,
) -> str:
    """Write INSTALL.md."""
    folder = f"shears-{board.key}"
    run = ""
    if bundles:
        run = (
            "## 4. Run a network\n\nIn Python as root, or in a notebook on the board, in this "
            f"folder:\n\n```python\n{bundles[0].snippet}```\n"
        )
    books = ""
    if notebooks:
        books = (
            f"\n## {5 if bundles else 4}. Notebooks\n\nCopy this folder to where the board's "
            "Jupyter looks, then open them in its page\n(`http://BOARD:9090`), folder "
            f"`{folder}/notebooks`:\n\n```sh\ncp -r . /home/xilinx/jupyter_notebooks/{folder}\n"
            "```\n"
        )
    missing = "" if overlay else (
        "\n**The bitstream is not in this archive**: overlay/NOT-BUILT.txt says how to get it. "
        "Steps 3 and 4 need it.\n"
    )  # fmt: skip
    listed = "\n".join(f"- `bundles/{one.name}`" for one in bundles) or "- none"
    return f"""\
# Shears on a {board.name}

Everything for a board without a network. It needs a PYNQ image, 3.0 or later, and what that image
has: Python 3.10 or later, numpy, pynq. Bundles and bitstream are for configuration
`{config.digest():016x}`. Bundles:

{listed}
{missing}
## 1. Copy the archive to the board

Over its USB or Ethernet connection (`scp FILE.tar.gz xilinx@BOARD:`), through the board's shared
folder, or on its SD card. There:

```sh
tar xzf {folder}.tar.gz
cd {folder}
sha256sum -c SHA256SUMS
```

## 2. Install, without a network

As root (`sudo -i`, then back to this folder), in pynq's environment:

```sh
source /etc/profile.d/pynq_venv.sh
pip install --no-index --no-deps ./shears-*.whl
```

## 3. Test the board

```sh
python -m host.selftest --overlay overlay/shears.bit
```

Every line must say `pass` (`skip` is none of a fault: the line says why). A line that fails says
what to look at.

{run}{books}"""


def _zip(files: Mapping[str, bytes]) -> bytes:
    """Write a wheel: stored, in order, with one time for all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files, key=lambda name: (".dist-info/" in name, name)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, whatever this runs on
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _tar_gz(files: Mapping[str, bytes]) -> bytes:
    """Write a .tar.gz: in order, of nobody, with one time for all."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(files):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.mode = len(files[name]), _TAR_TIME, 0o644
                archive.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()
