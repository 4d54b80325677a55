"""console says errors in one line, ends with the right status, and lets go of what is held when it is stopped."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import Project

from pipeline import console, files

PROGRAM = """
import os, sys, time
from pathlib import Path
from pipeline import console, files
from pipeline.console import UserError

def main(arguments):
{body}

console.run(main, hint="Go on with `dvc repro`.")
"""


def command(body):
    """Return the command for a program whose ``main`` has this body."""
    return [sys.executable, "-c", PROGRAM.format(body=textwrap.indent(body, "    "))]


def run(body, *arguments, **options):
    return subprocess.run([*command(body), *arguments], cwd=files.ROOT, capture_output=True, text=True, **options)


def start(body):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(body), cwd=files.ROOT, text=True, **pipes)


def test_a_program_that_ends_well_has_status_0_and_its_arguments():
    done = run("print(arguments)", "one", "two")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['one', 'two']\n", "")


def test_a_program_may_choose_its_status():
    assert run("return 7").returncode == 7


def test_a_user_s_error_is_one_line_and_status_2():
    done = run("raise UserError('five.jpg: expected a picture')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: five.jpg: expected a picture\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "cp1252"])
def test_a_character_that_the_output_cannot_show_ends_nothing(encoding):
    done = run(
        "print('batch 64 \u00b7 \u0663.png')", env=os.environ | {"PYTHONIOENCODING": encoding}, encoding=encoding
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_s_error_may_have_a_status_of_its_own():
    assert run("raise UserError('worse', status=3)").returncode == 3


def test_a_fault_of_ours_keeps_its_traceback():
    done = run("{}['missing']")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("open('/nowhere/file')", "error: /nowhere/file: No such file or directory; expected it to exist"),
        ("open('/')", "error: /: Is a directory; expected a file, found a folder"),
        ("open('/dev/null/file')", "error: /dev/null/file: Not a directory; expected a folder, found a file"),
        ("raise OSError(28, 'No space left on device', 'x')", "error: x: No space left on device; free some space"),
        ("raise OSError(28, 'No space left on device')", "error: a file: No space left on device; free some space"),
        ("raise OSError(122, 'Disk quota exceeded')", "error: a file: Disk quota exceeded; free some space"),
        ("raise OSError(116, 'Stale file handle', 'x')", "error: x: Stale file handle; expected a file or folder that"),
        ("open('n' * 300)", f"error: {'n' * 300}: File name too long; expected a file or folder that"),
        ("raise OSError(30, 'Read-only file system', 'x')", "error: x: Read-only file system; expected a folder that"),
    ],
)
def test_what_the_disk_refuses_is_one_line_with_what_to_do(body, expected):
    done = run(body)
    assert done.returncode == 2
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_system_that_is_not_the_disk_s_keeps_its_traceback():
    assert "Traceback" in run("raise OSError(111, 'Connection refused')").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_program_closes_its_files_and_prints_its_hint(tmp_path, number):
    kept = tmp_path / "kept"
    body = (
        f"with files.atomic_write(Path({str(kept)!r})) as stream:\n"
        "    stream.write(b'half'); print('ready', flush=True)\n"
        "    time.sleep(30)"
    )
    process = start(body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert said == f"stopped by {number.name}. Go on with `dvc repro`.\n"
    assert list(tmp_path.iterdir()) == []


COMPUTING = """
import cv2, numpy
picture = numpy.zeros((300, 300), "f4")
def compute():
    while True:
        cv2.GaussianBlur(picture, (5, 5), 1)
for _ in range(3):
    console.in_background(compute)
time.sleep(0.3)
{end}
"""


@pytest.mark.parametrize(("end", "status"), [("return 7", 7), ("raise UserError('no')", 2), ("os.kill(0, 15)", 143)])
def test_a_thread_that_computes_in_c_does_not_abort_the_process_that_ends(end, status):
    assert run(COMPUTING.format(end=end), start_new_session=True).returncode == status


CLOSING = """
try:
    print("ready", flush=True)
    time.sleep(30)
finally:
    print("closing", flush=True)
    time.sleep(0.5)
    print("closed")
"""


def test_a_second_interrupt_does_not_break_what_the_first_one_closes():
    process = start(CLOSING)
    for expected in ("ready\n", "closing\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "closed\n")


def test_a_signal_waits_for_what_must_not_be_torn():
    done = run("""
        import signal, threading
        def other():
            with console.undisturbed():
                time.sleep(60)
        threading.Thread(target=other, daemon=True).start()
        with console.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            print("whole")
        print("never")
    """)
    assert done.stdout == "whole\n"
    assert done.returncode == 143


def test_a_reader_that_leaves_early_is_no_error():
    program = command("for number in range(100000): print(number)")
    shell = ["bash", "-o", "pipefail", "-c", '"$@" | head -1', "bash", *program]
    done = subprocess.run(shell, cwd=files.ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


def test_arguments_are_refused_where_there_are_none():
    with pytest.raises(console.UserError, match="unexpected '--epochs 3': this stage has no arguments"):
        console.no_arguments(["--epochs", "3"])


def test_a_log_gets_no_progress_of_a_short_task():
    done = run("with console.progress(3, 'digits', 'images') as bar: bar.update(3)")
    assert done.stderr == ""


def test_a_log_gets_whole_lines_of_progress():
    body = "console.LOG_SECONDS = 0.1\nwith console.progress(8, 'digits', 'images') as bar:\n"
    done = run(body + "    for _ in range(8): time.sleep(.06); bar.update(1); bar.set_postfix(x=1, refresh=False)")
    first, *others = done.stderr.splitlines()
    assert re.fullmatch(r"digits: 2 of 8 images, 00:00 so far, 00:00 left", first)
    assert 1 <= len(others) <= 3
    assert "\r" not in done.stderr


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 second"), (89, "89 seconds"), (130, "2 minutes"), (7300, "2 hours")]
)
def test_a_duration_is_printed_in_a_unit_that_fits_it(seconds, words):
    assert console.duration(seconds) == words


def test_a_progress_bar_is_seen_on_a_terminal():
    body = "with console.progress(3, 'digits', 'image') as bar:\n    bar.update(1); time.sleep(.2); bar.update(1)"
    assert "digits:" in Project(files.ROOT).in_terminal(*command(body))


def test_a_path_in_the_current_folder_is_printed_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert console.display_path(tmp_path / "a/b") == "a/b"
    assert console.display_path(files.ROOT) == str(files.ROOT)


def test_output_of_c_libraries_is_suppressed(capfd):
    with console.hushed():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == ""


def test_suppressed_output_is_printed_when_the_block_fails(capfd):
    def fail():
        os.write(2, b"the reason")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), console.hushed():
        fail()
    assert capfd.readouterr().err == "the reason"
