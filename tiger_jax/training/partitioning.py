"""Where arrays live: one mesh, logical axis rules, and the hosts that share them.

A model names the axes of its parameters (``"embed"``, ``"heads"``, …); the rules
here say which of these names is split over which axis of the device mesh. One
device is the 1 × 1 mesh of the same code.

Multi-host runs call `initialize_distributed` before anything touches a device.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from tiger_jax import processes
from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.workdir.provenance import note_devices

PyTree = Any

# Logical name -> mesh axis. An axis whose size the mesh axis doesn't divide is
# replicated, and `Partitioner.shardings_of` says so.
_SPLIT = ("vocab", "heads", "mlp", "joined_kv")
_WHOLE = (
    *("embed", "embed_in", "embed_out", "position", "kv", "length", "items"),
    *("levels", "relpos_buckets", "layers"),
)
LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", "data"),
    *((name, "model") for name in _SPLIT),
    *((name, None) for name in _WHOLE),
)


@config("partitioning")
class MeshConfig:
    """The shape of the device mesh.

    Attributes:
        data: Devices that split the batch; -1 takes all that `model` leaves.
        model: Devices that split each large parameter.
    """

    data: int = -1
    model: int = 1


def initialize_distributed() -> None:
    """Joins the other processes of this run; does nothing in a single-process run.

    Must be called before any device is touched; a second call does nothing. A run
    has several processes if one of these is set in the environment:

    *   ``JAX_COORDINATOR_ADDRESS=host:port`` of process 0, with
        ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``: any machines;
    *   ``TIGER_DISTRIBUTED=1``: JAX finds the others itself, as it can on TPU pods
        and under Slurm, Open MPI and Kubernetes.

    Raises:
        InputError: A variable is not a number, or the processes didn't find each
            other.
    """
    if not processes.are_several() or jax.distributed.is_initialized():
        return
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        # The CPU's collectives over several processes need a transport.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=processes.SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"the processes of this run did not find each other ({said}): check "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which "
            "every process needs (docs/gpu_clusters.md, docs/tpu_pods.md)"
        ) from error


def use_cpu_cores() -> None:
    """Makes a device of each CPU core, before any device is touched.

    Two cores that compute a microbatch each on one thread do more than both together
    on one microbatch: the small operations between the matrix products don't scale,
    and nothing is waited for in between. Whole powers of two, so that usual batches
    divide, and at most 8.

    Does nothing where `JAX_NUM_CPU_DEVICES` or the XLA flag for it say another
    number (1 switches it off), or where there are several processes. On an accelerator
    it has no effect.
    """
    is_set = (
        jax.config.values["jax_num_cpu_devices"] > 0
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or jax.distributed.is_initialized()
    )
    if not is_set:
        cores = min(_usable_cores(), 8)
        # Called from a program that has used JAX before: its devices are what it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", 2 ** (cores.bit_length() - 1))


def check_hosts_agree(text: str, what: str = "config") -> None:
    """Compares a text's hash over all processes; InputError names who differs."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(text.encode()).digest()
    mine = np.frombuffer(digest, np.int32)
    all_hashes = multihost_utils.process_allgather(mine)  # [processes, 8]
    differing = np.flatnonzero((all_hashes != all_hashes[:1]).any(axis=1))
    if len(differing):
        raise InputError(
            f"process {', '.join(map(str, differing))} has another {what} than "
            "process 0: start every process with the same flags, gin files and code"
        )


def from_process_0(values: Mapping[str, float]) -> dict[str, float]:
    """Process 0's values on every process, so that all take the same decision."""
    if jax.process_count() == 1:
        return dict(values)
    names = sorted(values)
    mine = np.array([values[name] for name in names], np.float64).view(np.int32)
    agreed = np.asarray(multihost_utils.broadcast_one_to_all(mine)).view(np.float64)
    return {name: float(value) for name, value in zip(names, agreed, strict=True)}


