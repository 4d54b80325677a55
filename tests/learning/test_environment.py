"""The settings of the person's own TensorFlow, oneDNN and Keras change no bit of a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
import numpy as np
from pipeline import config
from pipeline.learning import model, trajectory
rng = np.random.default_rng(7)
images, labels = rng.integers(0, 256, (128, 28, 28), np.uint8), (np.arange(128) % 10).astype(np.uint8)
train = config.load().train.model_copy(update={"epochs": 1, "batch_size": 64})
digits = trajectory.Digits(images, labels, images[:99], labels[:99], sha256="")
(epoch,) = trajectory.train_epochs(digits, train)
print(model.sha256(model.package(epoch, train, digits)))
"""
VARIABLES = {  # most of the first seven change the digest, or end in a traceback, where they reach TensorFlow or Keras
    "KERAS_BACKEND": "jax",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
    "KERAS_NNX_ENABLED": "true",
    "OMP_NUM_THREADS": "7",
    "TF_NUM_INTRAOP_THREADS": "7",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
    "OPENCV_IPP": "disabled",
}
RESIZE = """
import hashlib
import pipeline
import cv2, numpy
image = numpy.random.default_rng(1).integers(0, 256, (97, 131, 3), numpy.uint8)
print(hashlib.sha256(cv2.resize(image, (200, 150), interpolation=cv2.INTER_CUBIC)).hexdigest())
"""
KERAS = {"backend": "torch", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}


def printed(code: str, **variables: str) -> str:
    """Return what Python prints for ``code``, with these variables besides its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_variables_of_the_shell_and_a_keras_json_change_no_bit_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text(json.dumps(KERAS))
    assert printed(TRAIN, **VARIABLES, KERAS_HOME=str(tmp_path)) == printed(TRAIN)


def test_the_instructions_are_those_that_were_asked_for_first_whatever_the_shell_says() -> None:
    code = "import os; from pipeline.learning.environment import isolate; isolate(instructions='avx2'); "
    code += "print(*isolate(), *(f'{name}={os.environ[name]}' for name in sorted(os.environ) if 'ONEDNN' in name))"
    said = printed(code, ONEDNN_MAX_CPU_ISA="SSE41", TF_ENABLE_ONEDNN_OPTS="0", ONEDNN_VERBOSE="1")
    assert said == "cpu avx2 ONEDNN_MAX_CPU_ISA=AVX2 TF_ENABLE_ONEDNN_OPTS=1\n"


@pytest.mark.parametrize(("device", "seen"), [("cpu", "-1"), ("gpu", "0")])
def test_a_gpu_is_hidden_unless_it_is_asked_for(device: str, seen: str) -> None:
    code = f"import os; from pipeline.learning.environment import isolate; isolate('{device}'); "
    assert printed(code + "print(os.environ['CUDA_VISIBLE_DEVICES'])", CUDA_VISIBLE_DEVICES="0") == f"{seen}\n"


@pytest.mark.slow
def test_packages_that_keras_imports_for_nothing_used_here_are_left_out_and_can_be_imported_later() -> None:
    code = "import sys; from pipeline.learning import environment, network; "
    code += "left_out = not sys.modules.keys() & set(environment.UNUSED); "
    code += "print(left_out, *(bool(__import__(name).__version__) for name in environment.UNUSED))"
    assert printed(code) == "True True True True\n"


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_said_before_anything_trains() -> None:
    code = TRAIN.replace('"epochs": 1', '"epochs": 1, "device": "gpu"')
    command = [sys.executable, "-c", f"from pipeline import console\nconsole.run(lambda _: exec({code!r}, {{}}))"]
    said = subprocess.run(
        command, env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == (
        "error: train.device is gpu, but TensorFlow finds none; expected an NVIDIA GPU and "
        "`pip install 'tensorflow[and-cuda]'`, or cpu\n"
    )


def test_a_model_packaged_from_kept_epochs_does_not_choose_for_the_training_that_follows() -> None:
    code = """
import numpy as np
from pipeline import config
from pipeline.learning import environment, trajectory
from pipeline.sweeps import trials
train = config.load().train.model_copy(update={"epochs": 1, "instructions": "native"})
digits = trajectory.Digits(*(np.zeros(0),) * 4, sha256="")
epoch = trajectory.Epoch(1, dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), 0.5), {})
kept = {trajectory.trajectory_key(train, ""): [epoch.to_bytes()]}
trial = trials.Trial(trials.Setting(0, train, {}), train.seed)
chosen = lambda *_: dict([environment.isolate()])
print(list(trials.train_trials(digits, [trial], kept, package=chosen))[-1].content)
"""
    assert printed(code) == "{'cpu': 'native'}\n"


@pytest.mark.slow
def test_a_worker_that_packaged_kept_epochs_trains_what_is_new(tmp_path: Path) -> None:
    kept = tmp_path / "kept.epoch"
    printed(TRAIN.replace("print(", f"open({str(kept)!r}, 'wb').write(epoch.to_bytes())\nprint("))
    code = (
        TRAIN.partition("(epoch,)")[0]
        + f"""
from pipeline.sweeps import trials
train = train.model_copy(update={{"threads": 1}})
kept = {{trajectory.trajectory_key(train, ""): [open({str(kept)!r}, "rb").read()]}}
setting = trials.Setting(0, train, {{}})
messages = [m for seed in (1, 2) for m in trials.train_trials(digits, [trials.Trial(setting, seed)], kept)]
print(*(type(message).__name__ for message in messages))
"""
    )
    assert printed(code) == "Started Packaged Started bytes Packaged\n"


def test_a_variable_of_opencv_changes_no_bit_of_a_picture() -> None:
    assert printed(RESIZE, OPENCV_IPP="disabled") == printed(RESIZE)
