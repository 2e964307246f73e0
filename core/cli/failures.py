"""Errors as one line on stderr: `error: <object>: <cause>; <fix>`, exit status 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from kernelet.core.api import errors
from kernelet.core.api.errors import ApiError


class CliError(click.ClickException):
    """An expected failure; the message is shown as it is, on one line."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", file=file, err=file is None)


def explain(error: ApiError) -> str:
    """The server's words and, where they name no way out, what to do."""
    fix = _fix(error)
    return f"{error.message}; {fix}" if fix else error.message


def _fix(error: ApiError) -> str:
    if isinstance(error, errors.NotFound):
        if error.name and error.resource:
            return f"`kernelet get {error.resource} -A` shows what there is"
        return "`kernelet api-resources` lists the kinds of objects"
    if isinstance(error, errors.AlreadyExists):
        return "change it with `kernelet apply`, or delete it first"
    if isinstance(error, errors.Unauthorized):
        return "use a kubeconfig of this cluster: --kubeconfig or KUBECONFIG"
    if isinstance(error, errors.Forbidden):
        return "ask as a user who may do this: --context"
    if isinstance(error, errors.Conflict):
        return "read the object again and retry"
    return ""


def raise_all(failures: Sequence[CliError]) -> None:
    """Shows all but the last error and raises that one; with none, returns."""
    for failure in failures[:-1]:
        failure.show()
    if failures:
        raise failures[-1]


@contextmanager
def reported(where: str = "") -> Iterator[None]:
    """Turns API and kubeconfig errors into CliErrors, naming `where` they arose (a file) if given."""
    from kernelet.core.security.kubeconfig import KubeconfigError

    prefix = f"{where}: " if where else ""
    try:
        yield
    except ApiError as error:
        raise CliError(prefix + explain(error)) from error
    except KubeconfigError as error:
        raise CliError(prefix + str(error)) from error
