"""`fovea predict`: ask a service about pictures."""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 300.0
_AT_ONCE = 4


def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures: JPEG, PNG, WebP or GIF.", metavar="IMAGE…")],
    endpoint: Annotated[
        str, typer.Option(help="Where the service answers.", metavar="URL")
    ] = "http://127.0.0.1:8080",
    model: Annotated[
        str | None, typer.Option(help="The model's name; by default the one that is served.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each picture instead of a table.")
    ] = False,
) -> None:
    """Ask a service what is on pictures. Ends with 1 if a picture was not answered with its fields.

    Example: fovea predict --endpoint http://127.0.0.1:8080 scarf.jpg bag.jpg
    """
    import httpx

    from fovea.errors import UserError

    base = endpoint.rstrip("/")
    try:
        # The proxies in the environment are for other hosts.
        is_here = httpx.URL(base).host in ("127.0.0.1", "::1", "localhost")
        with httpx.Client(base_url=base, timeout=_TIMEOUT_SECONDS, trust_env=not is_here) as client:
            name = model or _served_model(client)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                answers = list(pool.map(lambda image: _ask(client, name, image), images))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise UserError(
            f"{base}: no service answers here ({error or type(error).__name__}); "
            "start one with `fovea serve`, or correct --endpoint"
        ) from error
    if as_json:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False))
    else:
        _print_table(answers)
    if any(answer["fields"] is None for answer in answers):
        raise typer.Exit(1)


def _served_model(client: "httpx.Client") -> str:
    from fovea.errors import UserError

    response = client.get("/openai/v1/models")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{client.base_url}: does not list its models (it answered {response.status_code}), so it is not "
            "served by Fovea; correct --endpoint"
        ) from error


def _ask(client: "httpx.Client", model: str, image: Path) -> dict[str, Any]:
    """Return the service's answer about a picture, or the reason why there is none as ``error``."""
    try:
        data = image.read_bytes()
    except OSError as error:
        return {"image": str(image), "fields": None, "error": f"cannot be read ({error.strerror})"}
    body = {"instances": [{"image": {"b64": base64.b64encode(data).decode()}}]}
    response = client.post(f"/v1/models/{model}:predict", json=body)
    try:
        if response.is_success:
            (answer,) = response.json()["predictions"]
            return {"image": str(image), **answer, "error": answer["parse_error"]}
        said = str(response.json()["error"]).removeprefix("instances[0].image: ")
    except (ValueError, LookupError, TypeError):
        said = response.text[:200]
    reason = f"the service answered {response.status_code}: {said}"
    return {"image": str(image), "fields": None, "error": reason}


def _print_table(answers: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipelines.report.text import field_value

    names = list(dict.fromkeys(name for answer in answers for name in answer["fields"] or {}))
    has_errors = any(answer["error"] for answer in answers)
    table = Table()
    for heading in (
        "picture",
        *(name.replace("_", " ") for name in names),
        *(["error"] if has_errors else []),
    ):
        table.add_column(heading)
    for answer in answers:
        values = answer["fields"] or {}
        # Text, since a file's name or an answer may hold what rich takes for markup.
        cells = [answer["image"], *(field_value(values.get(name)) for name in names)]
        row = [Text(cell) for cell in cells]
        table.add_row(*row, *([Text(answer["error"] or "", style="red")] if has_errors else []))
    Console().print(table)
