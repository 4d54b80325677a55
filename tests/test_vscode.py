"""DVC's extension for Visual Studio Code finds what it needs: its own four questions, asked as it asks them.

What it asks and what it can draw are in its source, `extension/src/cli/dvc/reader.ts` and `contract.ts`; it takes DVC
from 3.33.3 on.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

import pytest
from conftest import Project

FILLED = {f"<DVC_METRIC_{name}>" for name in (
    "COLOR", "COLUMN", "DATA", "PLOT_HEIGHT", "PLOT_WIDTH", "SHAPE", "STROKE_DASH", "TITLE", "X", "X_LABEL", "Y",
    "Y_LABEL", "ZOOM_AND_PAN",
)}  # fmt: skip


def asked(project: Project, *words: str) -> Any:
    return json.loads(project.dvc(*words, "--json"))


def test_the_extension_supports_this_dvc() -> None:
    assert (3, 33) <= tuple(map(int, version("dvc").split(".")[:2])) < (4, 0)


@pytest.mark.slow
def test_every_plot_is_drawn_for_the_workspace_and_the_last_commit_side_by_side(made_once: Project) -> None:
    folder = ".dvc/tmp/plots"
    told = asked(made_once, "plots", "diff", "workspace", "HEAD", "-o", folder, "--split")
    assert "errors" not in told
    pictures = {"reports/mistakes.png", "reports/contact_sheet.png", "reports/digits.png"}
    assert set(told["data"]) == {"loss", "accuracy", "confusion", "calibration"} | pictures
    for name, plots in told["data"].items():
        assert {revision for plot in plots for revision in plot["revisions"]} == {"workspace", "HEAD"}
        for plot in plots:
            if name in pictures:
                assert plot["type"] == "image"
                assert (made_once.root / plot["url"]).parent == made_once.root / folder
                continue
            left = set(re.findall(r"<DVC_\w+>", json.dumps(plot["content"])))
            assert plot["type"] == "vega"
            assert left == set(plot["anchor_definitions"]) <= FILLED
            assert plot["anchor_definitions"]["<DVC_METRIC_DATA>"]
            assert str(made_once.root) not in json.dumps(plot)


@pytest.mark.slow
def test_the_experiments_table_has_figures_parameters_and_files_and_no_absolute_path(made_once: Project) -> None:
    for row in asked(made_once, "exp", "show", "--num", "1"):
        assert not row["error"]
        assert set(row["data"]["metrics"]) == {f"reports/{name}.json" for name in ("train", "metrics", "photos")}
        assert row["data"]["params"]["params.yaml"]["data"]["train"]["batch_size"] == 128
        assert "pipeline/train.py" in row["data"]["deps"]
        assert "models/digits.keras" in row["data"]["outs"]
        assert str(made_once.root) not in json.dumps(row)


@pytest.mark.slow
def test_the_tree_of_tracked_files_shows_nothing_changed_after_a_commit(made_once: Project) -> None:
    told = asked(made_once, "data", "status", "--granular", "--unchanged")
    assert set(told) == {"unchanged"}
    assert {"data/raw/", "data/prepared/", "models/digits.keras"} <= set(told["unchanged"])
