"""The pod network of one node: namespace wiring, addresses, the way out.

Promises: `attach` and `detach` are idempotent, no address is handed out twice, and the kernel is the only record, so
that a restarted agent knows what it needs. Depends on ext.netns, pyroute2 and libnftables. Never talks to the API
server.
"""

from .addresses import AddressesExhausted, AddressPool
from .network import DEFAULT_MTU, PodNet, PodNetConfig, PodNetworkError

__all__ = ["DEFAULT_MTU", "AddressPool", "AddressesExhausted", "PodNet", "PodNetConfig", "PodNetworkError"]
