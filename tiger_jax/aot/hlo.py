"""What a compiled program's text says of its cost: cycles by layer, collectives.

XLA writes `estimated_cycles` beside what it compiles for a TPU, once for each
instruction, however often that runs. Here a loop's body counts as often as its
condition lets it, and of a conditional's branches each counts by a given share.
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
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONDITION = re.compile(r"condition=%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = \S+ constant\((\d+)\)")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRUE_FALSE = re.compile(r"(?:true|false)_computation=%([\w.\-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    opcode: str
    result: str
    text: str

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
    """

    cycles: float
    cycles_by_layer: dict[str, float]
    collectives: dict[tuple[str, int], float]


def read_cost(text: str, branch_shares: Sequence[float] = ()) -> Cost:
    """Adds up the text of a compiled program.

    Args:
        branch_shares: How often each branch of a conditional with as many is taken;
            other conditionals take each equally often.
    """
    computations, entry = _read(text)
    by_layer: dict[str, float] = defaultdict(float)
    collectives: dict[tuple[str, int], float] = defaultdict(float)
    for instruction, times in _runs(computations, entry, 1.0, branch_shares):
        kind = instruction.opcode.removesuffix("-start")
        if cycles := instruction.cycles * times:
            # What the compiler put in itself has no name, such as a copy.
            is_named = instruction.name and kind not in COLLECTIVES
            by_layer[layer_of(instruction.name) if is_named else kind] += cycles
        if kind in COLLECTIVES:
            collectives[kind, instruction.result_bytes] += times
    largest = sorted(by_layer.items(), key=lambda item: -item[1])
    return Cost(sum(by_layer.values(), 0.0), dict(largest), dict(collectives))


def layer_of(name: str) -> str:
    """The part of the model that an instruction belongs to.

    Example:
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
            computations[current].append(Instruction(found[2], found[1], line))
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
            trips = _trips(computations.get(condition[1], ())) if condition else 1
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