class Partitioner:
    """A mesh of axes ``data`` and ``model``, and the rules that lay arrays on it."""

    def __init__(
        self,
        config: MeshConfig | None = None,
        *,
        devices: list[jax.Device] | None = None,
    ) -> None:
        """Builds the mesh of all devices, or those given; InputError if one is left."""
        config = config or MeshConfig()
        devices = list(devices if devices is not None else jax.devices())
        note_devices(devices)
        count = len(devices)
        data = count // config.model if config.data == -1 else config.data
        if config.model < 1 or data < 1 or data * config.model != count:
            raise InputError(
                f"MeshConfig(data={config.data}, model={config.model}) does not "
                f"cover {count} devices: data × model must be {count}, or data -1 "
                "with a model that divides it"
            )
        # Auto axes: sharding is propagated by the compiler from the arguments'.
        self.mesh = jax.make_mesh(
            (data, config.model),
            ("data", "model"),
            devices=devices,
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
        )

    @property
    def num_data_shards(self) -> int:
        return self.mesh.shape["data"]

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Makes mesh and rules known to a model that is traced inside."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
            yield

    def shardings_of(self, boxed: PyTree) -> PyTree:
        """The shardings of a model's parameters, from their logical axis names.

        Args:
            boxed: Parameters (arrays or their shapes) as `init` returns them, each
                in the box with its axis names; one without is replicated.

        Raises:
            InputError: An axis has a name that no rule knows.
        """
        known = dict(LOGICAL_AXIS_RULES)
        notes = []

        def sharding_of(path: Any, leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.meta.AxisMetadata):
                return self.replicated
            names = leaf.get_partition_spec()
            shape = leaf.unbox().shape
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            axes, used = [], set()
            for name, size in zip(names, shape, strict=True):
                if name is not None and name not in known:
                    raise InputError(
                        f"parameter {where} names an axis {name!r} for which there is "
                        f"no rule: known are {', '.join(sorted(known))}"
                    )
                axis = known.get(name)
                if axis in used:  # a mesh axis can split only one of an array's
                    axis = None
                if axis is not None and size % self.mesh.shape[axis]:
                    notes.append(f"{where} ({name} of {size})")
                    axis = None
                axes.append(axis)
                used.add(axis)
            return NamedSharding(self.mesh, PartitionSpec(*axes))

        is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
        shardings = jax.tree_util.tree_map_with_path(sharding_of, boxed, is_leaf=is_box)
        if notes:
            say(
                f"Held whole on each of {self.mesh.shape['model']} model devices, "
                f"since the axis does not divide: {'; '.join(notes)}"
            )
        return shardings

    def optimizer_shardings(
        self, optimizer: optax.GradientTransformation, params: PyTree, shardings: PyTree
    ) -> PyTree:
        """Lays each optimizer statistic as its parameter; the rest replicated.

        A statistic of another shape than its parameter (the rows and columns of
        Adafactor) is small and is replicated.
        """
        state = jax.eval_shape(optimizer.init, params)
        return optax.tree_utils.tree_map_params(
            optimizer,
            lambda leaf, param, sharding: (
                sharding if leaf.shape == param.shape else self.replicated
            ),
            state,
            params,
            shardings,
            transform_non_params=lambda leaf: self.replicated,
        )

    def put(self, tree: PyTree, *, batch_axis: int | None, is_global: bool) -> PyTree:
        """Moves host arrays to the devices.

        Args:
            batch_axis: The axis split over ``data``; None holds all whole.
            is_global: Every process passes the whole array; otherwise each passes
                its own share along `batch_axis`.
        """
        spec = PartitionSpec()
        if batch_axis is not None:
            spec = PartitionSpec(*[None] * batch_axis, "data")
        sharding = NamedSharding(self.mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        if is_global:
            return jax.tree.map(
                lambda x: jax.make_array_from_callback(
                    x.shape, sharding, x.__getitem__
                ),
                tree,
            )
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), tree
        )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    try:
        return None if text is None else int(text)
    except ValueError as error:
        raise InputError(f"{variable}={text!r} is not a whole number") from error
