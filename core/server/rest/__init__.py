"""The HTTPS face of the API server: Kubernetes' REST form of the registry's calls.

Promises: no semantics of its own beyond HTTP (paths, media types, Table, chunked watches, WebSockets); every failure
is a meta/v1 Status; a client that goes away ends its watch at once; a write that has begun is finished. May depend on
core.api, core.security and the registry's interface. Never touches the Store.
"""
