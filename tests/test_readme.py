"""README.md and docs/: every command is run by a test, every figure is its source's, every module is on the map."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import Project

from pipeline import files, scoring

DOCS = sorted((files.ROOT / "docs").glob("*.md"))
PAGES = {path: path.read_text("utf-8") for path in (files.ROOT / "README.md", *DOCS)}
README = "\n".join(PAGES.values())
PAPERS = PAGES | {path: path.read_text("utf-8") for path in [files.ROOT / "CONTRIBUTING.md"]}
RUN_BY = {  # the beginning of a command that is shown: the test module that runs it, and how it is written there
    "make": ("test_makefile", '["make", *words]'),
    "dvc repro": ("test_make_it_yours", 'dvc("repro")'),
    "git add . && git commit": ("test_make_it_yours", 'git("commit", '),
    "dvc exp run -S": ("test_sweep", '"dvc", "exp", "run", "--quiet", *command'),
    "dvc exp run --queue -S": ("test_experiments", '"exp", "run", "--queue", '),
    "dvc queue start": ("test_experiments", '"queue", "start", "-j", "2"'),
    "dvc exp show": ("test_experiments", '"exp", "show", '),
    "dvc remote add --default team": ("test_readme", '"remote", "add", "--default", "team", '),
    "dvc push": ("test_readme", 'dvc("push")'),
    "dvc commit --force fetch": ("conftest", '"commit", "--force", "fetch"'),
    "git rm -r --cached": ("test_prepare_corrections", '"rm", "-r", "--cached", '),
    "dvc add": ("test_prepare_corrections", 'dvc("add", '),
    "python -m pipeline.predict_photo --correct": ("test_predict_photo", '"--correct", '),
    "python -m pipeline.fetch --from": ("conftest", '"fetch", "--from", '),
    "python -m pipeline.reproduce": ("test_make_it_yours", 'stage("reproduce", '),
    "python -m pipeline.gate --promote": ("test_gate", '"gate", "--promote"'),
    "python -m pipeline.gate --rollback": ("test_gate", '"--rollback"'),
    "python -m pipeline.predict_photo --json --one": ("test_predict_photo", '"--one", "--json"'),
    "python -m pipeline.predict_photo --explain": ("test_predict_photo", '"--explain", '),
    "mlflow models serve -m": ("test_serving", '"models", "serve", "-m", "models:/digits@champion"'),
    "export OPENCV_FOR_THREADS_NUM=": ("test_serving", '"OPENCV_FOR_THREADS_NUM": "1", "UVICORN_TIMEOUT_WORKER_'),
    "export DIGITS_COUNTS=": ("test_serving", 'counts.VARIABLE: "counts.db"'),
    "export DIGITS_CORRECTIONS=": ("test_serving", 'corrections.VARIABLE: "kept"'),
    "python -m pipeline.watch": ("test_watch", 'watch.main(["--until"'),
    "(printf": ("test_serving", "/invocations"),
    "mlflow server --host 0.0.0.0 --allowed-hosts host:5000": ("sweeps/test_cluster", '"--allowed-hosts",'),
    "ray start --head --port": ("sweeps/test_cluster", '["--head", "--port", '),
    "ray start --address": ("sweeps/test_cluster", '["--address", '),
    "RAY_ADDRESS=": ("sweeps/test_cluster", '"RAY_ADDRESS": nodes.address'),
    "export MLFLOW_TRACKING_URI=": ("test_serving", '"MLFLOW_TRACKING_URI": '),
    "export RAY_AUTH_MODE=": ("sweeps/test_cluster", '"RAY_AUTH_MODE": '),
}


def test_the_readme_can_be_read() -> None:
    assert len((files.ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def shown_commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", "\n".join(PAPERS.values()), re.MULTILINE | re.DOTALL)
    return re.findall(r"^\$ (.+?)(?: +#.*)?$", "\n".join(blocks), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(shown_commands())))
def test_every_command_that_is_shown_is_run_by_a_test(command: str) -> None:
    beginning = max((known for known in RUN_BY if command.startswith(known)), key=len, default="")
    assert beginning, "name the test that runs this in RUN_BY"
    module, written = RUN_BY[beginning]
    source = (files.ROOT / "tests" / f"{module}.py").read_text("utf-8")
    assert written in (source.partition("\n}\n")[2] if module == "test_readme" else source)  # not in the table above


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAPERS[path])
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (files.ROOT / "README.md").read_text("utf-8")))
    assert linked == {path.name for path in PAGES} - {"README.md"}


def test_the_map_names_every_module_of_the_folder_and_no_other() -> None:
    package = files.ROOT / "pipeline"
    modules = {path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")}
    text = (files.ROOT / "docs/architecture.md").read_text("utf-8").split("\n## The modules\n")[1]
    named = re.findall(r"^\| `([\w/]+)` \| \S", text, re.MULTILINE)
    assert sorted(named) == sorted(name for name in modules if not name.endswith("__init__"))


def test_every_verb_of_make_that_is_shown_is_there() -> None:
    makefile = (files.ROOT / "Makefile").read_text("utf-8")
    verbs = set(re.findall(r"(?:^\$ |`|=\S+ )make ([\w-]+)", "\n".join(PAPERS.values()), re.MULTILINE))
    assert {"test", "gate", "sweep", "photo", "demo", "ui", "bench"} <= verbs
    assert [verb for verb in verbs if f"\n{verb}:" not in makefile] == []


def measured(title: str) -> dict[str, float]:
    """Return the percentages of a part of benchmarks/README.md by the names of its rows."""
    report = (files.ROOT / "benchmarks/README.md").read_text("utf-8")
    part = report.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {name: float(share) for name, share in re.findall(r"^\| (.+?) \| \d+ \| ([\d.]+)% \|", part, re.MULTILINE)}


def test_the_documented_figures_of_rendered_pictures_were_measured() -> None:
    found = measured("Rendered photographs")
    paragraph = README.split("Of a thousand more")[1].split("\n\n")[0]
    for name in ("single: --one", "multi: whole string right", "touching pairs: both right"):
        assert f"{found[name]}%" in paragraph, name


def test_the_documented_figures_of_refusals_were_measured() -> None:
    found = measured("What is refused")
    paragraph = README.split("At the threshold that accepts")[1].split("\n\n")[0]
    assert f"{found['test digits']}% of the test digits" in paragraph
    assert f"{found['all that is no digit']}%" in paragraph
    for name in ("letters", "scribbles", "textures"):
        assert f"{name} at {found[name]:.0f}%" in paragraph, name


def counted(report: str) -> dict[str, tuple[int, int]]:
    """Return what a report of benchmarks.photos counts: how many, of how many."""
    text = (files.ROOT / f"benchmarks/{report}.txt").read_text("utf-8")
    found = re.findall(r"^(.+?)  +(\d+) / (\d+)", text, re.MULTILINE)
    return {name.strip(): (int(right), int(of)) for name, right, of in found}


def share(right: int, of: int) -> str:
    """Return a share in percent with its interval, as the documents write it."""
    low, high = (100 * limit for limit in scoring.wilson(right, of))
    return f"{100 * right / of:.1f}% [{low:.1f}, {high:.1f}]"


def test_the_documented_figures_of_real_photographs_were_measured() -> None:
    """The report counts; the README's shares and intervals are those of its counts."""
    counts = counted("photos")

    def row(right: int, of: int) -> str:
        return f"{share(right, of)} |"

    scans = counts["SageLabTW, single --one"]
    article, common = (counts[f"single: the {way}"] for way in ("article's method", "common recipe"))
    ours = counts["single: --one"]
    cameras = ours[0] - scans[0], ours[1] - scans[1]
    for said in (
        f"| {cameras[1]} of one digit, by cameras (`--one`) | | | {row(*cameras)}",
        f"faint scans of 28 x 28 (`--one`) | | | {row(*scans)}",
        f"| {100 * article[0] / article[1]:.1f}% | {100 * common[0] / common[1]:.1f}% | {row(*ours)}",
        f"unasked | | | {row(*counts['single: right number of digits without --one'])}",
        f"whole string right | | | {row(*counts['multi: whole string right'])}",
        f"| ... the right number of digits | | | {row(*counts['multi: right number of digits'])}",
        f"Of the {ours[1]},\n{counts['single: accepted as a digit (--one)'][0]} are accepted",
    ):
        assert said in README, said


