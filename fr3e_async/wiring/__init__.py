"""The only place that names concrete classes and resources: from a config to running workers, and back to nothing.

    joining     a cluster: checked, joined or started, left
    starting    one actor, or the learner group, with its placement, environment and limits
    room        who is up, who has found no room, and what the autoscaler is told meanwhile
    deployment  all of them together: what a session works with
    first_questions  what is asked of them before a run begins

Everything else sees ports.
"""

from fr3e_async.wiring.deployment import Deployment, first_questions
from fr3e_async.wiring.joining import check_cluster, connect, connecting, disconnect, gauges
from fr3e_async.wiring.starting import PolicyFiles, engine_spec, mismatch_bound

__all__ = [
    "Deployment", "PolicyFiles", "check_cluster", "connect", "connecting", "disconnect", "engine_spec", "first_questions", "gauges",
    "mismatch_bound",
]  # fmt: skip
