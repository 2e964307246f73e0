"""Content negotiation: from an Accept header to one of the forms this server can answer in (RFC 9110, KEP-555)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import lru_cache

from kernelet.core.api.errors import ApiError

DISCOVERY_GROUP = "apidiscovery.k8s.io"


class NotAcceptable(ApiError):
    """No form named by Accept can be answered."""

    code = 406
    reason = "NotAcceptable"


class Form(enum.Enum):
    """What an answer holds."""

    PLAIN = "plain"
    TABLE = "Table"
    PARTIAL = "PartialObjectMetadata"
    PARTIAL_LIST = "PartialObjectMetadataList"
    DISCOVERY_V2 = "v2"
    DISCOVERY_V2BETA1 = "v2beta1"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The chosen form; `yaml` instead of JSON."""

    form: Form = Form.PLAIN
    yaml: bool = False


@dataclass(frozen=True, slots=True)
class _Range:
    media: str
    quality: float = 1.0
    parameters: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=256)
def negotiate(accept: str, forms: frozenset[Form] = frozenset((Form.PLAIN,))) -> Accepted:
    """The first range of `accept` that can be answered in one of `forms`, by quality, then by order.

    An empty header accepts anything. Raises NotAcceptable naming what could be asked for.
    """
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    for item in sorted(ranges or [_Range("*/*")], key=lambda one: -one.quality):
        chosen = _match(item, forms)
        if chosen is not None:
            return chosen
    raise NotAcceptable("only the following media types are accepted: application/json, application/yaml")


def _parse(text: str) -> _Range:
    media, *rest = text.split(";")
    parameters = {}
    for part in rest:
        key, _, value = part.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"')
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 0.0
    return _Range(media.strip().lower(), quality, parameters)


def _match(item: _Range, forms: frozenset[Form]) -> Accepted | None:
    if item.quality <= 0 or item.media not in ("*/*", "application/*", "application/json", "application/yaml"):
        return None
    form = _form(item.parameters)
    # "deducedKind" and other parameters are hints that may be ignored; an `as` that is unknown may not.
    if form is None or form not in forms:
        return None
    return Accepted(form, item.media == "application/yaml")


def _form(parameters: dict[str, str]) -> Form | None:
    wanted = parameters.get("as", "")
    if not wanted:
        return Form.PLAIN
    group, version = parameters.get("g", ""), parameters.get("v", "")
    if wanted == "APIGroupDiscoveryList" and group == DISCOVERY_GROUP:
        return {"v2": Form.DISCOVERY_V2, "v2beta1": Form.DISCOVERY_V2BETA1}.get(version)
    if group == "meta.k8s.io" and version in ("v1", ""):
        names = {
            "Table": Form.TABLE,
            "PartialObjectMetadata": Form.PARTIAL,
            "PartialObjectMetadataList": Form.PARTIAL_LIST,
        }
        return names.get(wanted)
    return None
