"""Who has been heard of lately, by the observer's own monotonic clock: the clocks of nodes do not matter. No I/O.

Silence counts only while the observer could have heard something. Where the observer itself was blind (the API server
was away, the process was stopped) all clocks start anew. Where every node falls silent at once, it is the observer or
the API that is cut off, and not the nodes: that is full disruption, in which nobody is given up.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """`silent`: nodes to be told unreachable. `disrupted`: all nodes are silent, evict nothing. `check_in`: seconds
    until the next verdict may differ."""

    silent: frozenset[str]
    disrupted: bool
    check_in: float


class Heartbeats:
    """`grace` seconds of silence make a node silent; nodes are expected to renew each `period` seconds."""

    def __init__(self, grace: float, period: float = 1.0) -> None:
        self._grace = grace
        self._period = period
        self._heard: dict[str, float] = {}
        self._renewals: dict[str, str] = {}
        self._alive: set[str] = set()
        self._disrupted = False

    def track(self, node: str, now: float) -> None:
        """A node that is new to the observer has its full grace."""
        self._heard.setdefault(node, now)

    def forget(self, node: str) -> None:
        self._heard.pop(node, None)
        self._renewals.pop(node, None)
        self._alive.discard(node)

    def alive(self, node: str) -> bool:
        """Whether the node has renewed since the observer began to listen; what was there before proves nothing."""
        return node in self._alive

    def renewed(self, node: str, renewal: str, now: float) -> None:
        """A node's lease was seen; only a renewal that differs from the last one is a sign of life."""
        known = self._renewals.get(node)
        self._renewals[node] = renewal
        if known not in (None, renewal):
            self.spoke(node, now)

    def spoke(self, node: str, now: float) -> None:
        """A sign of life."""
        self._alive.add(node)
        self._heard[node] = now

    def restart(self, now: float) -> None:
        """The observer was blind: what it did not hear until now says nothing."""
        self._heard = dict.fromkeys(self._heard, now)
        self._alive.clear()

    def judge(self, now: float) -> Verdict:
        """Holds back while nobody at all was heard of within two periods: the others are about to be silent, too."""
        if not self._heard:
            return Verdict(frozenset(), False, self._grace)
        silent = frozenset(node for node, heard in self._heard.items() if now - heard >= self._grace)
        newest = max(self._heard.values())
        disrupted = len(silent) == len(self._heard)
        if self._disrupted and not disrupted:
            # The first node is back: the others have their grace to follow.
            back = self._alive - silent
            self.restart(now)
            self._alive |= back
            silent = frozenset()
        self._disrupted = disrupted
        if silent and not disrupted and now - newest > min(2 * self._period, self._grace):
            return Verdict(frozenset(), False, max(newest + self._grace - now, 0.01))
        waits = [heard + self._grace - now for node, heard in self._heard.items() if node not in silent]
        return Verdict(silent, disrupted, max(min(waits, default=self._grace), 0.01))
