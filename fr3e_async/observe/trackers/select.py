"""Which trackers a run has, by its settings; and, before anything is started, whether they can work.

Knows where each library looks for its secrets, and never reads one.
"""

import importlib.util
import netrc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fr3e_async.config import Config
from fr3e_async.errors import ConfigError
from fr3e_async.observe.trackers.feed import Ending, Feed, Row, Samples, Tracker, measured_values, summary_values
from fr3e_async.observe.trackers.mlflow_server import MlflowTracker
from fr3e_async.observe.trackers.weights_and_biases import WandbTracker

TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
MAKERS: dict[str, Callable[..., Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
REASON_CHARS = 500  # a diagnosis may be long
WANDB_URL = "https://api.wandb.ai"


def wanted(config: Config) -> list[str]:
    """Names of the trackers that are not off."""
    modes = {"wandb": config.observe.wandb, "mlflow": config.observe.mlflow}
    return [name for name, mode in modes.items() if mode != "off"]


def check_trackers(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ``ConfigError``: a library is not installed, or going online lacks an account or an address. Asks nobody."""
    for name in wanted(config):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # the latter: a folder ./wandb of somebody's offline runs
            raise ConfigError(
                f"observe.{name}: the package {PACKAGES[name]} is not installed; pip install 'fr3e-async[trackers]', or set observe.{name}=off"
            )
    if config.observe.wandb == "online" and not _has_wandb_account(environment):
        raise ConfigError(
            "observe.wandb=online: no account; set WANDB_API_KEY in the environment, run `wandb login` once, or set observe.wandb=offline"
        )
    if config.observe.mlflow == "online" and not (config.observe.mlflow_uri or environment.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            "observe.mlflow=online: no server; set observe.mlflow_uri or MLFLOW_TRACKING_URI in the environment, or observe.mlflow=offline"
        )


def _has_wandb_account(environment: Mapping[str, str]) -> bool:
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(environment.get("NETRC") or Path.home() / ".netrc")
    host = urlsplit(environment.get("WANDB_BASE_URL") or WANDB_URL).hostname or ""
    try:
        return file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Trackers:
    """All trackers of a run as one. Returns at once from everything but ``close``."""

    def __init__(self, feeds: Mapping[str, Feed] = {}, *, close_s: float = 0.0) -> None:
        """``feeds``: by the name of their setting. ``close_s``: how long ``close`` may take, in seconds."""
        self._feeds, self._close_s = feeds, close_s
        self._ending: Ending = "failed"  # unless somebody says otherwise
        self._reason, self._summary = "", dict[str, float]()

    def write(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        for feed in self._feeds.values():
            feed.write(Row(step=step, time_s=time_s, values=values))

    def measured(self, record: Mapping[str, Any], *, time_s: float) -> None:
        """An evaluation, as the summary has it; its step is the ``version`` of the weights."""
        self.write(int(record["version"]), measured_values(record), time_s=time_s)

    def show(self, step: int, name: str, rows: Sequence[Sequence[str]]) -> None:
        """A table of texts, the first row being its head."""
        for feed in self._feeds.values():
            feed.write(Samples(step=step, name=name, rows=rows))

    def back_to(self, step: int) -> None:
        """Tell every tracker that the run resumes from ``step``, which is earlier than the last one sent."""
        for feed in self._feeds.values():
            feed.back_to(step)

    def summarised(self, summary: Mapping[str, Any]) -> None:
        """Send the numbers of ``summary.json`` to every tracker."""
        self._summary = summary_values(summary)

    def ended(self, ending: Ending, *, reason: str) -> None:
        self._ending, self._reason = ending, reason

    def news(self) -> list[str]:
        """What a person should read now: each tracker's trouble once."""
        return [text for feed in self._feeds.values() for text in feed.news()]

    def close(self) -> list[str]:
        """Let them come to an end, all within one limit; what a person should read. A second time there is nothing to do."""
        deadline = time.monotonic() + self._close_s
        for feed in self._feeds.values():
            feed.end(self._ending, self._summary, reason=self._reason[:REASON_CHARS])
        setting = f"observe.tracker_close_s: {self._close_s:g} s"
        told = [text for feed in self._feeds.values() for text in feed.join(deadline, setting=setting)]
        self._feeds = {}
        return told


def make_trackers(config: Config, run_folder: Path) -> Trackers:
    """The trackers that the settings name, if any, opening in threads of their own."""
    folder, settings = run_folder / "trackers", asdict(config)
    feeds = {name: Feed(TITLES[name], _opener(MAKERS[name], config, folder, settings)) for name in wanted(config)}
    return Trackers(feeds, close_s=config.observe.tracker_close_s)


def _opener(make: Callable[..., Tracker], config: Config, folder: Path, settings: Mapping[str, Any]) -> Callable[[], Tracker]:
    def opened() -> Tracker:
        folder.mkdir(parents=True, exist_ok=True)
        return make(config, folder, settings=settings)

    return opened
