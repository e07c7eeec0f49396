"""Reads settings: the defaults, over them `--config FILE.toml`, options, and `--set section.name=value`."""

import codecs
import copy
import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from features.engines.backbone_names import is_file_name, parse_name
from features.errors import ShelfmarkError
from features.storage.databases import hide_password
from pipeline.job.config import Config
from pipeline.job.progress import log

Values = dict[str, object]  # of settings, by section or by name

LISTS = {  # settings that are lists, and what they hold
    "hidden": "two numbers, as in [1024,1024]",
    "level_weights": "a number for each level, as in [1,1,2]",
    "views": """a list of views, as in --set 'extract.views=["whole","256"]'""",
    "asked": """a list of views, as in --set 'extract.asked=["whole"]'""",
}


def load_config(
    file: Path | None = None,
    sets: tuple[str, ...] = (),
    options: Values | None = None,
    base: Values | None = None,
    used: Collection[str] | None = None,
    unused: Collection[str] = (),
) -> Config:
    """The settings: defaults, then the TOML file, then options, then `section.name=value` texts.

    They are checked together: a setting of the file may need one of the command line.

    Args:
        file: TOML.
        sets: as given to `--set`; with nothing after the "=" a setting gets its default.
        options: full name → value; None where not given.
        base: settings of the run so far, in place of the defaults.
        used: sections that the command uses; None: all.
        unused: full names of settings that it does not use, in these sections.

    Raises:
        ShelfmarkError: the file cannot be read, a setting is unknown or has a wrong value, or one of `sets`
            is not used.
    """
    values: Values = copy.deepcopy(base or {})
    _check(values, {})
    origin: dict[str, str] = {}  # name → where
    if file:
        _put_file(values, origin, file)
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
            origin[name] = f"--{name.rpartition('.')[2].replace('_', '-')}"
    for text in sets:
        name = _put_text(values, text)
        origin.pop(name, None)  # the last one counts, and is last
        origin[name] = f"--set {_shown(text)}"
    if "backbone" in values:  # what is relative by now is from the command line
        values["backbone"] = _with_whole_path(values["backbone"], Path.cwd())
    config = _check(values, origin)
    if used is not None:
        _require_used(sets, origin, file, used, unused)
    return config


def _shown(text: str) -> str:
    """A setting of the command line as errors show it, without the password of a database."""
    name, equals, value = text.partition("=")
    return name + equals + hide_password(value.strip())


def _require_used(
    sets: tuple[str, ...],
    origin: dict[str, str],
    file: Path | None,
    used: Collection[str],
    unused: Collection[str],
) -> None:
    """Refuses settings of the command line that the command does not use.

    A file may be for several commands: a line in the log says what this one passes over.
    """

    def passed_over(name: str) -> str | None:
        section = name.partition(".")[0]
        return section if section not in used else name if name in unused else None

    for text in sets:
        if passed_over(text.partition("=")[0].strip()):
            raise ShelfmarkError(
                f"--set {text}: this command does not use it; expected settings of "
                f"{' and '.join(f'[{section}]' for section in sorted(used))} that it uses; leave it out"
            )
    in_file = (name for name, where in origin.items() if where == str(file))
    if names := sorted({passed for passed in map(passed_over, in_file) if passed}):
        log.info("%s: this command does not use its %s", file, ", ".join(names))


def _put_file(values: Values, origin: dict[str, str], file: Path) -> None:
    """Puts the settings of a TOML file over the values."""
    for section, given in _read_toml(file).items():
        if section == "backbone":
            given = _with_whole_path(given, file.absolute().parent)
        before = values.get(section)
        if isinstance(given, dict):
            values[section] = before | given if isinstance(before, dict) else given
            origin.update((f"{section}.{name}", str(file)) for name in given)
        else:
            values[section] = given
            origin[section] = str(file)


def _put_text(values: Values, text: str) -> str:
    """Puts a setting as `--set` gives it over the values; returns its name."""
    name, equals, value = map(str.strip, text.partition("="))
    if not equals:
        raise ShelfmarkError(
            f"--set {text}: no '='; expected section.name=value, as in --set train.epochs=50"
        )
    _put(values, name, _parse(value) if value else _default(name))
    return name


def _read_toml(file: Path) -> Values:
    try:
        return tomllib.loads(_text_of(file.read_bytes()))
    except OSError as error:
        raise ShelfmarkError(
            f"{file}: {error.strerror}; expected a TOML file of settings; check --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShelfmarkError(f"{file}: not TOML: {error}; correct the file") from error


def _text_of(data: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16, also with the byte order mark that editors of Windows write."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n")


def _with_whole_path(backbone: object, folder: Path) -> object:
    """[backbone] with absolute paths of its files: a later stage may run in another directory."""
    if not isinstance(backbone, dict):
        return backbone
    weights, name, whole = backbone.get("weights"), backbone.get("name"), {}
    if isinstance(weights, str) and weights not in ("", "imagenet", "random") and "://" not in weights:
        whole["weights"] = str(folder / weights)
    if isinstance(name, str) and is_file_name(name):
        whole["name"] = parse_name(name).with_folder(folder)
    return backbone | whole


def _parse(text: str) -> object:
    """A value as TOML reads it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: Values, name: str, value: object) -> None:
    *sections, last = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ShelfmarkError(f"--set {name}: {section!r} is no section; expected section.name=value")
        values = inner
    values[last] = value


def _default(name: str) -> object:
    """The default of a setting by its full name; of an unknown one a text that the check refuses."""
    section, _, last = name.rpartition(".")
    model = type(getattr(Config(), section, None)) if section else Config
    field = getattr(model, "model_fields", {}).get(last)
    return field.default if field else ""


def _check(values: Values, origin: dict[str, str]) -> Config:
    """Checks the settings; an error names where the setting was given last, else the run's config.json."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, problem["loc"][:2]))
        where = [given for name, given in origin.items() if f"{name}.".startswith(f"{path}.")]
        where = where or [given for name, given in origin.items() if path.startswith(f"{name}.")]
        raise ShelfmarkError(_explain(problem, where[-1] if where else "the run's config.json")) from error


def _explain(problem: ErrorDetails, where: str) -> str:
    """One line: which setting, what is wrong, what was probably meant.

    >>> load_config(sets=("train.epoch=9",))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    features.errors.ShelfmarkError: --set train.epoch=9 [train]: unknown setting 'epoch'. Did you mean ...?
    """
    path = [str(part) for part in problem["loc"] if not str(part).startswith("constrained")]
    if problem["type"] == "extra_forbidden":
        model = type(getattr(Config(), path[0])) if len(path) > 1 else Config
        near = difflib.get_close_matches(path[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(model.model_fields)}."
        section = f" [{path[0]}]" if len(path) > 1 else ""
        return f"{where}{section}: unknown {'setting' if len(path) > 1 else 'section'} '{path[-1]}'. {hint}"
    if problem["type"] == "value_error":  # settings that do not go together; the input is all of them
        return f"{where}: {'.'.join(path)}: {problem['ctx']['error']}; correct the setting"
    if problem["type"] == "model_type":
        return f"{where}: {'.'.join(path)} is a section; expected section.name=value; correct the setting"
    given = problem["msg"].lower()
    if path[1:2] and path[1] in LISTS and problem["type"] in ("tuple_type", "too_long", "missing"):
        path, given = path[:2], f"expected {LISTS[path[1]]}"
    return f"{where}: {'.'.join(path)} = {problem['input']!r}: {given}; correct the setting"
