"""The setting ``reward``: the name of what judges a response, and whether a user's function can be called at all.

``check_reward`` looks at it in a process of its own, so that a user's imports neither slow down nor break the driver. Only the
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fr3e_async
from fr3e_async.errors import ConfigError

MATH = "math"
MAX_RESPONSE_CHARS = 1_000_000  # a longer response is not given to a user's function
_NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_IMPORT_LIMIT_S = 120.0
_MARK = "fr3e-reward: "


def check_reward(name: str) -> None:
    """Raise ``ConfigError`` (one line) unless ``name`` is 'math' or a function that can be imported and called.

    Tried in a short process with this one's ``sys.path``.
    """
    if name == MATH:
        return
    if not _NAME.fullmatch(name):
        raise ConfigError(f"reward must be 'math' or package.module:function, got {name!r}")
    command = [sys.executable, "-m", __name__, name, json.dumps(search_path())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=child_environment(), timeout=_IMPORT_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"reward={name}: importing its module takes more than {_IMPORT_LIMIT_S:g} s") from None
    said = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not said:
        raise ConfigError(f"reward={name}: importing its module ended the process (exit status {done.returncode})")
    if said[-1] != "ok":
        raise ConfigError(f"reward={name}: {said[-1]}")


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


def wants_exact(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter ``exact``, for the response with its special tokens."""
    try:
        return "exact" in inspect.signature(function).parameters
    except ValueError:  # a built-in that does not tell its arguments
        return False


def fault_of(name: str) -> str:
    """What is wrong with a user's reward function, in one line; "" if it can be called."""
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
    if inspect.iscoroutinefunction(function):
        return f"{path} is asynchronous; it must be a plain function"
    return _misfit(function, path)


def _misfit(function: Callable[..., Any], path: str) -> str:
    try:
        inspect.signature(function).bind("response", "gold", "prompt", **({"exact": ""} if wants_exact(function) else {}))
    except TypeError as error:
        return f"{path} must take (response, gold, prompt): {error}"
    except ValueError:  # a built-in that does not tell its arguments
        return ""
    return ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def main() -> None:
    """``python -m fr3e_async.verify.rewards NAME SYS_PATH``: say on one marked line of stdout whether the name will do."""
    name, paths = sys.argv[1:]
    sys.path[:] = json.loads(paths)
    print(f"\n{_MARK}{fault_of(name) or 'ok'}", flush=True)
    os._exit(0)  # without the exit handlers of a stranger's module


if __name__ == "__main__":
    main()
