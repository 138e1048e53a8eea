"""What the server logs: a line per event, for people or as JSON."""

import contextvars
import datetime
import json
import logging
import sys

from tiger_jax.progress import printable

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


class Formatter(logging.Formatter):
    """Times in UTC, the request's id where there is one, no control characters."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._is_json = kind == "json"

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": REQUEST_ID.get(),
            "message": record.getMessage(),
        }
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._is_json:
            return json.dumps(fields | ({"exception": trace} if trace else {}))
        line = " ".join(filter(None, fields.values())).replace("\n", "\\n")
        return printable(f"{line}\n{trace}" if trace else line)


def start_logging(kind: str) -> None:
    """Logs to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(kind))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tiger_jax").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_is_no_noise)


def _is_no_noise(record: logging.LogRecord) -> bool:
    """What clients do wrong is answered to them, and counted, not logged."""
    return not record.getMessage().startswith(
        ("Invalid HTTP request", "Unsupported upgrade", "No supported WebSocket")
    )
