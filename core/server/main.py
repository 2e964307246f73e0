"""`kernelet apiserver`: certificates, store, registry and its faces, in one process on one event loop."""

from __future__ import annotations

import click


@click.command("apiserver")
@click.option(
    "--store",
    "store_url",
    default="",
    help="sqlite:///FILE or etcd://HOST:PORT[,...]; default: store.db in --data-dir.",
)
@click.option(
    "--data-dir",
    default="/var/lib/kernelet/default",
    show_default=True,
    help="Certificates, kubeconfigs and the embedded store.",
)
@click.option("--cluster", default="", help="Name in the kubeconfigs; default: the last part of --data-dir.")
@click.option("--bind", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", default=6443, show_default=True, help="HTTPS; 0 for any free port.")
@click.option("--grpc-port", default=6444, show_default=True, help="gRPC for client certificates.")
@click.option("--token-port", default=6445, show_default=True, help="gRPC for bearer tokens.")
@click.option(
    "--advertise-address", default="", help="Where nodes reach this server; default: --bind, or this host's address."
)
@click.option("--public-url", default="", help="HTTPS URL in admin.kubeconfig; default: the advertised address.")
@click.option("--tls-san", multiple=True, help="Another name or address for the server's certificate; several allowed.")
@click.option("--unix-socket", default="", help="Also serve gRPC on this socket.")
@click.option(
    "--listen-fd",
    "listen_fds",
    multiple=True,
    type=int,
    help="Also serve HTTPS on this bound TCP socket; several allowed.",
)
@click.option(
    "--service-cidr",
    default="10.96.0.0/16",
    show_default=True,
    help="Addresses of Services; for two families: IPV4,IPV6.",
)
@click.option("--node-port-range", default="30000-32767", show_default=True, help="Ports of NodePort Services.")
@click.option(
    "--default-toleration-seconds",
    default=30,
    show_default=True,
    help="How long a pod stays on a node that is not ready.",
)
@click.option("--event-ttl", default=3600.0, show_default=True, help="Seconds for which Events are kept.")
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG, INFO, WARNING or ERROR.")
def command(**flags: object) -> None:
    """Serve the Kubernetes API over HTTPS and gRPC."""
    from kernelet.core.server.process import Options, StartError, run

    try:
        run(Options.parse(flags))
    except StartError as error:
        raise click.ClickException(str(error)) from error
