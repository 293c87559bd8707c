"""``python -m serving.publish``: print the OpenAPI document, which is the same for every model."""

import json
from typing import Any

from serving.protocols.openapi import describe
from serving.protocols.registry import PROTOCOLS


def published() -> dict[str, Any]:
    """Return the document of a server that asks for API keys."""
    return describe(PROTOCOLS, with_keys=True)


if __name__ == "__main__":
    print(json.dumps(published(), indent=1, ensure_ascii=False))
