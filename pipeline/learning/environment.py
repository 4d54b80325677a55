"""Give TensorFlow and Keras the project's own settings, whatever the shell and the person's files say."""

from __future__ import annotations

import os

PREFIXES = ("TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS_", "OMP_", "KMP_", "MKL_")  # whose variables are removed
SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,  # holds no keras.json (floatx, image_data_format, epsilon) and takes none
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "1",  # TensorFlow sets it only where AVX-512 is; a step takes 0.64 of the time with it
    "CUDA_VISIBLE_DEVICES": "-1",  # a GPU gives other bits, and no trajectory's key says that it was there
}
INSTRUCTIONS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "native": {},
}
_chosen = ""


def isolate(instructions: str = "avx2") -> str:
    """Set the variables of TensorFlow, oneDNN and Keras, and return the instructions that this process computes with.

    Call it before TensorFlow is imported, which is when they are read: so only the first call in a process counts.
    Measured on the digest of a training: TF_ENABLE_ONEDNN_OPTS, ONEDNN_ and DNNL_MAX_CPU_ISA, their FPMATH_MODE and
    TF_XLA_FLAGS change it; OPENBLAS_*, OPENCV_* and NPY_DISABLE_CPU_FEATURES do not.
    """
    global _chosen
    if not _chosen:
        for name in [name for name in os.environ if name.startswith(PREFIXES)]:
            del os.environ[name]
        os.environ.update(SETTINGS | INSTRUCTIONS[instructions])
        _chosen = instructions
    return _chosen
