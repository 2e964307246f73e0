"""What every component uses to speak with the API server, over gRPC.

Promises: one `Client` is one connection that comes back by itself; errors are the exceptions of `core.api.errors`;
an `Informer` holds a copy of a collection that survives API server crashes without missing a change; a `WorkQueue`
never gives one key to two workers; a `LeaderElector` never lets two leaders act at once; an `EventRecorder` never
makes its caller wait.

Depends on `core.api` and `proto` alone. Importing it loads no model, no HTTP client and no cryptography, so that the
command line starts fast. It never imports the store, the server or anything that runs on a node.
"""
