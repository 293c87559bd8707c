"""What is used of kserve, which reads ``sys.argv`` when it is imported: it is given none of our options."""

import sys

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import Model, ModelServer
    from kserve.model_server import app
    from kserve.protocol.infer_type import InferRequest
finally:
    sys.argv = _arguments

__all__ = ["InferRequest", "Model", "ModelServer", "app"]
