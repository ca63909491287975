"""What is asked of the actors before a run begins: a request of every engine, an update of the first one.

All actors are started side by side; the questions cost well under a second. So a model that cannot be served or updated is
refused as soon as one engine is up, without a second round of starts for those that can.
"""

from __future__ import annotations

from fr3e_async.control.crew import ENGINES
from fr3e_async.control.door import Door
from fr3e_async.control.ports import EngineWorker
from fr3e_async.errors import StartRefused
from fr3e_async.types import WeightAck
from fr3e_async.wiring.deployment import Deployment


async def first_questions(deployment: Deployment, door: Door) -> None:
    """Raises ``StartRefused``, one line: an engine dies, does not take the learner's weights, or has other numbers."""
    crew = deployment.crew
    engines = [engine for role in ENGINES for name in crew.names(role) if (engine := crew.engine(name)) is not None]
    _refuse(deployment, await door.ask_all(engines))
    probe = engines[0]
    _refuse(deployment, await _updated(deployment, probe))
    _refuse(
        deployment, {probe.name: await door.ask(probe, counts=False)}
    )  # it is asked again after an update that changes something


async def _updated(deployment: Deployment, engine: EngineWorker) -> dict[str, str]:
    """Give an engine the weights that it has, as the learner names and stores them."""
    refused: dict[str, str] = {}

    def told(name: str, reply: WeightAck | str) -> None:
        if isinstance(reply, str):
            refused[name] = f"it did not take the learner's weights: {reply}"

    publisher = deployment.publisher()
    publisher.offer(await deployment.weights(0))
    await publisher.hand_over([engine], told, alone=True)
    return refused


def _refuse(deployment: Deployment, whys: dict[str, str]) -> None:
    for name, why in ((name, why) for name, why in whys.items() if why):
        raise StartRefused(
            f"model.path or engine.options: {deployment.crew.explained(name, why if why.startswith(name) else f'{name}: {why}')}"
        )
