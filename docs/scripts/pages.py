"""Writes the generated pages of the documentation: settings, commands, benchmarks.

    .venv/bin/python docs/scripts/pages.py          (part of `make docs`)

    docs/settings.md     pipeline/job/config.py: types, defaults and attribute docstrings
    docs/commands.md     the click commands, which also make `--help`
    docs/benchmarks.md   benchmarks/results/*.json, each with the first line of its script's docstring

The pages are committed; tests/test_docs.py compares them with what this script makes. TensorFlow is not
imported.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli import shelfmark
from pipeline.job.config import RECIPES, Config, Section
from serving.__main__ import serve

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REMADE = {  # section → what a changed setting remakes
    "ingest": "records and all that follows",
    "backbone": "bottlenecks and all that follows, in a store of their own",
    "extract": "bottlenecks and all that follows",
    "finetune": "the tuned backbone and all that follows",
    "head": "the head and all that follows",
    "train": "the head and all that follows",
    "calibration": "the thresholds and all that follows",
    "sellers": "what a bundle needs to use corrections",
    "suspects": "the list of labels in doubt",
    "report": "the report, and its maps",
    "compare": "rows of the comparison",
    "monitor": "nothing: it is of no run",
    "retention": "nothing",
    "guard": "nothing",
    "gate": "nothing but the verdict",
    "notify": "nothing",
}
MARKS = {
    "speed": "a change remakes nothing",
    "calibrate": "a change remakes the thresholds and what follows",
    "ingest": "a change remakes the records, where there are corrections",
}

SETTINGS = """\
# Settings

*Made from the attribute docstrings of `pipeline/job/config.py` by `make docs`: change them there, not here.*

Defaults come first, then a TOML file (`--config weekly.toml`), then `--set section.name=value`; the last
one counts. `ingest` and `retrain` begin with the defaults; the commands of a single stage begin with the
settings in the run's last `config.json`. `--set train.epochs=`, with nothing after the equals sign, returns
to the default.

```toml
[calibration]
precision = 0.95   # promised for what is decided automatically
delta = 0.1        # probability that the promise fails
```

```
shelfmark retrain manifest.csv --workspace W --config weekly.toml --set train.epochs=50
```

A changed setting remakes the stage that uses it and what follows; each section says which. A setting marked
with *a change remakes nothing* counts from the next command on.

## Outside the sections
"""
COMMANDS = """\
# Commands

*Made from the texts of `--help` by `make docs`: change them there, not here.*

Exit status: 0 done, 1 failed with one `error:` line, 2 wrong usage, 4 stopped by a guard because what came in
is not as expected, 75 another job is at work there, 130 interrupted; of `retrain`, 3 finished, and the old
release stays; `audit judge` and `monitor` have their own. Options after `--` are Beam's:
[scale-out.md](scale-out.md).
"""
BENCHMARKS = """\
# Benchmarks

*Made from the files in `benchmarks/results` by `make docs`: change them by measuring again, not here.*

