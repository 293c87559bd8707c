"""The page at / to try the service with."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_PAGE = Path(__file__).with_name("page.html")


def page_router() -> APIRouter:
    """Return the route of the page, which needs nothing from anywhere else."""
    text = _PAGE.read_text()
    headers = {
        "Content-Security-Policy": "; ".join(
            [
                "default-src 'none'",
                f"script-src {_hashes(text, 'script')}",
                f"style-src {_hashes(text, 'style')}",
                "img-src blob: data:",
                "connect-src 'self'",
                "form-action 'none'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            ]
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    router = APIRouter()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    return router


def _hashes(text: str, element: str) -> str:
    """Return the sources that allow the page's own scripts or styles, and no others."""
    bodies = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
