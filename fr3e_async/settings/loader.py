"""From command line to ``Config``: YAML files laid over each other, ``key=value`` on top, one-line errors. The only omegaconf.

Omegaconf reads YAML (``1e-6`` is a number to it) and resolves ``${…}``; ``config`` checks the result. What a setting means, and
which words help, is not known here. A layer is a plain dict: dotted path → value and where it was given.
"""

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fr3e_async.algorithm.strategies import check_strategy, unread
from fr3e_async.config import Config
from fr3e_async.config.idle import ASKS_NOTHING, idle_settings
from fr3e_async.config.knobs import RENAMED, Knob, did_you_mean
from fr3e_async.config.secrets import SecretGiven, refuse_secrets
from fr3e_async.errors import ConfigError
from fr3e_async.settings.help import knobs, sections
from fr3e_async.settings.hints import locate, meant, misplaced_option, unknown

PACKAGED = Path(__file__).parent.parent / "configs"  # in a checkout a link to the repository's configs/
OPTIONS = ("--help", "-h", "--dry-run")  # what commands understand besides settings


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    config: Config
    yaml: str  # every setting with its resolved value; can be loaded again
    sources: tuple[str, ...]  # files in the order they were laid, then the overrides as given
    origins: Mapping[str, str] = field(default_factory=dict)  # of the settings that were given: "toy.yaml:12", or as typed


class Given(NamedTuple):
    """*Example*: ``Given(12, "toy.yaml:3")``, or as typed: ``Given(12, "run.steps=12")``."""

    value: Any
    origin: str


Layer = dict[str, Given]


def load_config(argv: Sequence[str], *, options: Sequence[str] = OPTIONS) -> LoadedConfig:
    """Arguments ``config=a.yaml[,b.yaml]`` and ``key=value`` → a checked config. ConfigError names the cause and the setting.

    ``options``: what the command understands besides, for messages. A word that was renamed is noted on stderr.
    """
    names, overrides = _split(argv, options)
    typed = [_override_layer(text) for text in overrides]  # first: `confg=toy` is a misspelling, not a missing file
    if not names:
        raise ConfigError("config: no file given; start with config=toy for the embedded example, see --help")
    files: dict[Path, Layer] = {}
    for name in names:
        for path, layer in _file_layers(_find(name, folder=Path.cwd(), origin="config="), ()):
            files.setdefault(path, layer)  # a base that two files share is laid once, below both
    given = _lay([*files.values(), *typed])
    for setting, word, new in _renamed(given):
        where = "" if "=" in given[setting].origin else f"{given[setting].origin}: "
        print(f"note: {where}{setting}={word} is called {setting}={new} now", file=sys.stderr)
        given[setting] = given[setting]._replace(value=new)
    config, text = _build(given)
    chosen = [layer for path, layer in files.items() if not _is_shipped(path) and not _is_record(layer)]
    try:
        check_strategy(config)  # the rules that need to know the strategy
        _refuse_idle(config, _lay([*chosen, *typed]))
        refuse_secrets(config, os.environ)
    except ConfigError as error:
        raise _located(error, given) from None
    origins = {path: its.origin for path, its in given.items()}
    return LoadedConfig(config=config, yaml=text, sources=(*map(_shown, files), *overrides), origins=origins)


def config_from(values: Mapping[str, Any]) -> Config:
    """The config whose ``asdict`` this is, as a journal keeps it. Raises ``ConfigError`` if it does not fit this version."""
    try:
        given = dict(_flatten(values, "", "journal"))
        return _build(given | {path: Given(new, "journal") for path, _, new in _renamed(given)})[0]
    except ConfigError as error:
        raise ConfigError(f"the recorded settings do not fit this version: {error}") from None


def _is_shipped(path: Path) -> bool:
    """One of the package's files, or an unchanged copy of one, such as configs/toy.yaml in a job's working directory."""
    if path.is_relative_to(PACKAGED.resolve()):
        return True
    copies = [shipped for shipped in PACKAGED.rglob("*.yaml") if shipped.name == path.name]
    return any(shipped.read_bytes() == path.read_bytes() for shipped in copies)


def _is_record(layer: Layer) -> bool:
    """The config.yaml of a run, with all there is: nobody chose each of these values."""
    return {path.partition(".")[0] for path in layer} >= sections().keys()


def _refuse_idle(config: Config, given: Layer) -> None:
    """``ConfigError`` for a setting that a person gave, though it does nothing beside the others."""
    for idle, why in (*unread(config.algorithm), *idle_settings(config)):
        for path, (value, _) in given.items():
            harmless = any(value == word and type(value) is type(word) for word in ASKS_NOTHING.get(path, ()))
            if (path == idle or (idle.endswith(".") and path.startswith(idle))) and not harmless:
                raise ConfigError(f"{path} does nothing with {why}; leave it out")


