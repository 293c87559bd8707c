"""Self-contained HTML pages: one file, no script, every value escaped.

A template extends ``page.html.j2`` and fills its blocks ``title``, ``style`` and ``main``; ``charts.html.j2``
draws the charts of `fovea.pages.charts`. Pages contain untrusted text and are shown in frames of other
sites, so their content security policy allows only embedded pictures and styles.
"""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

_FOLDER = Path(__file__).parent


def render_page(template: Path, **values: Any) -> str:
    """Render a template with ``values``: each value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def picture_url(picture: Image.Image, side: int) -> str:
    """Return a picture, scaled down to at most ``side`` pixels, as a data URL."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
