"""Back-off of restarts and pulls, as Kubernetes': 10 s doubling to 300 s, forgotten after 10 quiet minutes."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 10.0
LONGEST_DELAY = 300.0
RESET_AFTER = 600.0


@dataclass(slots=True)
class Backoff:
    """Back-off of one thing. Times are seconds on the caller's clock."""

    first_is_free: bool = True
    """The first failure is retried at once (restarts); else after the first delay (pulls)."""
    first: float = FIRST_DELAY
    longest: float = LONGEST_DELAY
    _delay: float = -1.0
    _until: float = 0.0

    def failed(self, now: float, ran_for: float = 0.0) -> float:
        """Notes a failure; returns the delay until the next try. A run of ten minutes forgets what was before."""
        if ran_for >= RESET_AFTER or self._delay < 0:
            self._delay = 0.0 if self.first_is_free else self.first
        else:
            self._delay = min(max(self._delay * 2, self.first), self.longest)
        self._until = now + self._delay
        return self._delay

    def succeeded(self) -> None:
        self._delay = -1.0
        self._until = 0.0

    def remaining(self, now: float) -> float:
        """Seconds until the next try may be made; 0 when it may be made now."""
        return max(0.0, self._until - now)

    @property
    def delay(self) -> float:
        """The delay in force, seconds."""
        return max(self._delay, 0.0)
