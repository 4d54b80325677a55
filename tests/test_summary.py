"""The summary says what there is, and nothing of what there is not."""

import pytest

from pipeline import files, summary


def test_before_anything_is_made_it_says_what_to_type(tmp_path):
    lines = summary.summarize(tmp_path)
    assert any("make ui" in line for line in lines)
    assert not any("accuracy" in line for line in lines)


def test_each_report_is_one_line(tmp_path):
    files.write_json(
        tmp_path / "metrics.json",
        {"test_accuracy": 0.99412, "test_accuracy_low": 0.9925, "test_accuracy_high": 0.9954, "test_loss": 0.0182},
    )
    files.write_bytes(tmp_path / "mistakes.png", b"")
    lines = summary.summarize(tmp_path)
    assert "test accuracy 0.9941 (95%: 0.9925 to 0.9954), loss 0.0182" in lines
    assert f"See {tmp_path / 'mistakes.png'} (the mistakes)" in lines


@pytest.mark.parametrize("report", summary.FACTS)
def test_a_figure_that_a_report_lacks_is_not_said(tmp_path, report):
    files.write_json(tmp_path / report, {})
    assert summary.summarize(tmp_path) == summary.summarize(tmp_path / "nothing")


def test_photographs_without_labels_are_counted(tmp_path):
    files.write_json(tmp_path / "photos.json", {"photos_read": 3, "photos_scored": 0, "photos_unsure": 1})
    assert "3 pictures read, none with a label in labels.csv" in summary.summarize(tmp_path)
