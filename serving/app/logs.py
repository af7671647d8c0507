"""What is logged in a replica, by us or by a library, as a line of Ray Serve's log of it.

Without, it goes to the standard error, of which Serve makes a line too: one that is no error to
whoever looks for errors, and that waits with others where Serve was told to write many at once.
"""

from __future__ import annotations

import logging

SERVE = "ray.serve"


class ToServe(logging.Handler):
    """Hands on what Serve's own loggers have not written already."""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(SERVE):
            logging.getLogger(SERVE).handle(record)


def log_to_serve() -> None:
    """From now on, in this process."""
    root = logging.getLogger()
    if not any(isinstance(handler, ToServe) for handler in root.handlers):
        root.addHandler(ToServe())
