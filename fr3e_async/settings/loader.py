"""From command line to ``Config``: YAML files laid over each other, dot-list overrides on top, one-line errors. The only omegaconf.

Refuses to print, to start anything, and to know what a setting means: rules between settings are ``config``'s,
words about settings are ``help``'s. A layer is a plain dict here; omegaconf reads YAML (``1e-6`` is a number to it), checks and
converts types, and resolves ``${…}``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fr3e_async.algorithm.strategies import check_strategy, unread
from fr3e_async.config import Config
from fr3e_async.config.idle import ASKS_NOTHING, idle_settings
from fr3e_async.config.secrets import refuse_secrets
from fr3e_async.errors import ConfigError
from fr3e_async.settings.help import Knob, entry_knobs, knobs, sections
from fr3e_async.settings.hints import did_you_mean, locate, meant, misplaced_option, mistyped, unknown

PACKAGED = Path(__file__).parent.parent / "configs"  # in a checkout a link to the repository's configs/
OPTIONS = ("--help", "-h", "--dry-run")  # what commands understand besides settings


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    config: Config
    yaml: str  # every setting with its resolved value; can be loaded again
    sources: tuple[str, ...]  # files in the order they were laid, then the overrides as given
    origins: Mapping[str, str] = field(default_factory=dict)  # of the settings that were given: "toy.yaml:12", or as typed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Settings of one file or one override, by dotted path, and where each was said (for messages)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # "toy.yaml:12", or "run.steps=abc" as typed


def load_config(argv: Sequence[str], *, options: Sequence[str] = OPTIONS) -> LoadedConfig:
    """Arguments ``config=a.yaml[,b.yaml]`` and ``key=value`` → a checked config. ConfigError names the cause and the setting.

    ``options``: what the command understands besides, for messages."""
    names, overrides = _split(argv, options)
    typed = [_override_layer(text) for text in overrides]  # first: `confg=toy` is a misspelling, not a missing file
    if not names:
        raise ConfigError("config: no file given; start with config=toy for the embedded example, see --help")
    files: dict[Path, _Layer] = {}
    for name in names:
        for path, layer in _file_layers(_find(name, folder=Path.cwd(), origin="config="), ()):
            files.setdefault(path, layer)  # a base that two files share is laid once, below both
    values, origins = _lay([*files.values(), *typed])
    config, text = _build(values, origins)
    check_strategy(config)  # the rules that need to know the strategy
    given = [layer for path, layer in files.items() if not _is_shipped(path) and not _is_record(layer)]
    _refuse_idle(config, *_lay([*given, *typed]))
    refuse_secrets(config, os.environ)
    return LoadedConfig(config=config, yaml=text, sources=(*map(_shown, files), *overrides), origins=origins)


def _is_shipped(path: Path) -> bool:
    """One of the package's files, or an unchanged copy of one, such as configs/toy.yaml in a job's working directory."""
    if path.is_relative_to(PACKAGED.resolve()):
        return True
    copies = [shipped for shipped in PACKAGED.rglob("*.yaml") if shipped.name == path.name]
    return any(shipped.read_bytes() == path.read_bytes() for shipped in copies)


def _is_record(layer: _Layer) -> bool:
    """The config.yaml of a run, with all there is: nobody chose each of these values."""
    return {path.partition(".")[0] for path in layer.values} >= sections().keys()


def _refuse_idle(config: Config, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """``ConfigError`` for a setting that a person gave, though it does nothing beside the others."""
    for idle, why in (*unread(config.algorithm), *idle_settings(config)):
        for path in values:
            if (path == idle or (idle.endswith(".") and path.startswith(idle))) and not _asks_nothing(path, values[path]):
                raise ConfigError(f"{origins[path]}: {path} does nothing with {why}; leave it out")


def _asks_nothing(path: str, value: Any) -> bool:
    return any(value == harmless and type(value) is type(harmless) for harmless in ASKS_NOTHING.get(path, ()))


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


# --- the command line -------------------------------------------------------------------------------------------------


def _split(argv: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    names: list[str] = []
    overrides: list[str] = []
    for index, argument in enumerate(argv):
        key, equals, value = argument.partition("=")
        follower = next(iter(argv[index + 1 :]), "")
        if argument.startswith("-"):
            raise ConfigError(misplaced_option(argument, follower, options))
        if not equals:
            raise ConfigError(
                f"{argument}: an argument is written key=value, perhaps {meant(argument, follower, options, _shipped())}"
            )
        if key == "config":
            names += [name.strip() for name in value.split(",") if name.strip()]
        else:
            overrides.append(argument)
    return names, overrides


def _override_layer(text: str) -> _Layer:
    key, _, raw = text.partition("=")
    key = key.strip()
    knob, rest = locate(key)
    if knob is None and key not in sections():
        raise unknown(key, text)
    value: Any
    if knob is not None and not raw.strip():
        value = {} if knob.is_mapping and not rest else [] if knob.is_list else ""
    elif knob is not None and knob.is_text and not (raw[0] == raw[-1] and raw[0] in "\"'"):
        value = raw  # as typed: data.template={problem} is no YAML mapping, model.revision=1e10 no number
    else:
        try:
            value = _parse(f"value: {raw}")["value"]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{text}: the value is not YAML: {_problem(error)}") from None
    if knob is not None:
        return _Layer(values={key: value}, origins={key: text})
    pairs = dict(_flatten({key: value}, "", text))
    return _Layer(values=pairs, origins=dict.fromkeys(pairs, text))


# --- files ------------------------------------------------------------------------------------------------------------


def _find(name: str, *, folder: Path, origin: str) -> Path:
    """A file relative to ``folder``, or else of the shipped configs; ``.yaml`` may be left out."""
    shipped = name.removeprefix("configs/")
    own = folder / os.path.expanduser(name)
    for candidate in (own, Path(f"{own}.yaml"), PACKAGED / shipped, PACKAGED / f"{shipped}.yaml"):
        if os.path.isfile(candidate):  # unlike Path.is_file, False for a name too long and a folder without permission
            return candidate.resolve()
    ours = _shipped()
    raise ConfigError(f"{origin}{name}: no such file{did_you_mean(name, ours)}; shipped configs: {', '.join(ours)}")


def _shipped() -> list[str]:
    """Names of the configs that come with the package, as ``config=`` takes them."""
    return sorted(str(p.relative_to(PACKAGED).with_suffix("")) for p in PACKAGED.rglob("*.yaml"))


def _file_layers(path: Path, below: tuple[Path, ...]) -> Iterator[tuple[Path, _Layer]]:
    """The layers of a file, its bases first. ``below``: the files whose base this one is."""
    if path in below:
        raise ConfigError(f"{path}: base: goes in a circle: " + " → ".join(p.name for p in (*below, path)))
    content, lines = _read(path)
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base must be a file name or a list of them, got {bases!r}")
    for base in bases:
        target = _find(base, folder=path.parent, origin=f"{path}: base: ")
        yield from _file_layers(target, (*below, path))
    values = dict(_flatten(content, "", path.name, lines))
    origins = {key: f"{path.name}:{_line_of(key, lines)}" for key in values}
    yield path, _Layer(values=values, origins=origins)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's top mapping, and the line of each of its dotted keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        content = _parse(text)
        lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}{_at(error)}: not YAML: {_problem(error)}") from None
    except OSError:  # what omegaconf raises for a file that holds a bare word or number
        content, lines = None, {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold settings as `section:` and below it `  name: value`")
    return content, lines


def _parse(text: str) -> Any:
    """YAML → plain Python, by omegaconf's rules: ``1e-6`` is a number, a repeated key an error. yaml.YAMLError."""
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            yield path, key.start_mark.line + 1
            yield from _lines(value, path + ".")


