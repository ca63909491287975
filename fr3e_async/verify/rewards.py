"""The settings ``reward`` and ``rewards``: names of what judges a response, and whether a user's function can be called at all.

``check_reward`` looks at one in a process of its own, so that a user's imports neither slow down nor break the driver. Only the
standard library: worker processes load this module.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fr3e_async
from fr3e_async.errors import ConfigError

if TYPE_CHECKING:
    from fr3e_async.config import Config

MATH = "math"
BY_NAME = ("exact", "length", "finish")  # what a function gets besides columns, if it has such a parameter
MAX_RESPONSE_CHARS = 1_000_000  # a longer response is not given to a user's function
_NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*(\.[^\W\d]\w*)*)")
IMPORT_LIMIT_S = 120.0
_MARK = "fr3e-reward: "


def check_reward_functions(config: Config) -> None:
    """``check_reward`` of all; ``ConfigError`` too for a column that no function takes."""
    taken = [check_reward(term.function, batch=term.batch, columns=config.data.columns) for term in config.reward_terms]
    if idle := set(config.data.columns).difference(*taken):
        raise ConfigError(f"data.columns: {min(idle)}: no function of reward has a parameter of this name")


def check_reward(name: str, *, batch: int = 0, columns: Sequence[str] = ()) -> frozenset[str]:
    """The columns that it takes. ``ConfigError`` (one line) unless 'math' or a function that can be imported and called with them.

    Tried in a short process with this one's ``sys.path``.
    """
    if name == MATH:
        return frozenset()
    if not _NAME.fullmatch(name):
        raise ConfigError(f"reward must be 'math' or package.module:function, got {name!r}")
    command = [sys.executable, "-m", __name__, json.dumps([name, batch, list(columns), search_path()])]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=child_environment(), timeout=IMPORT_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"reward={name}: importing its module takes more than {IMPORT_LIMIT_S:g} s") from None
    said = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not said:
        raise ConfigError(f"reward={name}: importing its module ended the process (exit status {done.returncode})")
    fault, taken = json.loads(said[-1])
    if fault:
        raise ConfigError(f"reward={name}: {fault}")
    return frozenset(taken)


def search_path() -> tuple[str, ...]:
    """This process' ``sys.path`` in a form that means the same in another one; our own package is on it."""
    root = str(Path(fr3e_async.__file__).parents[1])  # a Ray job's code may be imported from anywhere
    paths = [os.path.abspath(path) for path in sys.path]  # "" is the working directory
    return tuple(dict.fromkeys([*paths, root]))


def child_environment() -> dict[str, str]:
    """The environment of a process that is to run a module of this package."""
    root = str(Path(fr3e_async.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def resolve(name: str) -> Callable[..., Any]:
    """Import ``package.module:function``. Raises whatever the import raises, and ``AttributeError``."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether it has a parameter of this name, or ``**`` for any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a built-in that does not tell its arguments
        return False
    return any(p.kind is p.VAR_KEYWORD or (p.name == name and p.kind is not p.POSITIONAL_ONLY) for p in parameters)


def fault_of(name: str, *, batch: int = 0, columns: Sequence[str] = ()) -> str:
    """Say in one line why a user's reward function cannot be called; "" if it can."""
    module, _, path = name.partition(":")
    try:
        function = resolve(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            return f"no module named {error.name} where Python looks for modules (a run's working directory is one of the places)"
        return f"importing {module} failed: no module named {error.name}"
    except AttributeError as error:
        if module not in sys.modules:  # a failed import takes it out again
            return f"importing {module} failed: {_one_line(error)}"
        return f"{module} has no {path}"
    except Exception as error:  # a stranger's module may raise anything
        return f"importing {module} failed: {_one_line(error)}"
    if not callable(function):
        return f"{path} is not callable, it is {type(function).__name__}"
    taken = [name for name in (*BY_NAME, *columns) if takes(function, name)]
    return _form(function, path, batch) or _misfit(function, path, taken)


def _misfit(function: Callable[..., Any], path: str, names: Sequence[str]) -> str:
    try:
        inspect.signature(function).bind("response", "gold", "prompt", **dict.fromkeys(names))
    except TypeError as error:
        hint = "; is it a column for data.columns?" if "missing" in str(error) and len(_required(function)) > 3 else ""
        return f"{path} must take (response, gold, prompt): {error}{hint}"
    except ValueError:  # a built-in that does not tell its arguments
        return ""
    return ""


def _required(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]


def takes_lists(function: Callable[..., Any]) -> bool:
    """Whether it judges many responses in one call: its first parameter is called ``responses``."""
    try:
        return next(iter(inspect.signature(function).parameters), "") == "responses"
    except ValueError:
        return False


def _form(function: Callable[..., Any], path: str, batch: int) -> str:
    if takes_lists(function) and not batch:
        return f"{path} takes lists of responses; say how many in rewards: {{function: …, batch: 32}}"
    if batch and not takes_lists(function) and not inspect.iscoroutinefunction(function):
        return f"{path} is called with one response at a time; batch is for a function of (responses, golds, prompts), or an async one"
    return ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def main() -> None:
    """``python -m fr3e_async.verify.rewards [NAME, BATCH, COLUMNS, SYS_PATH]`` as JSON: on one marked line of stdout what is wrong with
    the function, and the columns that it takes."""
    name, batch, columns, sys.path[:] = json.loads(sys.argv[1])
    fault = fault_of(name, batch=batch, columns=columns)
    taken = [] if fault else [column for column in columns if takes(resolve(name), column)]
    print(f"\n{_MARK}{json.dumps([fault, taken])}", flush=True)
    os._exit(0)  # without the exit handlers of a stranger's module


if __name__ == "__main__":
    main()
