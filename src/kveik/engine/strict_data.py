"""JSON and YAML as plain data: no field twice, no tags, no aliases.

`json.loads(text, object_pairs_hook=distinct)`, `yaml.load(text, Loader=StrictLoader)`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a field twice")
    return value


class StrictLoader(yaml.SafeLoader):
    """Plain data only; no field twice, and no aliases, which a few lines can blow up with."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a field is named twice", node.start_mark
            )
        return mapping
