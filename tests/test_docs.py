"""The documentation against the tree: links lead somewhere; commands and make targets that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def code_of(page: str) -> str:
    """The page's code blocks and spans: in prose, "shelfmark turns" names no command."""
    return "\n".join(CODE.findall((ROOT / page).read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file(page: str) -> None:
    prose = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(<?([^)\s>#]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", prose)
    relative = [link for link in map("".join, links) if not re.match(r"[a-z]+:", link)]
    assert [link for link in relative if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_is_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|[`&] ?)make ([a-z-]+)", code_of(page), re.MULTILINE)) - targets == set()


def test_every_command_that_is_named_stands_in_the_help() -> None:
    call = [sys.executable, "-c", "from pipeline.cli import main; main()", "--help"]
    text = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    commands = set(re.findall(r"^ +([a-z]+)(?:  |$)", text, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?<![\w-])shelfmark ([a-z]+)\b", code_of(page))}
    assert named, "no page names a command: is the README there?"
    assert named - commands - {"shelfmark"} == set()  # docker run shelfmark shelfmark …
