"""What a compiled program's text says of its cost: cycles, kernels, collectives.

XLA writes `estimated_cycles` beside what it compiles for a TPU, once for each
instruction, however often that runs. Here a loop's body counts as often as its
condition lets it, and of a conditional's branches each counts by a given share. For a
GPU there is no such estimate: what is counted is kernels, each a launch.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = \S+ constant\((\d+)\)")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRUE_FALSE = re.compile(r"(?:true|false)_computation=%([\w.\-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
# Matrix products, as Triton's fusions and as calls of CUDA's libraries.
_PRODUCT = re.compile(r'"kind":"__triton\w*gemm|custom_call_target="__cu(?:blas|dnn)')
# What starts nothing on a device.
_NO_KERNEL = set(
    "parameter constant tuple get-tuple-element bitcast while conditional call "
    "after-all add-dependency partition-id replica-id opt-barrier async-start".split()
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    own_name: str
    result: str
    opcode: str
    operands: str
    text: str

    @property
    def kernel(self) -> str | None:
        """Which kind of kernel it starts on a GPU, if it does."""
        kind = self.opcode.removesuffix("-start")
        if self.opcode in _NO_KERNEL or kind.endswith(("-done", "-update")):
            return None
        if kind in COLLECTIVES:
            return "collectives"
        if kind == "copy":
            return "copies"
        if _PRODUCT.search(self.text) or kind in ("dot", "convolution"):
            return "products"
        return "fusions" if kind == "fusion" else "others"

    @property
    def reads_on_host(self) -> bool:
        """Whether the host waits to be told a branch, or whether a loop goes on."""
        is_open = self.opcode == "while" and not _KNOWN_TRIPS.search(self.text)
        return is_open or self.opcode == "conditional"

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one run."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def name(self) -> str:
        """Where in the traced program it came from."""
        found = _NAME.search(self.text)
        return found[1] if found else ""

    @property
    def result_bytes(self) -> int:
        return sum(
            _BYTES.get(dtype, int(re.sub(r"\D", "", dtype) or 8) // 8)
            * math.prod(map(int, filter(None, shape.split(","))))
            for dtype, shape in _SHAPE.findall(self.result)
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program on one device.

    Attributes:
        cycles: The compiler's estimate.
        cycles_by_layer: The same by part of the model.
        collectives: (kind, bytes) of each exchange to how often it runs.
        kernels: Kind of GPU kernel to how often one runs.
        kernel_bytes: Of their operands and results.
        host_reads: How often the host waits for a number of the device's.
    """

    cycles: float
    cycles_by_layer: dict[str, float]
    collectives: dict[tuple[str, int], float]
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    kernel_bytes: float = 0.0
    host_reads: float = 0.0


def read_cost(text: str, branch_shares: Sequence[float] = ()) -> Cost:
    """Adds up the text of a compiled program.

    Args:
        branch_shares: How often each branch of a conditional with as many is taken;
            other conditionals take each equally often.
    """
    computations, entry = _read(text)
    by_layer: dict[str, float] = defaultdict(float)
    collectives: dict[tuple[str, int], float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    kernel_bytes = host_reads = 0.0
    sizes = {one.own_name: one.result_bytes for c in computations.values() for one in c}
    for instruction, times in _runs(computations, entry, 1.0, branch_shares):
        kind = instruction.opcode.removesuffix("-start")
        if cycles := instruction.cycles * times:
            # What the compiler put in itself has no name, such as a copy.
            is_named = instruction.name and kind not in COLLECTIVES
            by_layer[layer_of(instruction.name) if is_named else kind] += cycles
        if kind in COLLECTIVES:
            collectives[kind, instruction.result_bytes] += times
        host_reads += times * instruction.reads_on_host
        if instruction.kernel:
            kernels[instruction.kernel] += times
            read = re.findall(r"%([\w.\-]+)", instruction.operands)
            moved = sum(sizes.get(name, 0) for name in read) + instruction.result_bytes
            kernel_bytes += times * moved
    largest = sorted(by_layer.items(), key=lambda item: -item[1])
    return Cost(
        sum(by_layer.values(), 0.0),
        dict(largest),
        dict(collectives),
        dict(sorted(kernels.items())),
        kernel_bytes,
        host_reads,
    )


def layer_of(name: str) -> str:
    """The part of the model that an instruction belongs to.

    Examples:
        >>> layer_of("jit(run)/while/body/transpose(jvp(Tiger))/encoder/block_3/dot")
        'Tiger/encoder/block, backward'
        >>> layer_of("jit(run)/while/body/add")  # of no module: the operation
        'add'
    """
    is_backward = "transpose(" in name
    parts = []
    for part in name.split("/")[1:-1]:
        part = part.rpartition("(")[2].rstrip(")")
        if part in _PLUMBING or part.startswith("branch_") or "->" in part:
            continue
        part = re.sub(r"_\d+(?=\.|$)", "", part)
        if part not in parts[-1:]:
            parts.append(part)
    layer = "/".join(parts[:5]) or name.rpartition("/")[2] or "other"
    return layer + ", backward" * is_backward


# Parts of a name that say how a program is built, not what of the model it is.
_PLUMBING = set(
    "while body cond closed_call checkpoint rematted_computation shard_map run scan "
    "main pjit custom_vjp_call core_call".split()
) | {""}


def _read(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = []
            if header[1]:
                entry = current
        elif current and (found := _INSTRUCTION.match(line)):
            own_name, result, opcode, operands = found.groups()
            instruction = Instruction(own_name, result, opcode, operands, line)
            computations[current].append(instruction)
    return computations, entry


def _runs(
    computations: dict[str, list[Instruction]],
    name: str,
    times: float,
    branch_shares: Sequence[float],
) -> Iterator[tuple[Instruction, float]]:
    """Every instruction that has a cost of its own, and how often it runs."""
    for instruction in computations.get(name, ()):
        yield instruction, times
        called: list[tuple[str, float]] = []
        if instruction.opcode == "conditional":
            found = _BRANCHES.search(instruction.text)
            branches = re.findall(r"%([\w.\-]+)", found[1]) if found else []
            # What is false is the first, as where branches are numbered.
            branches = branches or _TRUE_FALSE.findall(instruction.text)[::-1]
            shares = branch_shares
            if len(shares) != len(branches):
                shares = [1 / len(branches)] * len(branches)
            called = list(zip(branches, shares, strict=True))
        elif instruction.opcode == "while":
            condition = _CONDITION.search(instruction.text)
            known = _KNOWN_TRIPS.search(instruction.text)
            trips = _trips(computations.get(condition[1], ())) if condition else 1
            trips = int(known[1]) if known else trips
            called = [(c, trips) for c in _CALLED.findall(instruction.text)]
        elif instruction.opcode in ("call", "async-start"):
            called = [(c, 1) for c in _CALLED.findall(instruction.text)]
        for each, share in called:
            yield from _runs(computations, each, times * share, branch_shares)


def _trips(condition: Sequence[Instruction]) -> int:
    """How often a loop runs that counts from 0 up to a constant; once if unknown."""
    text = "\n".join(line.text for line in condition)
    constants = dict(_CONSTANT.findall(text))
    compared = re.search(r"compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT", text)
    return int(constants.get(compared[1], 1)) if compared else 1
