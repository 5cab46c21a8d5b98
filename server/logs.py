"""What the server's log looks like: text for people or one JSON object a line, each with the request that it is about.

A request is a call or a stream. Its id is the caller's own (`x-request-id`) or made here; it stands in every line that
it brings about, in the trailing metadata of a call that an error ended (`narrows-request`), and in the text of an error
whose cause strangers are not told.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum

REQUEST_KEY = "narrows-request"
"""Trailing metadata of a call that an error ended."""
SENT_KEY = "x-request-id"
"""Metadata of a call that brings an id of its own."""

request: ContextVar[str] = ContextVar("request", default="")
"""Id of the call that is being served; set before any handler runs."""

_FIELDS = "fields"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


def new_request(sent: object) -> str:
    """The id that a caller sent, where it is one that cannot confuse a log; else one of our own."""
    return sent if isinstance(sent, str) and _SANE.fullmatch(sent) else secrets.token_hex(8)


def fields(**values: object) -> dict[str, object]:
    """Facts of a line, for `extra`: keys of their own in JSON, `key=value` behind the text."""
    return {_FIELDS: values}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        return f"{super().formatMessage(record)} {facts}".rstrip()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(form: LogFormat, level: int) -> None:
    """Write this process's log to stderr in this form; what was configured before goes."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form is LogFormat.JSON else _Text())
    handler.addFilter(_note_request)  # in the thread and the task that say it: both know which request it is
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _note_request(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request"):
        record.request = request.get()
    return True


def _facts(record: logging.LogRecord) -> dict[str, object]:
    known = getattr(record, "request", "")
    return {**({"request": known} if known else {}), **getattr(record, _FIELDS, {})}
