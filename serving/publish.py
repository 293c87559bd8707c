"""``python -m serving.publish``: print the OpenAPI document, which is the same for every model."""

import json
from typing import Any, cast

from fastapi import FastAPI

from serving.application import build
from serving.engine.model import ServedModel
from serving.kserve_api import DataPlane
from serving.middleware.access import ApiKeys
from serving.settings import ServerSettings


def published() -> dict[str, Any]:
    """Return the document of a server that asks for API keys."""
    # The routes use these only once they are asked.
    served, plane, keys = cast(ServedModel, None), cast(DataPlane, None), cast(ApiKeys, object())
    app = FastAPI()
    build(app, served, plane, ServerSettings(model=""), keys)
    return app.openapi()


if __name__ == "__main__":
    print(json.dumps(published(), indent=1, ensure_ascii=False))