def _located(error: ConfigError, given: Layer) -> ConfigError:
    """Prefix an error with the file and line, or the typed word, of the setting that it names first."""
    path = re.match(r"[\w.]*", str(error))
    knob, _ = locate(path[0].rstrip(".") if path else "")
    origin = given[knob.path].origin if knob is not None and knob.path in given else ""
    hidden = isinstance(error, SecretGiven) and "=" in origin  # as typed, with the secret
    return ConfigError(f"{origin}: {error}") if origin and not hidden else error


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


# --- the command line -------------------------------------------------------------------------------------------------


def _split(argv: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names after ``config=``, and the other settings as typed."""
    names: list[str] = []
    overrides: list[str] = []
    for argument, follower in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            raise ConfigError(misplaced_option(argument, follower, options))
        if not equals:
            word = meant(argument, follower, options, _shipped())
            raise ConfigError(f"{argument}: an argument is written key=value, perhaps {word}")
        if key == "config":
            names += [name.strip() for name in value.split(",") if name.strip()]
        else:
            overrides.append(argument)
    return names, overrides


def _override_layer(text: str) -> Layer:
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
    return {key: Given(value, text)} if knob is not None else dict(_flatten({key: value}, "", text))


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


def _file_layers(path: Path, below: tuple[Path, ...]) -> Iterator[tuple[Path, Layer]]:
    """Yield the layers of a file, its bases first. ``below``: the files that led here by ``base``, to find circles."""
    if path in below:
        raise ConfigError(f"{path}: base: goes in a circle: " + " → ".join(p.name for p in (*below, path)))
    content, lines = _read(path)
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base must be a file name or a list of them, got {bases!r}")
    for base in bases:
        yield from _file_layers(_find(base, folder=path.parent, origin=f"{path}: base: "), (*below, path))
    yield path, dict(_flatten(content, "", path.name, lines))


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
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML: {_problem(error)}") from None
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


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


# --- layers -----------------------------------------------------------------------------------------------------------


def _flatten(
    content: Mapping[Any, Any], prefix: str, where: str, lines: Mapping[str, int] | None = None
) -> Iterator[tuple[str, Given]]:
    """Nested settings → (dotted path of a knob, value). ConfigError for an unknown key or a section that is no mapping."""
    for name, value in content.items():
        path = f"{prefix}{name}"
        origin = f"{where}:{lines.get(path, 1)}" if lines is not None else where
        if path in knobs():
            yield path, Given(_as_meant(knobs()[path], value), origin)
        elif path not in sections():
            raise unknown(path, origin)
        elif value is None:
            continue  # a section whose lines are all commented out
        elif not isinstance(value, Mapping):
            example = next(key for key in knobs() if key.startswith(path + "."))
            raise ConfigError(f"{origin}: {path} is a section, not a value; set for example {example}")
        else:
            yield from _flatten(value, path + ".", where, lines)


def _as_meant(knob: Knob, value: Any) -> Any:
    """Turn YAML's booleans back into the words ``off`` and ``false`` where the setting takes a text."""
    words = ("on", "true") if value is True else ("off", "false") if value is False else ()
    return next((word for word in words if word in knob.choices), value)


def _lay(layers: Sequence[Layer]) -> Layer:
    """All layers as one. A later value replaces the whole earlier one, mappings and lists too; only an override that
    names a key inside a mapping (``engine.options.seed=1``) adds to it."""
    laid: Layer = {}
    for layer in layers:
        for path, (value, origin) in layer.items():
            knob, rest = locate(path)
            assert knob is not None  # both makers of layers have checked it
            if rest:
                value = _put(laid[knob.path].value if knob.path in laid else {}, rest, value)
            laid[knob.path] = Given(value, origin)
    return laid


def _put(mapping: Any, keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy = dict(mapping) if isinstance(mapping, Mapping) else {}
    copy[keys[0]] = _put(copy.get(keys[0]), keys[1:], value) if keys[1:] else value
    return copy


def _renamed(given: Layer) -> list[tuple[str, str, str]]:
    """(setting, word, its new name) of every word that has another name now."""
    words = ((path, given[path].value, new) for path, new in RENAMED.items() if path in given)
    return [(path, word, new[word]) for path, word, new in words if isinstance(word, str) and word in new]


def _build(given: Layer) -> tuple[Config, str]:
    """The config, and as YAML: what was given over the defaults, ``${…}`` resolved, types and bounds checked."""
    nested: dict[str, Any] = {}
    for path, knob in knobs().items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = given[path].value if path in given else knob.default
    try:
        merged = OmegaConf.create(nested)
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
        return Config(**cast(dict[str, Any], plain)), OmegaConf.to_yaml(merged, resolve=True)
    except MissingMandatoryValue as error:
        raise _located(ConfigError(f"{error.full_key} has no value yet; give it as {error.full_key}=…"), given) from None
    except OmegaConfBaseException as error:  # a broken ``${…}``; omegaconf names not all of them
        path = str(error.full_key or next(path for path, its in given.items() if "${" in str(its.value)))
        raise _located(ConfigError(f"{path.partition('[')[0]}: {str(error).splitlines()[0]}"), given) from None
    except ConfigError as error:
        raise _located(error, given) from None
