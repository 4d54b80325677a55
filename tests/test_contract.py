"""What is said in several places is the same in all of them: dvc.yaml, params.yaml, imports, reports, README, lock."""

import ast
import functools
import graphlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline import config, files, model_card, summary, tracking

ROOT = files.ROOT
PACKAGE = ROOT / "pipeline"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
INITS = {"__init__", "learning.__init__", "photos.__init__"}  # of the packages that a registered model takes along
BASE = {"config", "console", "files"}
HEAVY = {"tensorflow", "keras", "mlflow", "ray"}
needs_results = pytest.mark.skipif(not (ROOT / "dvc.lock").exists(), reason="nothing has been made yet")


def path_of(module):
    """Return the file of a module of ours, by its name within the package."""
    return PACKAGE / f"{module.replace('.', '/')}.py"


@functools.cache
def imports(module, *, lazy=True):
    """Return the names that a module of ours imports; ``lazy`` ones are within functions."""
    tree = ast.parse(path_of(module).read_text("utf-8"))
    skipped = {id(node) for outer in ast.walk(tree) if not lazy and _waits(outer) for node in ast.walk(outer)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _waits(node):
    return isinstance(node, ast.FunctionDef | ast.Lambda) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )


def ours(module, *, lazy=True):
    """Return the modules of ours that a module imports itself."""
    named = {name.removeprefix("pipeline.") for name in imports(module, lazy=lazy)}
    named |= {name.rpartition(".")[0] for name in named}  # what is imported from a module is not one
    return named & set(MODULES)


def reached(module, *, lazy=True):
    """Return a module and all modules of ours that it imports, directly or not."""
    found, ahead = set(), {module}
    while ahead:
        each = ahead.pop()
        found.add(each)
        ahead |= ours(each, lazy=lazy) - found
    return found


def packages(module, *, lazy=True):
    """Return the top-level packages that a module imports itself."""
    return {name.split(".")[0] for name in imports(module, lazy=lazy)}


