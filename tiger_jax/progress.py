"""What a run says while it works: plain lines, and bars on a terminal."""

import importlib.util
import io
import json
import os
import re
import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
_SLOW_START = 2.0
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Shows what a terminal would obey: a shop's texts may hold anything.

    Examples:
        >>> printable("a \x1b[2J b")
        'a \\x1b[2J b'
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str) -> None:
    """Prints a line at once, above any bar that is being drawn.

    What the output's encoding lacks is written as its number, as in \\xe9.
    """
    if sys.stdout is None:  # closed by who started the process
        return
    text = _writable(text)
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stdout)
    else:
        print(text)
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Prints a value as JSON, in ASCII where its texts can't be written as they are."""
    text = json.dumps(value, ensure_ascii=False)
    say(text if _writable(text) == text else json.dumps(value))


def _writable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Has the process go on in silence where nobody reads its output any more.

    As with `| head`: what a run makes is kept on disk. For a program's entrance.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Not what tests and notebooks put in their place.
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        output = io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False))
        text = io.TextIOWrapper(
            output,
            stream.encoding,
            stream.errors,
            # Unbuffered (PYTHONUNBUFFERED), as containers are: by the line at least.
            line_buffering=stream.line_buffering or stream.write_through,
            write_through=stream.write_through,
        )
        setattr(sys, name, text)


class Progress:
    """Shows how far a long piece of work has come.

    On a terminal: one bar with rate and time left. Elsewhere (a log file, a
    pipe): a plain line every ten seconds and one at the end, so that logs stay
    readable. Work that ends within ten seconds leaves a single line.

    Examples:
        >>> with Progress(2, "Embedding items", unit="item") as bar:
        ...     bar.advance(2)  # doctest: +ELLIPSIS
        Embedding items: 2/2 items, ...
    """

    def __init__(
        self, total: int, description: str, *, unit: str = "step", start: int = 0
    ) -> None:
        """Starts at `start` of `total`, as a resumed stage does."""
        self.total, self.description, self.unit = total, description, unit
        self.done = self._start = start
        self._is_first, self._printed = True, -1
        self._values: dict[str, float | str] = {}
        self._began = self._started = self._last_line = time.monotonic()
        self._bar = None
        # tqdm is not part of the core: a machine without it gets plain lines.
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=description,
                unit=unit,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._printed != self.done:
            self._print_line()

    def advance(self, n: int = 1, **values: float | str) -> None:
        """Counts `n` more units done; `values` are shown beside the rate."""
        self.done += n
        self._values.update(values)
        now = time.monotonic()
        if self._is_first and now - self._started > _SLOW_START:
            # Compilation and the like, which tells nothing about the rest.
            self._start, self._started = self.done, now
            if self._bar is not None:
                self._bar.n = self._bar.initial = self._bar.last_print_n = self.done
                self._bar.unpause()
        elif self._bar is not None:
            if values:
                self._bar.set_postfix(
                    {k: _short(v) for k, v in self._values.items()}, refresh=False
                )
            self._bar.update(n)
        if self._bar is None and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()
        self._is_first = False

    def _print_line(self) -> None:
        now = time.monotonic()
        self._last_line, self._printed = now, self.done
        seconds = max(now - self._started, 1e-9)
        rate = (self.done - self._start) / seconds
        parts = [f"{self.description}: {self.done:,}/{self.total:,} {self.unit}s"]
        if rate > 0:
            is_fast = rate >= 0.5
            text = (
                f"{rate:,.1f} {self.unit}s/s" if is_fast else f"{1 / rate:,.1f} s each"
            )
            parts.append(text)
        if self.done >= self.total:
            parts.append(_clock(now - self._began))
        elif rate > 0:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        parts += [f"{name} {_short(value)}" for name, value in self._values.items()]
        say(", ".join(parts))


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
