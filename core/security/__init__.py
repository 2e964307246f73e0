"""Who may talk to the cluster: certificates, tokens, kubeconfig files, users and what they may do.

Promises: every file holding a secret is 0600 and written atomically; making what exists already changes nothing; an
error names the file or the certificate, the cause and the fix. May depend on core.api and, for the shape of a client's
configuration, on core.client.config. Never opens a listening socket and never logs a secret.
"""