Each section is one file, written by the script of the same name (`make bench`, or the script alone). The
machine that a section names is the one that it was measured on; other machines give other figures. A missed
aim is shown as missed. Figures of single seeds are in the files. What the figures mean:
[experiments](experiments/index.md).
"""


def main() -> None:
    """Writes every page that differs from what it should be."""
    for name, text in pages().items():
        path = ROOT / "docs" / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: docs/{name}")


def pages() -> dict[str, str]:
    """File name under docs/ → Markdown."""
    return {"settings.md": settings(), "commands.md": commands(), "benchmarks.md": benchmarks()}


# Settings


def settings() -> str:
    """The page of the settings: a heading for each section and each setting."""
    lines = [SETTINGS, *_setting("seed", Config, "seed")]
    for section, field in Config.model_fields.items():
        if not isinstance(field.default, Section):
            continue
        model = type(field.default)
        lines += [
            f"## [{section}]",
            "",
            _prose(model.__doc__),
            "",
            f"A change remakes {REMADE[section]}.",
            "",
        ]
        for name in model.model_fields:
            lines += _setting(f"{section}.{name}", model, name)
    return "\n".join(lines).rstrip() + "\n"


def _setting(full: str, model: type, name: str) -> list[str]:
    field = model.model_fields[name]
    schema = model.model_json_schema()["properties"][name]
    facts = [f"Default: {_default(full, field.default)}", _values(schema)]
    facts += [MARKS[mark] for mark in field.metadata if isinstance(mark, str) and mark in MARKS]
    return [f"### {full}", "", " · ".join(facts), "", _prose(field.description), ""]


def _default(full: str, value: Any) -> str:
    recipes = {recipe: RECIPES[recipe].get(full.removeprefix("train.")) for recipe in ("default", "paper")}
    if value is None and full.startswith("train.") and recipes["default"] is not None:
        return f'{_code(recipes["default"])} (with `head.recipe = "paper"`: {_code(recipes["paper"])})'
    return "none" if value is None else _code(value)


def _code(value: Any) -> str:
    """A value as TOML has it."""
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return f"`{text}`"


def _values(schema: Mapping[str, Any]) -> str:
    """What a setting may be, from its JSON schema.

    >>> _values({"type": "integer", "minimum": 1})
    'whole number, at least 1'
    """
    if "anyOf" in schema:
        return ", or ".join(_values(one) for one in schema["anyOf"] if one["type"] != "null") + ", or none"
    if "enum" in schema:
        return "one of " + ", ".join(_code(one) for one in schema["enum"])
    if schema["type"] == "array":
        items = schema.get("prefixItems", [schema.get("items", {})])
        kind = "texts" if items[0].get("type") == "string" else "numbers: " + _values(items[0])
        return f"list of {'two ' if len(items) == 2 else ''}{kind}"
    if schema["type"] == "object":
        return f"table of names, each with a {_values(schema['additionalProperties'])}"
    kinds = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    if schema.get("maxLength") == 1:
        return "one character"
    bounds = [f"{word} {_bound(schema[bound])}" for bound, word in words.items() if bound in schema]
    return ", ".join([kinds[schema["type"]], " and ".join(bounds)]) if bounds else kinds[schema["type"]]


def _bound(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _prose(text: str | None) -> str:
    """A docstring as Markdown; pages that it names become links."""
    if not text:
        raise ValueError("a setting without a docstring; expected one that says when to change it")
    paragraphs = [" ".join(paragraph.split()) for paragraph in textwrap.dedent(text).split("\n\n")]
    return re.sub(r"docs/([\w/-]+\.md)", r"[\1](\1)", "\n\n".join(paragraphs))


# Commands


def commands() -> str:
    """The page of the commands: what `--help` says, the options that many share once."""
    every = dict(_each(shelfmark, "shelfmark"))
    shared = _shared_options(every.values())
    lines = [
        COMMANDS,
        "| command | does |",
        "|---|---|",
        *(
            f"| [`{name}`](#{name.replace(' ', '-')}) | {_summary(command)} |"
            for name, command in every.items()
        ),
        f"| [`shelfmark-serve`](#shelfmark-serve) | {_summary(serve)} |",
        "",
        "## Options of a run",
        "",
        "The commands that work on one run have all of these:",
        "",
        *_options(shared),
        "",
    ]
    for name, command in every.items():
        lines += _command(name, command, {option.name for option in shared})
    lines += _command("shelfmark-serve", serve, set())
    return "\n".join(lines).rstrip() + "\n"


def _each(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yields name and command of each command of a group; of a group in it, those of that group."""
    for own, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _each(command, f"{name} {own}")
        else:
            yield f"{name} {own}", command


def _shared_options(commands: Iterable[click.Command]) -> list[click.Option]:
    """Options of every command that takes `--run`."""
    of_runs = [command for command in commands if any(p.opts == ["--run"] for p in command.params)]
    common = set.intersection(*({str(p.opts) for p in command.params} for command in of_runs))
    return [p for p in of_runs[0].params if isinstance(p, click.Option) and str(p.opts) in common]


def _command(title: str, command: click.Command, shared: set[str | None]) -> list[str]:
    has_run = shared and shared <= {param.name for param in command.params}
    own = [p for p in command.params if isinstance(p, click.Option) and not (has_run and p.name in shared)]
    arguments = [
        p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
    ]
    prose, _, example = (command.help or "").partition("\b")
    lines = [f"## {title}", ""]
    lines += ["```", " ".join([title, *arguments, "[OPTIONS]"]), "```", ""]
    lines += [" ".join(paragraph.split()) + "\n" for paragraph in prose.strip().split("\n\n")]
    if own:
        lines += [*_options(own), ""]
    if has_run:
        lines += ["And the [options of a run](#options-of-a-run).", ""]
    example = example.replace("Example:", "").strip()
    return [*lines, "```", example, "```", ""] if example else lines


