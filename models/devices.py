"""What a network runs on: every GPU of the machine together, or its processor."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras

log = logging.getLogger("nightsift.devices")


@dataclass(frozen=True, slots=True)
class Devices:
    """The names of the GPUs that networks of this process run on; none: they run on the processor."""

    gpus: tuple[str, ...]

    def __str__(self) -> str:
        """Such as `2 × NVIDIA H100`, or `cpu`."""
        kinds = sorted(set(self.gpus))
        return ", ".join(f"{self.gpus.count(kind)} × {kind}" for kind in kinds) or "cpu"


@cache
def find_devices() -> Devices:
    """What this process has; from the first call on, its GPUs' memory is taken as it is needed, not all at once.

    So several tasks may share a GPU, and a task does not fail because another one has been there first.
    """
    if keras.backend.backend() != "tensorflow":
        return Devices(())
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # other code of this process has used TensorFlow before
            log.warning("%s: its memory is taken all at once, for it was used before a network was built", gpu.name)
    return Devices(tuple(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus))


def scope() -> AbstractContextManager[Any]:
    """Where a network has to be built for all GPUs to share its batches; nothing where there is one GPU, or none.

    A `tf.distribute` strategy that the caller has opened is left as it is.
    """
    if len(find_devices().gpus) < 2:
        return nullcontext()
    import tensorflow as tf

    return nullcontext() if tf.distribute.has_strategy() else _mirrored().scope()


@cache
def _mirrored() -> Any:
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


def scope_of(model: keras.Model) -> AbstractContextManager[Any]:
    """Where the optimizer of a network has to be made: what `scope` was when the network was built."""
    strategy = getattr(model, "distribute_strategy", None)
    return nullcontext() if strategy is None else strategy.scope()


def replicas(model: keras.Model) -> int:
    """How many devices share each batch of the network."""
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def summed(value: Any, shares: int) -> Any:
    """The sum of `value` over the devices that share a batch, of which there are `shares`, within a step."""
    if shares == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
