"""YAML as Kubernetes reads and people write it: no dates, no aliases, many-line texts as blocks."""

from __future__ import annotations

from functools import cache
from typing import Any

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_TEXT = "tag:yaml.org,2002:str"


@cache
def _loader() -> Any:
    """A safe loader under which a time stays the text it is."""
    import yaml

    loader: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != _TIMESTAMP]
        for first, rules in loader.yaml_implicit_resolvers.items()
    }
    return loader


@cache
def _dumper() -> Any:
    import yaml

    base = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    dumper: Any = type("Dumper", (base,), {"ignore_aliases": lambda self, data: True})
    dumper.add_representer(str, _represent_text)
    return dumper


def _represent_text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar(_TEXT, text, style="|" if "\n" in text else None)


def load_documents(data: bytes) -> list[Any]:
    """Every document of a stream. Raises yaml.YAMLError, UnicodeDecodeError, RecursionError."""
    import yaml

    return list(yaml.load_all(data, Loader=_loader()))


def dump(value: Any) -> str:
    """Block style, keys in the object's order."""
    import yaml

    text: str = yaml.dump(
        value, Dumper=_dumper(), sort_keys=False, default_flow_style=False, allow_unicode=True, width=4096
    )
    return text