def _line_of(key: str, lines: Mapping[str, int]) -> int:
    return lines.get(key, 1)


def _at(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


# --- layers -----------------------------------------------------------------------------------------------------------


def _flatten(
    content: Mapping[Any, Any], prefix: str, where: str, lines: Mapping[str, int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Nested settings → (dotted path of a knob, value). ConfigError for an unknown key or a section that is no mapping."""
    for name, value in content.items():
        path = f"{prefix}{name}"
        origin = f"{where}:{_line_of(path, lines)}" if lines is not None else where
        if path in knobs():
            yield path, _as_meant(knobs()[path], value, origin)
        elif path not in sections():
            raise unknown(path, origin)
        elif value is None:
            continue  # a section whose lines are all commented out
        elif not isinstance(value, Mapping):
            example = next(key for key in knobs() if key.startswith(path + "."))
            raise ConfigError(f"{origin}: {path} is a section, not a value; set for example {example}")
        else:
            yield from _flatten(value, path + ".", where, lines)


def _as_meant(knob: Knob, value: Any, origin: str) -> Any:
    """Undo what YAML makes of unquoted words: ``off`` and ``false`` are no text to it, a revision ``0123`` a number."""
    for word in ("on", "true") if value is True else ("off", "false") if value is False else ():
        if word in knob.choices:
            return word
    if knob.is_text and not isinstance(value, str):
        raise ConfigError(f"{mistyped(knob, value, origin)}; put it in quotes")
    return value


def _lay(layers: Sequence[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """All layers as one. A later value replaces the whole earlier one, mappings and lists too; only an override that
    names a key inside a mapping (``engine.options.seed=1``) adds to it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for path, value in layer.values.items():
            knob, rest = locate(path)
            assert knob is not None  # both makers of layers have checked it
            values[knob.path] = _put(values.get(knob.path), rest, value) if rest else value
            origins[knob.path] = layer.origins[path]
    return values, origins


def _put(mapping: Any, keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy = dict(mapping) if isinstance(mapping, Mapping) else {}
    copy[keys[0]] = _put(copy.get(keys[0]), keys[1:], value) if keys[1:] else value
    return copy


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[Config, str]:
    for path, value in values.items():
        knob = knobs()[path]
        if value == "???":
            raise ConfigError(f"{origins[path]}: {path} has no value yet; give it as {path}=…")
        if knob.is_mapping != isinstance(value, dict) or knob.is_list != isinstance(value, list):
            raise mistyped(knob, value, origins[path])
        if knob.entry is not None:
            _check_entries(knob, value, origins[path])
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(_nest(values)))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _blame(error, values, origins) from None
    return cast(Config, config), OmegaConf.to_yaml(merged, resolve=True)


def _check_entries(knob: Knob, entries: Sequence[Any], origin: str) -> None:
    """``ConfigError`` with the entry's place for a list of sections: omegaconf's own message would name the last key only."""
    known = entry_knobs(knob.path)
    for index, entry in enumerate(entries):
        place = f"{knob.path}[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{origin}: {place} must be a mapping with {', '.join(known)}, got {entry!r}")
        for name, value in entry.items():
            if name not in known:
                raise ConfigError(f"{origin}: unknown setting {place}.{name}{did_you_mean(str(name), list(known))}")
            row = replace(known[name], path=f"{place}.{name}")
            if row.is_text and not isinstance(value, str):
                raise ConfigError(f"{mistyped(row, value, origin)}; put it in quotes")
            try:
                OmegaConf.merge(OmegaConf.structured(knob.entry), OmegaConf.create({name: value}))
            except OmegaConfBaseException:
                raise mistyped(row, value, origin) from None


def config_from(values: Mapping[str, Any]) -> Config:
    """The config whose ``asdict`` this is, as a journal keeps it. Raises ``ConfigError`` if it does not fit this version."""
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(dict(values)))))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the recorded settings do not fit this version: {str(error).splitlines()[0]}") from None


def _blame(error: OmegaConfBaseException, values: Mapping[str, Any], origins: Mapping[str, str]) -> ConfigError:
    """Which setting omegaconf objects to: it names most by itself, and says nothing of a broken ``${…}``."""
    problem = str(error).splitlines()[0]
    knob, _ = locate(str(error.full_key).partition("[")[0])
    if knob is None:
        path = next(path for path, value in values.items() if "${" in str(value))
        return ConfigError(f"{origins[path]}: {path}: {problem}")
    value, origin = values.get(knob.path), origins.get(knob.path, knob.path)
    return ConfigError(f"{origin}: {knob.path}: {problem}") if "${" in str(value) else mistyped(knob, value, origin)


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested
