"""Lines for machines."""

import json
import logging

from serving.middleware.logs import JsonFormatter


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "serving", "levelname": "INFO", "msg": message, "created": 0.0})
    made.__dict__.update(more)
    return made


def test_a_line_is_one_json_object() -> None:
    line = JsonFormatter().format(record('two\nlines "quoted"', fields={"request_id": "a", "status": 200}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "INFO",
        "message": 'two\nlines "quoted"',
        "request_id": "a",
        "status": 200,
    }


def test_an_exception_is_within_the_line() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: bad")
