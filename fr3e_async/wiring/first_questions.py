"""What is asked of the actors before a run begins: a request of every engine, and to take the learner's weights.

All actors are started side by side; the questions cost well under a second, and the weights what any hand-over costs. So a model
that cannot be served or updated is refused as soon as one engine is up, without a second round of starts for those that can; and
no engine serves what it read from its own disk before that was compared, element by element, with what the learner has.
"""

from __future__ import annotations

from fr3e_async.control.door import Door
from fr3e_async.control.ports import EngineWorker
from fr3e_async.control.workers import ENGINES
from fr3e_async.errors import StartRefused
from fr3e_async.weights.manifest import WeightAck, WeightBundle
from fr3e_async.wiring.deployment import Deployment


async def first_questions(deployment: Deployment, weights: WeightBundle, door: Door | None) -> int:
    """Ask every engine, give it the learner's ``weights``, and ask the first one again; without a ``door`` nothing is asked.

    Returns the number of engines. Raises ``StartRefused``, one line: an engine dies, does not take the weights, or has other numbers.
    """
    workers = deployment.workers
    engines = [engine for role in ENGINES for name in workers.names(role) if (engine := workers.engine(name)) is not None]
    if door is not None:
        _refuse(deployment, await door.ask_all(engines))
    _refuse(deployment, await _updated(deployment, weights, engines))
    if door is not None:  # not one of its two times: it is asked again after an update that changes something
        _refuse(deployment, {engines[0].name: await door.ask(engines[0], counts=False)})
    return len(engines)


async def _updated(deployment: Deployment, weights: WeightBundle, engines: list[EngineWorker]) -> dict[str, str]:
    """Give engines the weights that they have, as the learner names and stores them; by engine, why it did not take them."""
    refused: dict[str, str] = {}

    def told(name: str, reply: WeightAck | str) -> None:
        if isinstance(reply, str):
            refused[name] = f"it did not take the learner's weights: {reply}"

    publisher = deployment.publisher()
    publisher.offer(weights)
    await publisher.hand_over(engines, told, alone=True)
    return refused


def _refuse(deployment: Deployment, whys: dict[str, str]) -> None:
    for name, why in ((name, why) for name, why in whys.items() if why):
        raise StartRefused(
            f"model.path or engine.options: {deployment.workers.explained(name, why if why.startswith(name) else f'{name}: {why}')}"
        )