def _options(options: Iterable[click.Option]) -> list[str]:
    rows = []
    for option in options:
        if option.opts == ["--version"]:
            continue
        value = "" if option.is_flag else f" {option.make_metavar(click.Context(shelfmark))}"
        help_text = (option.help or "") + (" **Required.**" if option.required else "")
        rows.append([f"`{option.opts[0]}{value}`".replace("|", "\\|"), help_text])
    return _table(["option", "meaning"], rows)


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000)


# Benchmarks


def benchmarks() -> str:
    """The page of the measured results: for each file its conditions, its figures, and what was aimed at."""
    lines = [BENCHMARKS]
    for path in sorted(RESULTS.glob("*.json")):
        lines += _result(path)
    return "\n".join(lines).rstrip() + "\n"


def _result(path: Path) -> list[str]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    script = ROOT / "benchmarks" / f"{path.stem}.py"
    title = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()[0]
    found |= found.pop("conditions", {})
    lines = [f"## {path.stem}", "", title, "", f"Conditions: {_conditions(found)}.", ""]
    verdicts = found.pop("verdicts", [])
    single = {name: value for name, value in found.items() if not isinstance(value, list | dict)}
    if single:
        lines += [
            *_table(["", "value"], [[_words(name), _figure(value)] for name, value in single.items()]),
            "",
        ]
    for name, value in found.items():
        if isinstance(value, list | dict):
            lines += _tables(_words(name), value)
    return [*lines, *_aims(verdicts)]


def _conditions(found: dict[str, Any]) -> str:
    """Takes the conditions out of a result and says them in one line."""
    cores, memory, python = (found.pop(name, None) for name in ("cores", "memory_gb", "python"))
    words = [found.pop("machine", "machine not recorded")]
    words += [f"{cores} cores"] if cores else []
    words += [f"{memory:g} GB of memory"] if memory else []
    words += [f"Python {python}"] if python else []
    words += [f"{name} {version}" for name, version in found.pop("packages", {}).items()]
    return ", ".join(words)


def _tables(title: str, value: Any) -> list[str]:
    """A list of rows, a table of rows by name, or a few values; deeper ones become tables of their own."""
    if isinstance(value, dict):
        value = dict(value)
        deeper = value.pop("verdicts", [])
        rows = (
            [_flat(one) for one in value.values()]
            if all(isinstance(one, dict) for one in value.values())
            else []
        )
        if all(isinstance(one, list) and one and isinstance(one[0], dict) for one in value.values()):
            return [line for name, one in value.items() for line in _tables(f"{title}: {name}", one)]
        if rows:
            rows = [{title: name} | row for name, row in zip(value, rows, strict=True)]
        else:
            rows = [{title: _words(name), "value": figure} for name, figure in _flat(value).items()]
        return [*_rows(rows), "", *_aims(deeper)]
    if value and isinstance(value[0], dict):
        return [f"**{title}**", "", *_rows([_flat(one) for one in value]), ""]
    return [f"**{title}**: {_figure(value)}", ""]


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Values by name, those of a dict within by both names; rows of single seeds are left to the file."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name} ")
        elif not (isinstance(value, list) and value and isinstance(value[0], dict)):
            flat[f"{before}{name}"] = value
    return flat


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_figure(row.get(name)) for name in columns] for row in rows]
    return _table([_words(name) for name in columns], cells)


def _aims(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [one["what"], _figure(one["value"]), one["target"].replace("<=", "≤").replace(">=", "≥"),
         "reached" if one["passed"] else "**missed**"]
        for one in verdicts
    ]  # fmt: skip
    return [*_table(["aim", "value", "wanted", ""], rows), ""] if rows else []


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: Any) -> str:
    """A figure as a person reads it.

    >>> _figure(4894.280548097446), _figure(0.0012345), _figure(None)
    ('4,894', '0.00123', '')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 0.1 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    figures = [all(re.fullmatch(r"[-\d,.e ]*", row[column]) for row in rows) for column in range(len(head))]
    rule = ["---:" if right else "---" for right in figures]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


if __name__ == "__main__":
    main()
