"""Give TensorFlow and Keras the project's own settings, whatever the shell and the person's files say."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions

PREFIXES = ("TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS_", "OMP_", "KMP_", "MKL_")  # whose variables are removed
SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,  # holds no keras.json (floatx, image_data_format, epsilon) and takes none
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "1",  # TensorFlow sets it only where AVX-512 is; a step takes 0.64 of the time with it
}
INSTRUCTIONS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "native": {},
}
DEVICES = {
    "cpu": {"CUDA_VISIBLE_DEVICES": "-1"},  # TensorFlow would take a GPU that it finds, which gives other bits
    "gpu": {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # that of `nvidia-smi`, whose names are in a trajectory's key
        "NVIDIA_TF32_OVERRIDE": "0",  # float32 keeps its 24 bits
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # trials of a sweep share a GPU: none takes all of its memory
    },
}
UNUSED = ("matplotlib", "pandas", "sklearn")  # Keras imports them, where they are installed, for what is not used here
_chosen: tuple[str, str] = ("", "")


def isolate(device: str = "cpu", instructions: str = "avx2") -> tuple[str, str]:
    """Set the variables of TensorFlow, oneDNN and Keras; return the device and instructions this process computes with.

    Call it before TensorFlow is imported, which is when they are read: so only the first call in a process counts.
    Measured on the digest of a training: TF_ENABLE_ONEDNN_OPTS, ONEDNN_ and DNNL_MAX_CPU_ISA, their FPMATH_MODE and
    TF_XLA_FLAGS change it; OPENBLAS_*, OPENCV_* and NPY_DISABLE_CPU_FEATURES do not; of OPENCV_IPP, which
    changes a picture of the reports, see ``pipeline/__init__.py``.
    """
    global _chosen
    if not all(_chosen):
        for name in [name for name in os.environ if name.startswith(PREFIXES)]:
            del os.environ[name]
        os.environ.update(SETTINGS | DEVICES[device] | INSTRUCTIONS[instructions])
        _chosen = device, instructions
    return _chosen


@contextlib.contextmanager
def without_unused() -> Iterator[None]:
    """Let Keras be imported as if the packages ``UNUSED`` were not installed: with them it takes 1.6 times as long.

    Measured in CPU seconds, medians of three on an Intel Xeon. Call it before threads start: they share the modules.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    try:
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it raises an ImportError
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, sys) is None:
                del sys.modules[name]


@functools.cache
def gpu() -> str:
    """Return the name of the GPU that TensorFlow takes here, the first that CUDA may see; "" where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={visible}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def gpu_packages() -> dict[str, str]:
    """Return the versions of NVIDIA's Python packages, by name."""
    return {each.name: each.version for each in distributions() if each.name.startswith("nvidia-")}
