"""Where people follow runs besides the run directory: Weights & Biases and MLflow. ``make_trackers`` is all that a run needs.

    run ──► Trackers ──► Feed (queue, thread) ──► WandbTracker   ──► RUN/trackers/wandb/, or the service
                    └──► Feed (queue, thread) ──► MlflowTracker  ──► RUN/trackers/mlflow/, or a server

A run never waits for them but at its very end, and never fails because of them. Each library is imported in its own module, in its
own thread, when it is wanted. What they show is documented in docs/trackers.md. Knows nothing of what metrics mean.
"""

from fr3e_async.observe.trackers.feed import Ending, Feed, Row, Samples, Tracker, flat_settings, measured_values
from fr3e_async.observe.trackers.select import Trackers, check_trackers, make_trackers

__all__ = [
    "Ending",
    "Feed",
    "Row",
    "Samples",
    "Tracker",
    "Trackers",
    "check_trackers",
    "flat_settings",
    "make_trackers",
    "measured_values",
]
