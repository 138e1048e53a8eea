"""What a fault is, and the rows and the table of what its tries came to."""

import dataclasses
import datetime
import json
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_NOTES_PER_ROW = 5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one try came to.

    Attributes:
        lost: Work that was whole and is gone, or damage that was taken for whole.
        wrong: Wrong answers, tracebacks, hangs: whatever else should not be.
        note: What happened, where something did.
        count: Tries that this outcome stands for, where they are run by the batch.
        answers: A server's answers that were compared with what is right.
    """

    lost: int = 0
    wrong: int = 0
    note: str = ""
    count: int = 1
    answers: int = 0


FINE = Outcome()


@dataclasses.dataclass(frozen=True)
class Fault:
    """One line of the table.

    Attributes:
        name: As the table names it; ``kind: what``.
        asked: Tries of the whole campaign.
        attempt: Makes one try in a folder that is the fault's own and outlives its
            tries; the number decides everything that is random in it.
        quick: Tries among the fast tests.
        tries_per_row: Tries between two rows, where one takes no time to speak of.
        seconds: A try that takes longer counts as a hang.
        gigabytes: Address space that the tries may take; None for any.
        unavailable: Says why this machine can't make the fault; "" if it can.
    """

    name: str
    asked: int
    attempt: Callable[[int, Path], Outcome]
    quick: int = 0
    tries_per_row: int = 1
    seconds: float = 1800.0
    gigabytes: float | None = None
    unavailable: Callable[[], str] = lambda: ""

    def folder(self, under: Path) -> Path:
        """The fault's own folder."""
        return under / "".join(c if c.isalnum() else "_" for c in self.name)

    def random(self, number: int) -> random.Random:
        """What a try draws from."""
        return random.Random(f"{self.name} {number}")


def try_once(fault: Fault, number: int, folder: Path) -> Outcome:
    """One try; what it raises counts as wrong."""
    try:
        return fault.attempt(number, folder)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = frames[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        text = " ".join(str(error).split())[:300]
        note = f"try {number}: {type(error).__name__} at {where}: {text}"
        return Outcome(wrong=1, note=note)


@dataclasses.dataclass
class Total:
    """The sum of a fault's rows."""

    tries: int = 0
    lost: int = 0
    wrong: int = 0
    seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    answers: int = 0

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Counts an outcome."""
        self.tries += outcome.count
        self.lost += outcome.lost
        self.wrong += outcome.wrong
        self.answers += outcome.answers
        self.seconds += seconds
        if outcome.note and len(self.notes) < _NOTES_PER_ROW:
            self.notes.append(outcome.note)


def append_row(path: Path, fault: str, first: int, total: Total) -> None:
    """Adds what the tries from `first` on came to, as one line."""
    row = {
        "fault": fault,
        "first": first,
        **dataclasses.asdict(total),
        "seconds": round(total.seconds, 3),
        "date": datetime.date.today().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> Iterator[dict]:
    """All whole rows; the last is cut short where a campaign was killed."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def sum_rows(path: Path) -> dict[str, Total]:
    """The totals by fault."""
    totals: dict[str, Total] = {}
    for row in read_rows(path):
        total = totals.setdefault(row["fault"], Total())
        for field in dataclasses.fields(Total):
            if field.name in row:  # those of before count no answers
                value = getattr(total, field.name) + row[field.name]
                setattr(total, field.name, value)
    return totals


def next_try(path: Path, fault: str) -> int:
    """The number after the last one that has a row."""
    ends = [r["first"] + r["tries"] for r in read_rows(path) if r["fault"] == fault]
    return max(ends, default=0)


def format_table(faults: list[Fault], rows: Path) -> str:
    """Markdown: a line a fault; those that no row speaks of say so."""
    totals = sum_rows(rows)
    lines = [
        "| fault | asked | tries | lost | wrong | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for fault in faults:
        total = totals.get(fault.name)
        if total is None:
            cells = ["0", "–", "–", "–"]
        else:
            cells = [
                f"{total.tries:,}",
                f"{total.lost:,}",
                f"{total.wrong:,}",
                f"{total.seconds:,.0f}",
            ]
        name = fault.name
        if total and total.answers:
            name += f" ({total.answers:,} answers)"
        lines.append(f"| {name} | {fault.asked:,} | {' | '.join(cells)} |")
    dates = sorted({row["date"] for row in read_rows(rows)})
    if dates:
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines += ["", f"Printed by `make faults` from its rows of {span}."]
    return "\n".join(lines)
