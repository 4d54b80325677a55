"""Every command says what it does, and shows an example."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import environment

from pipeline import files

COMMANDS = sorted(
    path.stem
    for path in (files.ROOT / "pipeline").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
)


ASK = """
import contextlib, io, json, runpy, sys
commands, said = sys.argv[1:], {}
for command in commands:
    sys.argv, out, err = [command, "--help"], io.StringIO(), io.StringIO()
    sys.modules.pop(f"pipeline.{command}", None)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"pipeline.{command}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            said[command] = (ended.code, out.getvalue(), err.getvalue())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str, str]]:
    """Return how each command ends with ``--help`` and what it says there, asked in one process: MLflow takes 4 s."""
    words = [sys.executable, "-c", ASK, *COMMANDS]
    done = subprocess.run(words, cwd=files.ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(helped: dict[str, tuple[int, str, str]], command: str) -> None:
    status, out, err = helped[command]
    assert (status, err) == (0, "")
    first, *_, last = out.splitlines()
    assert first
    assert last.startswith(f"example: python -m pipeline.{command}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "summary"])
def test_stopping_a_command_that_is_still_starting_leaves_no_traceback(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", f"pipeline.{command}"]
    process = subprocess.Popen(words, cwd=files.ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    next(line for line in process.stderr if line.endswith("| pipeline\n"))
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0
    assert "Traceback" not in said


def test_there_are_commands() -> None:
    assert {"train", "sweep", "report", "demo", "ui"} <= set(COMMANDS)
