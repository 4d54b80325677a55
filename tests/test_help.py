"""Every command says what it does, and shows an example."""

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


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str) -> None:
    words = [sys.executable, "-m", f"pipeline.{command}", "--help"]
    done = subprocess.run(words, cwd=files.ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, *_, last = done.stdout.splitlines()
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
