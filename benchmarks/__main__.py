"""Measure what the README says of speed and memory, and write it into benchmarks/README.md.

    python -m benchmarks [--quick] [--part step] [--part gate]

Every part is a module of its own and can be run alone; what is not run anew stays in the report as it was. The quick
mode ends within five minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipeline import console, files, provenance
from pipeline.learning import trajectory

REPORT = Path("benchmarks/README.md")
PARTS: dict[
    str, tuple[str, list[str], list[str]]
] = {  # title: (module, its arguments in the quick mode, its arguments otherwise)
    "A training step": ("benchmarks.step", ["--rounds", "3", "--steps", "20"], []),
    "How near to the floor": ("benchmarks.floor", ["--rounds", "3"], []),
    "From the start to 99.22%": ("benchmarks.race", ["--rounds", "1", "--epochs", "1"], []),
    "The workflow": ("benchmarks.workflow", ["--rounds", "1", "--train", "2000"], []),
    "Sweeps": ("benchmarks.sweep", ["--quick"], []),
    "The gate": ("benchmarks.gate", [], []),
    "What is refused": ("benchmarks.refusals", [], []),
    "Drift of a service": ("benchmarks.watch", ["--weeks", "20"], []),
    "A service under load": ("benchmarks.load", ["--seconds", "20"], []),
    "Rendered photographs": ("benchmarks.rendered", ["--count", "100", "--pairs", "50"], []),
}


def main(arguments: Sequence[str]) -> None:
    """Run the parts and write each into the report when it ends; the quick mode only prints."""
    names = {module.removeprefix("benchmarks."): title for title, (module, _, _) in PARTS.items()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and digits; prints, and writes nothing")
    parser.add_argument("--part", action="append", choices=names, help="only this one (may be given several times)")
    given = parser.parse_args(arguments)
    sections = {} if given.quick else kept_sections()
    for title in [names[name] for name in given.part or names]:
        module, short, full = PARTS[title]
        command = [sys.executable, "-m", module, *(short if given.quick else full)]
        print(f"== {title}: {' '.join(command[1:])}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise console.UserError(f"{module} ended with status {done.returncode}", status=1)
        sections[title] = f"`python -m {' '.join(command[2:])}`. {machine()}\n\n{done.stdout.strip()}\n"
        if not given.quick:
            files.write_text(REPORT, written(sections))
    if given.quick:
        print(written(sections))


def kept_sections() -> dict[str, str]:
    """Return the parts of the report that is there, by title."""
    found = REPORT.read_text("utf-8").split("\n## ")[1:] if REPORT.exists() else []
    return {title: content.lstrip("\n") for title, _, content in (part.partition("\n") for part in found)}


def written(sections: Mapping[str, str]) -> str:
    """Return the report, its parts in their own order."""
    parts = [f"## {title}\n\n{sections[title].rstrip()}\n" for title in PARTS if title in sections]
    return "\n".join(["# Benchmarks\n", *parts])


def machine() -> str:
    """Return the machine and the versions in a sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in provenance.PACKAGES)
    return (
        f"Measured on {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}. Medians."
    )


def processor() -> str:
    """Return the processor's name and the vector units that decide its speed and its bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return f"{name} ({' '.join(trajectory.processor())})"


if __name__ == "__main__":
    console.run(main)
