"""How a scheduler is set up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerConfig:
    """`name` is what pods say in spec.schedulerName. An empty `algorithm` is the plug-in framework."""

    name: str = "default-scheduler"
    algorithm: str = ""
    """Name of an entry point of group kernelet.scheduler.algorithms."""
    disabled: tuple[str, ...] = ()
    """Names of plug-ins to leave out."""

    @property
    def lease(self) -> str:
        """The lease its instances compete for, in namespace kube-system."""
        return f"kernelet-scheduler-{self.name}"
