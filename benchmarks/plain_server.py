"""A plain KServe model for comparison with the server: one request at a time, on the event loop."""

import asyncio
import base64
import io
import logging
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from fovea.inference import Predictor

_arguments, sys.argv = sys.argv, sys.argv[:1]
from kserve import Model, ModelServer  # noqa: E402 - it reads sys.argv

sys.argv = _arguments


class PlainModel(Model):  # type: ignore[misc]
    """Decodes, prepares and generates one picture after the other."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__("fovea")
        self._predictor = predictor
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer V1's ``{"instances": [{"image": {"b64": …}}]}``."""
        prompt = self._predictor.task.prompt()
        predictions = []
        for instance in payload["instances"]:
            image = Image.open(io.BytesIO(base64.b64decode(instance["image"]["b64"]))).convert("RGB")
            (answer,) = self._predictor.generate_batch([self._predictor.prepare(prompt, [image])])
            predictions.append({"fields": answer.fields, "text": answer.text})
        return {"predictions": predictions}


def main(
    folder: Annotated[Path, typer.Argument(help="A model's folder.")],
    device: str = "cpu",
    dtype: str = "float32",
    address_file: Path = Path("address"),
) -> None:
    """Serve a model without batching, and write the address to a file."""
    model = PlainModel(Predictor.load(folder, device=device, dtype=dtype))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logging.disable(logging.INFO)

    class Server(ModelServer):  # type: ignore[misc]
        def setup_event_loop(self) -> None:
            # KServe creates a loop here that it does not run, and that Python 3.14 does not have.
            pass

        async def _serve(self) -> None:
            serving = asyncio.create_task(super()._serve())
            while not self._rest_server._server.started:
                await asyncio.sleep(0.05)
            address_file.write_text(f"http://127.0.0.1:{port}")
            await serving

    Server(http_port=port, enable_grpc=False, enable_latency_logging=False).start([model])


if __name__ == "__main__":
    typer.run(main)