def test_the_documented_figures_of_other_sources_were_measured() -> None:
    for name, words in (
        ("single: --one", "of one digit (`--one`)"),
        ("multi: whole string right", "of several digits, whole string"),
        ("none: refused", "without a digit, refused"),
    ):
        right, of = counted("photos2")[name]
        assert f"| {of} {words} | {share(right, of)} |" in README


def test_the_documented_figures_of_what_is_accepted_were_measured() -> None:
    """They are over both folders."""
    both = [counted(report) for report in ("photos", "photos2")]
    for accepted, right, words in (
        ("single: accepted as a digit (--one)", "single: right, of those accepted (--one)", "of the single digits"),
        ("multi: accepted as digits", "multi: whole string right, of those accepted", "of the strings"),
    ):
        sure, of = (sum(each) for each in zip(*(counts[accepted] for counts in both), strict=True))
        true, same = (sum(each) for each in zip(*(counts[right] for counts in both), strict=True))
        assert same == sure
        said = f"are accepted, and {share(true, sure)} of those are right ({true} of {sure})"
        assert f"{100 * sure / of:.1f}% {words} {said}" in " ".join(README.split())


def test_the_documented_figures_of_digit_sets_were_measured() -> None:
    report = (files.ROOT / "benchmarks/external.txt").read_text("utf-8")
    networks = {"ours": "ours", "article": "the article's"}
    for _, name, n, network, *shares in (re.split(r" ?\| ?", line) for line in report.splitlines()[2:]):
        assert f"| {networks[network]} | {n} | {' | '.join(shares[:3])} |" in README, name


@pytest.mark.slow
def test_a_team_pulls_what_one_of_it_pushed(made_project: Project, tmp_path: Path) -> None:
    assert "$ dvc remote add --default team " in README
    assert "$ dvc push " in README
    made_project.dvc("remote", "add", "--default", "team", str(tmp_path / "team"))
    made_project.git("commit", "--quiet", "--message", "Share", ".dvc/config")
    made_project.dvc("push")
    made_project.git("clone", "--quiet", str(made_project.root), str(tmp_path / "colleague"))
    colleague = Project(tmp_path / "colleague")
    colleague.dvc("pull")
    assert colleague.dvc("status").strip() == "Data and pipelines are up to date."
    for name in ("models/digits.keras", "data/prepared/test-images.npy"):
        assert files.sha256(colleague.root / name) == files.sha256(made_project.root / name)


@pytest.mark.slow
def test_a_recipe_of_the_ladder_is_the_projects_own_for_a_run(made_project: Project) -> None:
    command = "dvc exp run $(python -m benchmarks.recipes --options article)"
    assert f"`{command}`" in README
    made_project.run("sh", "-e", "-c", f"{command} --quiet train")
    train = yaml.safe_load((made_project.root / "params.yaml").read_text("utf-8"))["train"]
    assert (train["network"], train["dropout"], train["augment"]["share"]) == ("article", 0.2, 0.0)
    assert made_project.json("train.json")["parameters"] == 53_578