def listed(stage, *kinds):
    """Return the paths of a stage's lists in dvc.yaml, whose entries are paths or mappings from one path."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def outputs(stage):
    return listed(stage, "outs", "metrics", "plots")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_that_its_script_imports_and_no_others(stage):
    script = re.fullmatch(r"python -m pipeline\.(\w+)", STAGES[stage]["cmd"])
    assert script, "a stage runs one module of ours"
    expected = {path_of(module).relative_to(ROOT).as_posix() for module in reached(script[1])}
    assert {name for name in STAGES[stage]["deps"] if name.endswith(".py")} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_a_stage_wrote_or_what_git_holds(stage):
    written = {name for each in STAGES for name in outputs(each)}
    for name in listed(stage, "deps"):
        made = written & {name, *(str(folder) for folder in Path(name).parents)}
        assert made or (ROOT / name).exists(), name


def test_no_output_is_written_twice():
    written = [name for stage in STAGES for name in outputs(stage)]
    assert len(written) == len(set(written))


@pytest.mark.parametrize("stage", STAGES)
def test_the_lists_of_a_stage_are_in_order(stage):
    for kind in ("params", "metrics"):
        assert listed(stage, kind) == sorted(listed(stage, kind))
    assert listed(stage, "deps") == sorted(listed(stage, "deps"), key=lambda name: (name.endswith(".py"), name))


@pytest.mark.parametrize("stage", STAGES)
def test_the_parameters_of_a_stage_exist(stage):
    for name in listed(stage, "params"):
        assert value(name) is not None, name


@pytest.mark.parametrize(("stage", "section"), [("preprocess", config.Preprocess), ("train", config.Train)])
def test_a_stage_is_run_again_for_every_parameter_of_its_section(stage, section):
    own = [name for name in listed(stage, "params") if name.startswith(f"{stage}.")]
    assert own == [f"{stage}.{name}" for name in sorted(section.model_fields)]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not STAGES[stage].get("params")])
def test_a_stage_that_lists_no_parameters_reads_none(stage):
    assert "config.load(" not in (ROOT / "pipeline" / f"{stage.replace('-', '_')}.py").read_text("utf-8")


def value(name):
    """Return a value of params.yaml by its dotted name."""
    return functools.reduce(lambda section, part: section[part], name.split("."), PARAMS)


@needs_results
def test_the_reports_in_git_are_those_that_the_stages_write_and_small():
    declared = {name for stage in STAGES for name in outputs(stage) if name.startswith("reports/")}
    command = ["git", "ls-files", "reports"]
    committed = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert committed == declared
    assert {name for name in committed if (ROOT / name).stat().st_size > 200_000} == set()


def test_the_model_in_git_is_what_the_stage_train_leaves_to_it_and_small():
    kept = {name: options for out in STAGES["train"]["outs"] for name, options in out.items()}
    declared = {name for name in kept if name.startswith("models/") and kept[name].get("cache") is False}
    assert declared == {str(path) for path in model_card.KEPT.values()}
    command = ["git", "ls-files", "models"]
    committed = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    if not committed:
        pytest.skip("no committed model")
    assert committed == declared
    assert sum((ROOT / name).stat().st_size for name in committed) < 1_000_000


def test_every_parameter_says_in_a_comment_what_it_is():
    lines = (ROOT / "params.yaml").read_text("utf-8").splitlines()
    tunable = [line for line in lines if re.match(r"\s+\w+:", line) and not re.match(r"\s+parameters:", line)]
    trials = [line for line in tunable if re.search(r":\s*\[", line)]  # a sweep's lists, explained where they begin
    assert len(tunable) > 30
    assert [line for line in tunable if " # " not in line and line not in trials] == []


def test_params_yaml_has_the_order_and_the_keys_of_its_sections():
    assert list(PARAMS) == list(config.Params.model_fields)
    for section, kind in config.Params.model_fields.items():
        assert list(PARAMS[section]) == list(kind.annotation.model_fields), section


def test_a_registered_model_takes_with_it_the_modules_that_serving_imports_and_no_others():
    assert set(tracking.SERVED) == {f"{module.replace('.', '/')}.py" for module in reached("serving") | INITS}


def test_imports_go_one_way():
    order = graphlib.TopologicalSorter({module: ours(module) - {module} for module in MODULES})
    assert sorted(order.static_order()) == MODULES


@pytest.mark.parametrize("module", sorted(BASE))
def test_the_base_modules_import_no_other_module_of_the_project(module):
    assert reached(module) <= BASE


def test_stages_do_not_import_stages():
    stages = {stage.replace("-", "_") for stage in STAGES}
    for stage in stages & set(MODULES):
        assert reached(stage) & stages == {stage}


def test_only_network_knows_tensorflow():
    assert {module for module in MODULES if packages(module) & {"tensorflow", "keras"}} <= {"learning.network"}
    assert {module for module in MODULES if "learning.network" in reached(module, lazy=False)} <= {"learning.network"}


def test_only_modules_that_log_find_or_serve_runs_import_mlflow():
    known = {"registry", "reproduce", "serving", "store", "tracking"}
    assert {module for module in MODULES if "mlflow" in packages(module)} <= known


QUICK = {"evaluate", "fetch", "gate", "predict_photo", "preprocess", "summary"}


@pytest.mark.parametrize("module", sorted(QUICK & set(MODULES)))
def test_quick_commands_import_no_heavy_package_at_the_start(module):
    for each in reached(module, lazy=False):
        assert not packages(each, lazy=False) & HEAVY, each


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(path_of(module).read_text("utf-8")))


LOCKS = ("requirements.lock", "requirements-extras.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_pins_every_package_by_hash(lock):
    text = (ROOT / lock).read_text("utf-8")
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", text)
    packages = re.split(r"\n(?=\S)", text.strip())
    assert len(packages) > 100
    assert [package.split()[0] for package in packages if "==" not in package or "--hash=sha256:" not in package] == []


def asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    return {re.match(r"[\w-]+", requirement)[0] for requirement in wanted}


def locked(name):
    """Return the packages of a lock with their versions."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text("utf-8"), re.MULTILINE))


def test_the_locks_hold_what_the_project_asks_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    plain, extended = map(locked, LOCKS)
    assert asked_for() <= set(plain) <= set(extended)
    assert set(itertools.chain(*extras.values())) <= set(extended)


def test_an_extra_changes_no_package_that_a_models_bits_depend_on():
    plain, extended = map(locked, LOCKS)
    assert {name for name in plain if plain[name] != extended[name]} <= {"python-dateutil"}


PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "keras": "tensorflow",
    "markdown_it": "markdown-it-py",
    "ruamel": "ruamel-yaml",
    "yaml": "pyyaml",
}
BROUGHT = {"markupsafe", "sqlalchemy"}  # by MLflow, which answers in their words


def test_every_package_that_is_imported_is_asked_for():
    imported = {package for module in MODULES for package in packages(module)}
    imported -= sys.stdlib_module_names | BROUGHT | {"pipeline"}
    assert {PACKAGES.get(package, package.replace("_", "-")) for package in imported} <= asked_for()


