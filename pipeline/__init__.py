"""The workflow: five DVC stages, and the commands that stand on them."""

import importlib.util
import sys

if not importlib.util.find_spec("tqdm"):
    sys.stderr.write(
        f"error: {sys.executable} has none of the project's packages; "
        "run `make` once, then `source .venv/bin/activate`, or use the verbs of `make help`\n"
    )
    sys.exit(2)
