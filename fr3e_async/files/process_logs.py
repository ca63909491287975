"""Third-party log noise: off the console, kept in files, a JSON object a record. Standard library only, so that it can run
before anything heavy loads.

Our own words to a person go through ``console``; this module only moves the others' out of the way.
"""

import contextlib
import faulthandler
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# Read by the libraries when they are imported, and inherited by actors. Levels stay as they are: files may hold everything.
QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # its retries appear in the error that they end in
    "MLFLOW_DISABLE_TELEMETRY": "true",  # libraries import it, and then it notes who this is in ~/.config
    "PYTHONWARNINGS": "ignore",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning of every actor without GPUs, and is Ray's future default
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
}
READ_BYTES = 1 << 20  # of the end of a dead actor's log
_KIND = r"(?:[A-Za-z_][\w.]*(?:Error|Exception)|Fatal Python error)"
# With its text, or alone at the end of a traceback, as an assertion has none.
NAMED_ERROR = re.compile(rf"(?:^|(?<=[\s\]])){_KIND}: \S.*|(?:^|(?<=\] )){_KIND}$")
RAISED_AT = re.compile(r'File "(?:.*/)?([^/"]+)", line (\d+), in ')
POINTS_BACK = re.compile(
    r"(?i)\bsee (?:the )?(?:stack trace|root cause)"
)  # vLLM: what was raised in another process is the cause
SHOWN_ERROR = 300  # characters
_NOISY = ("deepspeed", "DeepSpeed", "ray", "transformers", "vllm", "urllib3", "filelock", "tensorboard")


def quiet_environment(*, verbose: bool) -> dict[str, str]:
    """Return the environment variables that silence libraries in this process and its actors: those the user has not set, none with ``verbose``."""
    return {} if verbose else {name: value for name, value in QUIET_ENVIRONMENT.items() if name not in os.environ}


def quiet_driver(log_path: Path, *, verbose: bool) -> None:
    """Send all ``logging`` records and warnings of this process to a file; with ``verbose`` to stderr as well.

    Call it before Ray, vLLM or DeepSpeed are imported. A file that cannot be opened costs the records, not the run.
    """
    os.environ.update(quiet_environment(verbose=verbose))
    handlers: list[logging.Handler] = [logging.StreamHandler()] if verbose else []
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(JsonLines())
        handlers.append(file)
    except OSError:
        handlers = handlers or [logging.NullHandler()]
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=layout, handlers=handlers, force=True)
    logging.captureWarnings(True)
    for name in _NOISY:  # drop handlers that write to the console by themselves; the root's stay
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


class JsonLines(logging.Formatter):
    """A record as one line, its traceback included, with the keys of ``events.event_row``: its event is ``log``."""

    def format(self, record: logging.LogRecord) -> str:
        text = logging.Formatter("%(message)s").format(record)
        row = {
            "time_s": record.created,
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "text": text,
        }
        return json.dumps(row)


def redirect_output(path: str | Path) -> bool:
    """Send this process' stdout and stderr, C libraries and children included, to the end of a file. True if done.

    An empty path, or a file that cannot be opened (an actor on a node without the shared folder), leaves them as they are.
    """
    if not str(path):
        return False
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return False
    for stream, standard in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        for descriptor in {standard, _descriptor(stream, standard)}:  # Ray may have put another file under the stream
            os.dup2(file, descriptor)
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")
    os.close(file)
    faulthandler.enable(file=2)
    return True


def first_error(log: str | Path, *, start: int = 0) -> str:
    """Find the first error that a log names after byte ``start``, near its end: later ones are usually its consequences.

    Returns its line, shortened; the file, the line number and the source line too if it has no text; "" without one, or without the file.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - READ_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    named = [(number, found[0].strip()) for number, line in enumerate(lines) if (found := NAMED_ERROR.search(line))]
    for number, text in sorted(named, key=lambda error: POINTS_BACK.search(error[1]) is not None):
        whole = text if ": " in text else text + _raised_at(lines[:number])
        return textwrap.shorten(whole, width=SHOWN_ERROR, placeholder=" …")
    return ""


def _raised_at(lines: list[str]) -> str:
    """Where the traceback in these lines ends: `` at cpu_router.py:212: assert self.topk_group is not None``."""
    for number in reversed(range(len(lines))):
        if raised := RAISED_AT.search(lines[number]):
            source = re.sub(r"^\(.*?\]", "", "".join(lines[number + 1 : number + 2])).strip()
            return f" at {raised[1]}:{raised[2]}: {source}"
    return ""


@contextlib.contextmanager
def stderr_in(path: Path) -> Iterator[None]:
    """For the block, what C libraries write to stderr goes to the end of a file; a file that cannot be opened changes nothing."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        yield
        return
    sys.stderr.flush()
    console = os.dup(2)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(console, 2)
        os.close(console)


def _descriptor(stream: TextIO, default: int) -> int:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by an object without a file
        return default
