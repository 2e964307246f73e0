/* Numbers that C and Python agree on (ext/bpf/__init__.py). */
#pragma once

/* service_key.scope */
#define SCOPE_ADDRESS 0
#define SCOPE_NODE_PORT 1 /* any loopback address; the key's address is zero */

/* service.flags */
#define FLAG_GONE 1       /* as if the key were not there; the agent is about to delete it */
#define FLAG_CONSISTENT 2 /* the slot follows from who the client is */
#define FLAG_PACKETS 4    /* not every client may use it: left to packets, which show who sent them */

/* A lookup that meets a change of its service begins again; after so many it refuses. Each costs the verifier. */
#define TRIES 3
