"""Service times from a model's size and a device's data sheet, where nothing has been measured. Every assumption is a name here."""

from collections.abc import Mapping
from dataclasses import dataclass

from fr3e_async.config import Config
from fr3e_async.errors import ConfigError
from fr3e_async.learner.memory import BYTES, ModelShape, kv_bytes_per_token
from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, SystemModel, VerifierTimes, WeightTimes
from fr3e_async.simulate.workload import LogNormalWorkload

# Parts of a device's peak that are reached, and times that no data sheet has.
MEMORY_EFFICIENCY = 0.7  # of decoding, which reads all weights once a step
DECODE_EFFICIENCY = 0.4  # of decoding, in arithmetic
PREFILL_EFFICIENCY = 0.5
TRAIN_EFFICIENCY = 0.35
STEP_OVERHEAD_S = 0.003  # a decode step, whatever the model: scheduling, sampling
BATCH_OVERHEAD_S = 2.0  # a training batch: starting passes, the optimiser
SCALING = 0.95  # of a doubling of ranks
STORE_BYTES_PER_S = 5e9  # weights out of the learner, and over the network to an engine
LOAD_BYTES_PER_S = 10e9  # host memory to device
ANSWER_S = 0.02  # a verdict
TASK_S = 0.02  # a call to an actor and back
START_S = 120.0  # a new engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An accelerator's data sheet; arithmetic is dense bfloat16, without sparsity."""

    flops: float  # operations a second
    memory_bytes_per_s: float
    memory_bytes: float


DEVICES: Mapping[str, Device] = {
    "A100": Device(flops=312e12, memory_bytes_per_s=2.0e12, memory_bytes=80e9),
    "H100": Device(flops=989e12, memory_bytes_per_s=3.35e12, memory_bytes=80e9),
    "H200": Device(flops=989e12, memory_bytes_per_s=4.8e12, memory_bytes=141e9),
    "CPU": Device(flops=60e9, memory_bytes_per_s=8e9, memory_bytes=8e9),  # one core, float32
}


def device_of(name: str) -> Device:
    """Return the data sheet of the device. Raises ``ConfigError`` for an unknown name and lists the known ones."""
    if name not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


def roofline(config: Config, shape: ModelShape, device: Device, workload: LogNormalWorkload, *, name: str) -> SystemModel:
    """Parameters P of s bytes, tensor parallel over t devices, contexts of C tokens on average (half a response more).

    step = P·s / (t · bandwidth) + overhead          request = 2·P / (t · flops) + cache of C tokens / (t · bandwidth)
    prefill = 2·P / (t · flops) a token              train = (6 + 2 a pass more)·P / flops a token and rank
    """
    engine = _engine(config, shape, device, workload)
    learner, sent = config.learner, shape.parameters * BYTES[config.learner.dtype]
    passes = 6 * learner.epochs + 2 * (config.loss.prox == "recompute") + 2 * learner.epochs * learner.activation_checkpointing
    per_token = passes * shape.parameters / (device.flops * TRAIN_EFFICIENCY)
    each = sent / max(config.generators.gpus, 1)
    return SystemModel(
        service=Service(
            engine=engine,
            verifier=VerifierTimes(answer_s=ANSWER_S, task_s=TASK_S),
            learner=LearnerTimes(fixed_s=BATCH_OVERHEAD_S, token_s=per_token, scaling=SCALING, export_s=sent / STORE_BYTES_PER_S),
            weights=WeightTimes(fetch_s=sent / STORE_BYTES_PER_S, pause_s=each / LOAD_BYTES_PER_S),
        ),
        workload=workload,
        source=f"the data sheet of {name}",
    )


def _engine(config: Config, shape: ModelShape, device: Device, workload: LogNormalWorkload) -> EngineTimes:
    devices = max(config.generators.gpus, 1)
    bytes_each = BYTES.get(config.engine.dtype) or BYTES.get(shape.dtype, 2)
    weights = shape.parameters * bytes_each
    bandwidth, flops = devices * device.memory_bytes_per_s * MEMORY_EFFICIENCY, devices * device.flops
    cache = kv_bytes_per_token(shape, bytes_each)
    context = workload.prompt + workload.mean / 2
    room = devices * device.memory_bytes * config.engine.gpu_memory_utilization - weights
    if config.engine.kv_cache_gib:
        room = config.engine.kv_cache_gib * 2**30
    if room <= 0:
        raise ConfigError(
            f"generators.gpus={config.generators.gpus}: {weights / 1e9:.0f} GB of weights do not fit into "
            f"{devices * device.memory_bytes / 1e9:.0f} GB"
        )
    return EngineTimes(
        step_s=weights / bandwidth + STEP_OVERHEAD_S,
        request_s=2 * shape.parameters / (flops * DECODE_EFFICIENCY) + cache * context / bandwidth,
        prefill_s=2 * shape.parameters / (flops * PREFILL_EFFICIENCY),
        task_s=TASK_S,
        kv_tokens=int(room / cache) if cache else 0,
        start_s=START_S,
    )
