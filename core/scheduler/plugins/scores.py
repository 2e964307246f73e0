"""What several plug-ins do with scores."""

from __future__ import annotations

from kernelet.core.scheduler.framework import HIGHEST


def scale_to_highest(scores: dict[str, float], *, inverted: bool = False) -> None:
    """In place, so that the largest becomes HIGHEST (or, inverted, 0, and 0 becomes HIGHEST)."""
    largest = max(scores.values(), default=0)
    for name, score in scores.items():
        scaled = score * HIGHEST / largest if largest else 0.0
        scores[name] = HIGHEST - scaled if inverted else scaled
