"""``python -m serving.publish``: print the OpenAPI document, which is the same for every model."""

import json
from typing import Any, cast

from serving.application import build
from serving.engine.model import ServedModel
from serving.middleware.access import ApiKeys
from serving.settings import ServerSettings


def published() -> dict[str, Any]:
    """Return the document of a server that asks for API keys."""
    # The routes use these only once they are asked.
    served, keys = cast(ServedModel, None), cast(ApiKeys, object())
    return build(served, ServerSettings(model=""), keys).openapi()


if __name__ == "__main__":
    print(json.dumps(published(), indent=1, ensure_ascii=False))
