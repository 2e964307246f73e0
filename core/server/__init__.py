"""The API server: Kubernetes' semantics over a Store, and two thin faces over one registry.

Promises: every write is one compare-and-swap on the store; a write's result is visible to the next read; a watch
resumed from a revision equals the history from there; an address or node port is never handed out twice, however
many API servers share the store. `registry.py` holds the operations, `grpc.py` and `rest/` translate and hold no
semantics of their own.
Depends on core.api, core.store, core.security, core.client.status and proto. Never imports dataplane or agents.
"""
