"""The documentation against the tree: what it links to and names exists; generated pages are up to date."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from pipeline.cli import shelfmark
from pipeline.job.config import Config, Section

ROOT = Path(__file__).parents[1]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs" / "scripts"))
    try:
        import pages
    finally:
        sys.path.pop(0)
    return pages


def code_of(page: str) -> str:
    """The page's code blocks and spans: in prose, "shelfmark turns" names no command."""
    return "\n".join(CODE.findall((ROOT / page).read_text(encoding="utf-8")))


def links_of(page: str) -> list[tuple[str, str]]:
    """Path and anchor of every link of the page that leads to no other site."""
    prose = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(<?([^)\s>]+)[^)]*\)|(?:src|href)=\"([^\"]+)", prose)
    relative = [link for link in map("".join, links) if not re.match(r"[a-z]+:", link)]
    return [(path, anchor) for path, _, anchor in (link.partition("#") for link in relative)]


def anchors_of(page: Path) -> set[str]:
    """As GitHub and the site name the headings: lower case, punctuation gone, blanks as hyphens."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file(page: str) -> None:
    folder = (ROOT / page).parent
    assert [path for path, _ in links_of(page) if path and not folder.joinpath(path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_anchor_is_a_heading(page: str) -> None:
    folder = (ROOT / page).parent
    wrong = [
        f"{path}#{anchor}"
        for path, anchor in links_of(page)
        if anchor and anchor not in anchors_of(folder / path if path else ROOT / page)
    ]
    assert wrong == []


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


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_an_example_is_one_of_its_command(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    wrong = []
    for name, line in re.findall(r"^shelfmark ([a-z]+) (.*)$", blocks, re.MULTILINE):
        command = shelfmark.commands[name]
        if isinstance(command, click.Group):  # audit plan, …
            command = command.commands[line.split()[0]]
        known = {option for param in command.params for option in param.opts}
        ours = re.split(r" -- | #", line)[0]
        wrong += [
            f"{name} {option}" for option in re.findall(r"(?<!\S)--[a-z-]+", ours) if option not in known
        ]
    assert wrong == []


def test_every_setting_that_is_named_exists() -> None:
    models = {name: type(field.default) for name, field in Config.model_fields.items()}
    sections = {name: model for name, model in models.items() if issubclass(model, Section)}
    pattern = re.compile(rf"(?<![\w./-])({'|'.join(sections)})\.(\w+)(?![\w/]|\.\w)")
    named = {found for page in PAGES for found in pattern.findall(code_of(page))}
    files = {
        (room, suffix) for room in sections for suffix in ("py", "md", "json", "onnx", "parquet", "bson")
    }
    assert len(named) > 20, "hardly any page names a setting: has the pattern gone stale?"
    assert {(one, two) for one, two in named - files if two not in sections[one].model_fields} == set()


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "benchmarks.md"])
def test_a_generated_page_is_as_its_script_makes_it(generator: ModuleType, name: str) -> None:
    page = ROOT / "docs" / name
    assert page.read_text(encoding="utf-8") == generator.pages()[name], f"{page}: run `make docs`, commit it"


def test_every_setting_says_when_to_change_it() -> None:
    models = [type(field.default) for field in Config.model_fields.values()]
    texts = {
        f"{model.__name__}.{name}": field.description or ""
        for model in models
        if issubclass(model, Section)
        for name, field in model.model_fields.items()
    }
    advice = re.compile(r"\b(raise|lower|set|choose|name|try|change|seldom)\b", re.IGNORECASE)
    assert [name for name, text in texts.items() if not advice.search(text)] == []


def test_the_pages_are_made_without_tensorflow_and_beam() -> None:
    code = "import sys; sys.path.insert(0, 'docs/scripts'); import pages; pages.pages(); print(*sys.modules)"
    call = [sys.executable, "-c", code]
    loaded = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert {"tensorflow", "keras", "apache_beam"} & set(loaded.split()) == set()


def test_every_room_is_in_the_readmes_map() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [init.parent.relative_to(ROOT) for top in ("features", "models", "pipeline", "serving")
             for init in (ROOT / top).rglob("__init__.py")]  # fmt: skip
    assert rooms
    row = "\n".join(line for line in readme.splitlines() if line.startswith("| `"))
    assert [str(room) for room in rooms if not re.search(rf"`(?:{room}|{room.name})/?`", row)] == []


def test_every_file_in_the_readmes_map_is_in_its_room() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z/]+)`(.*?)\|(.*)\|$", readme, re.MULTILINE)
    assert len(rows) > 10
    missing = []
    for first, more, text in rows:
        rooms = [first, *(f"pipeline/{name}" for name in re.findall(r"`([a-z]+)`", more))]
        files = [file.name for room in rooms for file in (ROOT / room).glob("*.py")]
        missing += [f"{first}: {name}" for name in re.findall(r"`(\w+\.py)`", text) if name not in files]
    assert missing == []


def test_the_picture_is_small_and_every_page_is_in_the_sites_navigation() -> None:
    assert (ROOT / "docs" / "images" / "report.png").stat().st_size < 200_000
    nav = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert nav == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
