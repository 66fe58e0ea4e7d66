"""The log of a server process: one line per event, as text or JSON, to standard error."""

from __future__ import annotations

import json
import logging
from typing import Literal


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        tail = "".join(f" {name}={value}" for name, value in fields.items())
        return super().format(record) + tail


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(log_format: Literal["text", "json"]) -> None:
    """Send kveik's loggers to standard error. For the server process only, never on import."""
    handler = logging.StreamHandler()
    text = _Text("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S")
    handler.setFormatter(_Json() if log_format == "json" else text)
    logger = logging.getLogger("kveik")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
