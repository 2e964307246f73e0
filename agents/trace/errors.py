"""What keeps a trace from starting."""

from __future__ import annotations


class TraceError(Exception):
    """The message names what is missing, and the fix."""
