"""The pages for people name nothing that does not exist, and their tables and examples agree with the code."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from tests.support import device_contract as contract
from tvmm.cli.parser import EXIT_STATUSES, verb_parser
from tvmm.cli.verbs import VERBS, find_verb
from tvmm.control.verbs import VERBS as CONTROL_VERBS
from tvmm.memory import layout
from tvmm.vcpu import runstate

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
DESIGN, DEVICES = ROOT / "docs" / "design.md", ROOT / "docs" / "devices.md"

FOLDERS = ("tvmm", "tests", "bench", "fuzz", "examples", "docs", ".ci")
PLACEHOLDERS = ("VERB", "help", "-h", "--help", "--version")
"""Words behind `tvmm` that are no verb."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block: the word behind its opening fence, and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between single backticks, outside of fenced blocks; a span may go over a line's end."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> list[list[str]]:
    """Words of each command line: in backticks, and in blocks that are no program; without comments and assignments."""
    lines = spans(page)
    for block in blocks(page):
        if block.language in ("", "sh", "bash", "console"):
            lines += block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        plain = re.sub(r"(^|\s)#.*", "", line)
        for part in re.split(r"\s*(?:\||&&|;)\s+", plain):
            words = part.removeprefix("$ ").split()
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of all tables of a page whose first column has this heading."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif inside and set(cells[0]) != {"-"}:
            found.append(cells)
        elif cells[0] == heading:
            inside = True
    return found


@each_page
def test_paths_exist(page: Path) -> None:
    """Each path into the tree, in backticks or behind a link, leads somewhere."""
    named = [span for span in spans(page) if span.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose(page))
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


@each_page
def test_dotted_names_exist(page: Path) -> None:
    """Each `tvmm.module.name` can be imported."""
    for span in spans(page):
        if re.fullmatch(r"tvmm(\.\w+)+", span) and not span.endswith((".py", ".toml", ".sock")):
            owner, _, name = span.rpartition(".")
            if importlib.util.find_spec(span) is None:
                assert hasattr(importlib.import_module(owner), name), span


@each_page
def test_commands_exist(page: Path) -> None:
    """Verbs of `tvmm` and their options, `python -m` modules, `make` targets, and files that are run."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "tvmm" and len(words) > 1:
            check_tvmm(words[1:])
        elif words[0] in ("python", "python3") and words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), words
        elif words[0] == "make":
            assert set(words[1:2]) <= set(targets), words
        elif words[0].startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert list(ROOT.glob(words[0].rstrip("/"))), words


def check_tvmm(words: list[str]) -> None:
    """A command line of tvmm, as pages write them: `tvmm run --memory 1G,prealloc=on`."""
    word, *rest = words
    if word in PLACEHOLDERS:
        return
    verb = find_verb(word)
    assert verb is not None, words
    known = verb_parser(verb).option_strings()
    for text in rest:
        if text.startswith("--") and text != "--":
            option = re.match(r"--[\w-]+", text)
            assert option, words
            assert option[0] in known, words


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.name)
def test_bare_options_exist(page: Path) -> None:
    """An option that the tour names by itself is one of some verb."""
    known = {text for verb in VERBS for text in verb_parser(verb).option_strings()}
    for span in spans(page):
        if span.startswith("--"):
            assert span.split()[0].partition("=")[0] in known, span


@each_page
def test_control_commands_exist(page: Path) -> None:
    """What looks like a command of the control socket is one."""
    for span in spans(page):
        if re.fullmatch(r"(x-)?query-[\w-]+|system_\w+", span):
            assert span in CONTROL_VERBS, span


@each_page
def test_exit_statuses_agree_with_the_command_line(page: Path) -> None:
    """A table of exit statuses has those of `tvmm run --help` in the same words; a sentence has none but these."""
    told = dict(re.findall(r"^  (\S+)\s+(.*)$", EXIT_STATUSES, re.MULTILINE))
    assert len(told) > 3
    found = {cells[0]: cells[1] for cells in rows(page, "exit status")}
    assert page != DESIGN or found
    assert not found or found == told
    sentence = re.search(r"^Exit status: (.+?)(?:\n\n|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    for status, words in re.findall(r"(?:^|, )(\d+(?:\+n)?) (\w+ \w+)", " ".join((sentence or [""])[0].split())[13:]):
        assert told[status].startswith(words), status


def test_markers_are_all_there() -> None:
    """The table of test tiers has the markers that pytest knows."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    declared = [text.partition(":")[0] for text in settings["markers"]]
    named = [cells[0].strip("`") for cells in rows(ROOT / "CONTRIBUTING.md", "marker")]
    assert named == ["(none)", *declared]


def test_run_states_are_those_of_the_table() -> None:
    """The tour shows the run state table as the module has it."""
    lines = (runstate.__doc__ or "").splitlines()
    table = "\n".join(line for line in lines if line.startswith(("=", "state", "Paused", "Running", "Finished")))
    assert table.count("\n") == 6
    assert table in [block.text.rstrip() for block in blocks(DESIGN)]


def test_memory_map_is_that_of_the_layout() -> None:
    """Each address is the value of the constant beside it."""
    table = rows(DESIGN, "guest-physical")
    assert len(table) > 5
    for address, name, *_ in table:
        value = getattr(layout, name.strip("`"))
        assert int(address, 16) == (value.start if isinstance(value, layout.Range) else value), name


def test_bounds_are_where_the_threat_model_says() -> None:
    """Each name of a bound is in the file that the row gives for it."""
    table = rows(DESIGN, "who")
    assert len(table) > 10
    for who, what, bound in table:
        waiting: list[str] = []
        for span in re.findall(r"`([^`]+)`", bound):
            if "/" not in span:
                waiting.append(span)
                continue
            text = (ROOT / span).read_text()
            assert all(re.search(rf"\b{re.escape(name)}\b", text) for name in waiting), (who, what, span)
            waiting.clear()
        assert not waiting, (who, what)


@each_page
def test_python_examples_compile(page: Path) -> None:
    """Examples are Python, and what they import exists."""
    for number, block in enumerate(blocks(page)):
        if block.language == "python":
            compile(block.text, f"{page.name} block {number}", "exec")
            for module in re.findall(r"^from (t(?:vmm|ests)[\w.]*) import", block.text, re.MULTILINE):
                assert importlib.util.find_spec(module) or module == "tvmm.devices.watchdog", module


def load(title: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example that begins with the comment `title`, as the module `name`."""
    text = next(block.text for block in blocks(DEVICES) if block.text.startswith(f"# {title}\n"))
    path = folder / Path(title).name
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    if name.startswith("tvmm.devices."):
        monkeypatch.setattr("tvmm.devices.watchdog", module, raising=False)
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of the authors' page is one: it passes the contract suite and the tests that stand beside it."""
    load("tvmm/devices/watchdog.py", "tvmm.devices.watchdog", tmp_path, monkeypatch)
    tests = load("tests/devices/test_watchdog.py", "watchdog_of_the_page", tmp_path, monkeypatch)
    subject: contract.Subject = tests.SUBJECT
    contract.check_accesses(subject)
    contract.check_round_trip(subject)
    contract.check_reset(subject)
    contract.check_untrusted_state(subject)
    contract.check_wrong_record(subject)
    contract.check_imports(subject.module)
    own = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert own
    for test in own:
        test()
