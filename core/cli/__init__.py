"""The `kernelet` command.

Promises: `kernelet get` sends its first request within 150 ms of being started; tables are those a kubectl user knows;
an error is one line on stderr naming the object, the cause and the fix, with exit status 1 (2: wrong command line).
May depend on: core.api, core.client, core.security, proto. Commands of other packages are found by the entry-point
group `kernelet.commands`, and loaded only when they are asked for.
Never: imports models, servers or anything that runs on a node; keeps state of its own.
"""
