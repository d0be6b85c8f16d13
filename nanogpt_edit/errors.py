"""The one exception that people are meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake a person can mend. The message is a whole sentence: what was found, where, and what to do.

    The command line prints it as one line and exits with status 2; nothing half-written is left behind.
    """
