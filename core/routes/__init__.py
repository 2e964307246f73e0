"""Routes: what every node's kernel must hold, and who has acknowledged what.

Promises: a delta is computed once for all nodes and holds only what changed; an acknowledgement is counted only for
the generation and version that a node says its kernel holds; waiting resolves by acknowledgement, never by time,
except at its deadline. Depends on core.client and the routes protocol. Never programs a kernel.
"""
