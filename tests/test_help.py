"""Every command says what it does, and shows an example."""

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


def test_there_are_commands() -> None:
    assert {"train", "sweep", "report", "demo", "ui"} <= set(COMMANDS)
