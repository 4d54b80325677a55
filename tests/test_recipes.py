"""The recipes of the ladder are parameters that `dvc exp run` takes."""

import re
import statistics

import pytest
import yaml

from benchmarks import recipes
from pipeline import config, files
from pipeline.console import UserError

STUDY = (files.ROOT / "docs/experiments.md").read_text("utf-8")
SEEDS = {
    "article": 5,
    "digits as photographs show them": 5,
    "twenty epochs": 5,
    "ours": 5,
    "twenty epochs without other hands": 4,
    "twenty epochs without photographs": 5,
    "thirty epochs": 5,
}


def test_the_ladder_begins_with_the_article_and_ends_with_what_params_yaml_says():
    ladder = recipes.ladder()
    assert next(iter(ladder)) == "article"
    assert (ladder["article"].dropout, ladder["article"].average, ladder["article"].augment.share) == (0.2, 0, 0)
    assert ladder["ours"] == config.load().train


@pytest.mark.parametrize("name", recipes.ladder())
def test_the_options_of_a_recipe_make_params_yaml_that_recipe(name, capsys):
    recipes.main(["--options", name])
    options = re.findall(r"-S train\.([\w.]+)=(\S+)", capsys.readouterr().out)
    assert (
        recipes.changed(config.load().train, {key: yaml.safe_load(value) for key, value in options})
        == recipes.ladder()[name]
    )


def test_an_unknown_recipe_is_named():
    with pytest.raises(UserError, match="dinner: expected one of article, "):
        recipes.main(["--options", "dinner"])


def accuracies(name):
    return [float(row["test_accuracy"]) for row in recipes.kept_rows() if row["recipe"] == name]


def test_the_docs_say_what_the_study_found():
    for name, least in SEEDS.items():
        found = accuracies(name)
        assert len(found) >= least
        assert f"| {len(found)} | {recipes.spread(found)} |" in STUDY, name


def test_the_docs_say_what_photographs_cost():
    twenty, without = (statistics.mean(accuracies(f"twenty epochs{end}")) for end in ("", " without photographs"))
    assert f"that learns it as well loses {100 * (without - twenty):.2f} points" in STUDY
