"""What is used of kserve, which reads ``sys.argv`` when it is imported: it is given none of our options."""

import sys

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import Model, ModelServer
    from kserve.errors import ModelNotFound, ModelNotReady
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.rest.server import metrics_handler
    from kserve.protocol.rest.v1_endpoints import V1Endpoints
    from kserve.protocol.rest.v2_endpoints import V2Endpoints
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelServer",
    "V1Endpoints",
    "V2Endpoints",
    "app",
    "metrics_handler",
]
