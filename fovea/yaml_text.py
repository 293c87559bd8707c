"""YAML of settings, in which a name may be given only once."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which otherwise takes the last of several values without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value} is given twice; remove one of them", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return the document of a text.

    Raises:
        yaml.YAMLError: it is not YAML, or gives the same name twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
