"""README.md and docs/ say what is so: their Python is run, and nothing that users can name is left out."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import pytest_isolation
from pytest_isolation import fixtures
from pytest_isolation.objects.kinds import KINDS

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
#: Described once for all kinds, in docs/verbs.md, docs/builders.md and docs/netns.md.
COMMON = {
    *("run", "popen", "call", "call_in_child"),
    *("close", "closed", "kind", "namespace"),
    *("path", "fileno", "ns_id", "enter_command"),
}


def blocks():
    """Each Python block of each page, as (`page-line`, code); a block without a test becomes one."""
    found = []
    for page, text in TEXT.items():
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line, code = text[: match.start()].count("\n") + 2, match[1]
            if "def test_" not in code:
                code = "def test_block():\n" + re.sub(r"^(?=.)", "    ", code, flags=re.MULTILINE)
            found.append((f"{page.stem}_{line}", code))
    return found


BLOCKS = dict(blocks())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """One pytest run over all blocks: the outcome elements of each block's tests, by name of the block."""
    folder = tmp_path_factory.mktemp("documentation")
    for name, code in BLOCKS.items():
        (folder / f"test_{name}.py").write_text(code, encoding="utf-8")
    (folder / "pytest.ini").touch()  # so that the project's own settings are not found
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "pytest_isolation"]
    command += ["--junit-xml=report.xml", f"--basetemp={folder / 'tmp'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    found = {}
    for case in ET.parse(folder / "report.xml").iter("testcase"):
        found.setdefault(case.get("classname").removeprefix("test_"), []).append(case)
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_the_python_of_the_documentation_runs(outcomes, name):
    """Every test in the block passes; what this kernel or user cannot do is skipped here as well."""
    assert outcomes.get(name), "no test of this block was run"
    for case in outcomes[name]:
        for outcome in case:
            if outcome.tag in {"failure", "error"}:
                pytest.fail(f"{case.get('name')}: {outcome.text}", pytrace=False)
            if outcome.tag == "skipped":
                pytest.skip(outcome.get("message"))


def code_words(page):
    """Every word in code, be it a block or a span."""
    code = re.findall(r"^```.*?^```$|`[^`\n]+`", TEXT[page], re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\w+", " ".join(code)))


def test_every_public_name_is_described():
    words = set().union(*(code_words(page) for page in PAGES))
    names = set(pytest_isolation._HOMES)
    names |= {name for name in vars(fixtures) if type(getattr(fixtures, name)) is type(fixtures.isolation)}
    assert {"netns", "session_isolation", "inside"} <= names
    assert names - words == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.make.kind)
def test_every_argument_and_method_stands_on_the_page_of_its_kind(kind):
    described = {*inspect.signature(kind.make).parameters, *vars(kind.make)}
    if kind.make is pytest_isolation.VethPair:
        described |= set(vars(pytest_isolation.VethEnd))
    described = {name for name in described if not name.startswith("_")} - COMMON - {"programs", "as_request"}
    page = PROJECT / "docs" / f"{kind.make.kind}.md"
    assert described - code_words(page) == set()


def test_every_page_is_linked_from_the_index():
    index = (PROJECT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert {page.stem for page in PAGES} - {"README", "index"} <= set(index)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", TEXT[page]):
        assert (page.parent / target).exists(), target
