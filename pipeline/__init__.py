"""The workflow: five DVC stages, and the commands that stand on them."""

import importlib.util
import os
import signal
import sys

if not importlib.util.find_spec("tqdm"):
    sys.stderr.write(
        f"error: {sys.executable} has none of the project's packages; "
        "run `make` once, then `source .venv/bin/activate`, or use the verbs of `make help`\n"
    )
    sys.exit(2)
os.environ.pop("OPENCV_IPP", None)  # read when cv2 is imported: `disabled` and `sse42` resize to other bits
if sys.argv[:1] == ["-m"]:  # a command that is still being imported: Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
