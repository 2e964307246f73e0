"""Names, labels and other strings with a syntax, checked as Kubernetes checks them (apimachinery util/validation).

Each `..._problem` function returns what is wrong with a text, in Kubernetes' words, or "".
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Callable
from functools import lru_cache

from .causes import invalid_value, required
from .errors import Cause
from .kinds import Kind

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_MAX_GENERATED = 63 - 5

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"

_label = re.compile(_LABEL)
_subdomain = re.compile(_SUBDOMAIN)
_label_1035 = re.compile(_LABEL_1035)
_qualified = re.compile(_QUALIFIED)
_label_value = re.compile(_LABEL_VALUE)
_config_key = re.compile(_CONFIG_KEY)
_port_name = re.compile("[-a-z0-9]+")
_env_name = re.compile("[ -<>-~]+")


def random_suffix() -> str:
    """Five letters for a generated name; without vowels, so that no words arise."""
    return "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))


def generate_name(base: str) -> str:
    """A name of metadata.generateName: the base, cut to fit, and a random suffix."""
    return base[:_MAX_GENERATED] + random_suffix()


def dns_label_problem(text: str) -> str:
    if len(text) > 63:
        return "must be no more than 63 bytes"
    if not _label.fullmatch(text):
        return (
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and "
            "end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
            f"'{_LABEL}')"
        )
    return ""


@lru_cache(maxsize=4096)
def dns_subdomain_problem(text: str) -> str:
    if len(text) > 253:
        return "must be no more than 253 bytes"
    if not _subdomain.fullmatch(text):
        return (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
            f"'{_SUBDOMAIN}')"
        )
    return ""


def dns_1035_problem(text: str) -> str:
    if len(text) > 63:
        return "must be no more than 63 bytes"
    if not _label_1035.fullmatch(text):
        return (
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
            "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
            f"validation is '{_LABEL_1035}')"
        )
    return ""


@lru_cache(maxsize=4096)
def qualified_name_problem(text: str) -> str:
    """A label or annotation key: `name` or `prefix/name`."""
    prefix, slash, name = text.rpartition("/")
    if slash:
        if not prefix:
            return "prefix part must be non-empty"
        if problem := dns_subdomain_problem(prefix):
            return f"prefix part {problem}"
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 bytes"
    if not _qualified.fullmatch(name):
        return (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            f"'{_QUALIFIED}')"
        )
    return ""


@lru_cache(maxsize=4096)
def label_value_problem(text: str) -> str:
    if len(text) > 63:
        return "must be no more than 63 bytes"
    if not _label_value.fullmatch(text):
        return (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for "
            f"validation is '{_LABEL_VALUE}')"
        )
    return ""


def config_key_problem(text: str) -> str:
    """A key of a ConfigMap or a Secret, which becomes a file name."""
    if len(text) > 253:
        return "must be no more than 253 bytes"
    if not _config_key.fullmatch(text):
        return (
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
            f"'KEY_NAME',  or 'key-name', regex used for validation is '{_CONFIG_KEY}')"
        )
    if text in (".", "..") or text.startswith(".."):
        return "must not be '.' and must not start with '..'"
    return ""


def env_name_problem(text: str) -> str:
    if not _env_name.fullmatch(text):
        return "a valid environment variable name must consist only of printable ASCII characters other than '='"
    return ""


def port_name_problem(text: str) -> str:
    """The name of a container's port: an IANA service name (RFC 6335)."""
    if len(text) > 15:
        return "must be no more than 15 characters"
    if not _port_name.fullmatch(text):
        return "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    if not any(letter.isalpha() for letter in text):
        return "must contain at least one letter (a-z)"
    if "--" in text:
        return "must not contain consecutive hyphens"
    if text.startswith("-") or text.endswith("-"):
        return "must not begin or end with a hyphen"
    return ""


def port_number_problem(port: int) -> str:
    return "" if 1 <= port <= 65535 else "must be between 1 and 65535, inclusive"


def ip_problem(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    return "" if "%" not in text else "must be a valid IP address without a zone"


_NAME_RULES: dict[tuple[str, str], Callable[[str], str]] = {
    ("", "Namespace"): dns_label_problem,
    ("", "Service"): dns_1035_problem,
}


def name_problem(kind: Kind, name: str) -> str:
    return _NAME_RULES.get((kind.group, kind.kind), dns_subdomain_problem)(name)


def check_name(kind: Kind, name: str) -> Cause | None:
    """What is wrong with an object's name, or None."""
    if not name:
        return required("metadata.name", "name or generateName is required")
    problem = name_problem(kind, name)
    return invalid_value("metadata.name", name, problem) if problem else None
