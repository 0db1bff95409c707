"""What stands at the root for machines to read: the workflow, the image and the citation say what is so."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import btr
from btr.serve.settings import make_parser

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "check.yml"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def supported() -> set[str]:
    """Return the versions of Python that setup.py names."""
    return set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "setup.py").read_text()))


def docker() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines) if name]


def test_workflow_runs_targets_that_there_are() -> None:
    jobs = read_yaml(WORKFLOW)["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    used = {found.group(1) for run in steps if (found := re.match(r"make (\S+)", run))}
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"check", "docs", "test", "test-oldest", "test-all"} <= used <= there
    assert all(job["timeout-minutes"] and "runs-on" in job for job in jobs.values())


def test_workflow_tests_the_versions_that_the_package_names() -> None:
    jobs = read_yaml(WORKFLOW)["jobs"]
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == supported()
    oldest = min(supported(), key=lambda version: int(version.split(".")[1]))
    assert jobs["oldest"]["steps"][1]["with"]["python-version"] == oldest


def list_bounds(*extras: str) -> dict[str, str]:
    """Map every package that setup.py needs, or needs for `extras`, to the oldest version it admits."""
    calls = ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
    words = {word.arg: word.value for node in calls if isinstance(node, ast.Call) for word in node.keywords}
    options = ast.literal_eval(words["extras_require"])
    lines = ast.literal_eval(words["install_requires"]) + [line for extra in extras for line in options[extra]]
    return {name: oldest for name, _, oldest in (line.partition(">=") for line in lines)}


def test_oldest_versions_are_those_that_the_package_admits() -> None:
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = {name: pin for name, _, pin in (line.partition("==") for line in lines if not line.startswith("#"))}
    bounds = list_bounds("test")
    assert set(pins) == set(bounds) - {"torch"}
    assert {
        name: pin for name, pin in pins.items() if re.sub(r"(\.0)+$", "", pin) != re.sub(r"(\.0)+$", "", bounds[name])
    } == {}


def test_workflow_may_only_read() -> None:
    assert read_yaml(WORKFLOW)["permissions"] == {"contents": "read"}


def test_image_has_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [rest.split()[:-1] for name, rest in docker() if name == "COPY" and "--from" not in rest]
    names = [name for names in copied for name in names]
    assert [name for name in names if not (ROOT / name).exists() or f"!{name}" not in ignored] == []
    rooms = re.findall(r'"btr(?:\.\w+)?": "(\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", *rooms} == set(names)


def test_image_runs_a_command_that_there_is_as_nobody_special() -> None:
    last: dict[str, str] = dict(docker())
    assert json.loads(last["ENTRYPOINT"]) == ["btr"] and last["USER"] == "btr"
    command, *words = json.loads(last["CMD"])
    options = vars(make_parser().parse_args(words))
    assert (command, options["host"], options["port"]) == ("serve", "0.0.0.0", last["EXPOSE"])
    assert options["store"].startswith(last["VOLUME"] + "/")
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[-1], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{last['EXPOSE']}/health" in check[-1]


def test_image_takes_the_torch_that_make_takes() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = re.search(r"^TORCH \?= (.+)$", makefile, re.MULTILINE)
    index = re.search(r"^TORCH_INDEX \?= (.+)$", makefile, re.MULTILINE)
    assert wanted and index
    [install] = [rest for name, rest in docker() if name == "RUN" and "torch" in rest]
    assert f'--index-url {index.group(1)} "{wanted.group(1)}"' in install


def test_citation_is_of_this_release() -> None:
    """Hold it to what the Citation File Format 1.2.0 requires."""
    citation = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    assert citation["version"] == btr.__version__
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
    people = [person for one in (citation, *citation["references"]) for person in one["authors"]]
    assert all("name" in person or {"family-names", "given-names"} <= set(person) for person in people)


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "README.md"])
def test_page_that_hosts_look_for_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500
