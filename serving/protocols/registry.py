"""The protocols of the server."""

from serving.protocols.openai import OPENAI
from serving.protocols.v1 import V1
from serving.protocols.v2 import V2

PROTOCOLS = (V1, V2, OPENAI)
