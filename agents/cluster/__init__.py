"""Whole clusters: on this host (`kernelet up`, `join`, `reset`), or many nodes on one machine (`kernelet cluster`).

Promises: what it starts it can stop, every process has a pid file, and `reset` removes all of it with everything dead.
Depends on core.security for certificates and on iproute2. Never talks to the store.
"""