def test_a_registered_model_asks_for_the_packages_that_its_modules_import():
    imported = {package for module in reached("serving") for package in packages(module)}
    imported -= sys.stdlib_module_names | {"pipeline", "pillow_heif"}  # without the last one it refuses HEIC
    assert {PACKAGES.get(package, package.replace("_", "-")) for package in imported} == set(tracking.SERVING_PACKAGES)


def test_every_verb_of_the_makefile_says_what_it_does():
    text = (ROOT / "Makefile").read_text("utf-8")
    verbs = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    described = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))
    assert verbs == described
    assert {"repro", "test", "test-fast", "check", "ui", "photo", "clean", "help"} <= described


@needs_results
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/*.md", "Makefile", "dvc.yaml"])
def test_every_module_and_report_that_is_named_exists(name):
    text = "\n".join(path.read_text("utf-8") for path in ROOT.glob(name))
    assert text
    assert [
        each for each in re.findall(r"pipeline\.((?:(?:learning|photos|sweeps)\.)?\w+)", text) if each not in MODULES
    ] == []
    named = set(re.findall(r"\breports/[\w.]+\w", text)) - UNKEPT
    assert {each for each in named if not (ROOT / each).exists()} == set()


UNKEPT = {  # made by commands, not by stages
    f"reports/{name}"
    for name in ("corrections.json", "gate.md", "index.html", "sweep.csv", "sweep_effects.png", "watch.html")
}
FIGURE = re.compile(r"<!-- (?P<name>[\w.]+):(?P<key>\w+) -->(?P<text>[^<]*)<!-- / -->")


@functools.cache
def committed(report):
    """Return a report as the last commit has it: the workspace's may be another machine's, or another training's."""
    found = subprocess.run(["git", "show", f"HEAD:./reports/{report}"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"no committed reports/{report}")
    return json.loads(found.stdout)


def test_the_figures_of_readme_and_docs_are_those_of_the_committed_reports():
    """They write a figure as ``<!-- metrics.json:test_accuracy -->0.9941<!-- / -->``, rounded as they like."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    figures = [figure for page in pages for figure in FIGURE.finditer(page.read_text("utf-8"))]
    assert len(figures) > 3
    for figure in figures:
        assert figure["text"].strip() == written(figure), figure[0]


def written(figure):
    """Return a report's value as a page should write it: per cent, decimals and thousands as it does already."""
    known = committed(figure["name"])[figure["key"]]
    text = figure["text"].strip()
    decimals = len(text.removesuffix("%").partition(".")[2])
    return f"{known:,.{decimals}%}" if text.endswith("%") else f"{known:,.{decimals}f}"


def test_the_model_that_the_docs_show_is_the_one_of_the_committed_reports():
    metrics = committed("metrics.json")
    shown = f"\nmodel {metrics['model_sha256'][:12]}, test accuracy {metrics['test_accuracy']:.4f}, commit "
    assert shown in (ROOT / "docs" / "photographs.md").read_text("utf-8")


def test_git_holds_the_folder_of_the_runs_and_nothing_in_it():
    def lists(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.split()

    assert lists("ls-files", "mlruns") == ["mlruns/.gitignore"]
    inside = ["mlruns/mlflow.db", "mlruns/.lock", "mlruns/artifacts/0/model.keras"]
    assert lists("check-ignore", "mlruns/.gitignore", *inside) == inside


def test_an_action_of_github_is_pinned_by_commit_and_names_its_version():
    used = re.findall(r"uses: (.*)", (ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert len(used) >= 4
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_what_is_checked_before_a_commit_is_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make --silent check"]


def test_the_papers_name_one_version_and_one_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    released = re.findall(
        r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert released[0] == project["version"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert (ROOT / "LICENSE").read_text("utf-8").startswith(f"{project['license']} License\n")


def test_the_readme_shows_what_make_prints_of_the_committed_reports(tmp_path):
    for name in ("train.json", "metrics.json", "photos.json"):
        files.write_json(tmp_path / name, committed(name))
    facts = [line for line in summary.summarize(tmp_path)[1:] if line and not line.startswith("  ")]
    assert len(facts) == 3
    assert "\n".join(facts) in (ROOT / "README.md").read_text("utf-8")


def test_no_file_names_a_folder_of_some_machine():
    places = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w")
    folders = ("pipeline", "tests", "benchmarks", ".ci", ".github")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {"", ".py", ".yml"}]
    paths += [ROOT / name for name in ("Makefile", "dvc.yaml", "params.yaml", "pyproject.toml")]
    paths += [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    texts = {path: path.read_text("utf-8") for path in paths if path.is_file()}
    assert {path.name for path, text in texts.items() if places.search(text)} == set()
