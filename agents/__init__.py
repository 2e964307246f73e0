"""The daemons of one node, and what runs whole clusters on one machine.

Promises: what an agent has put into the kernel or the container runtime goes on when the agent is gone, and is adopted
by the next one. Depends on dataplane, ext and core.client. Never reads the store.
"""
