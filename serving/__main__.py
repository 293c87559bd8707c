"""``python -m serving``: the predictor's container starts with this."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fovea.errors import UserError
from serving.server import serve
from serving.settings import ServerSettings


def parse_arguments(arguments: Sequence[str] | None = None) -> ServerSettings:
    """Read the command line."""
    default = ServerSettings(model="")
    parser = argparse.ArgumentParser(
        "python -m serving",
        description="Serve a tuned model: KServe's V1 and V2 protocols and OpenAI's chat completions.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--model-uri",
        metavar="URI",
        help="a model's record, s3://…/index/….json; its files' digests are checked",
    )
    model.add_argument("--model-dir", metavar="DIR", help="a local folder")
    parser.add_argument(
        "--model-record",
        metavar="URI|FILE",
        dest="record",
        help="with --model-dir: the record that the folder's files are checked against",
    )
    parser.add_argument(
        "--evaluation",
        metavar="URI|FILE",
        help="the record of the model's evaluation, which confidences come from; without it none are given",
    )
    parser.add_argument("--model-name", default=default.name, help="the name callers use (%(default)s)")
    parser.add_argument(
        "--http-port", type=int, default=default.port, help="0 takes a free one (%(default)s)"
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (%(default)s)")  # noqa: S104
    parser.add_argument("--device", default=default.device, help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--dtype",
        default=default.dtype,
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto is bfloat16 on a GPU and float32 on a CPU (%(default)s)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="generate in a few shapes only, and on a GPU compile the step from token to token for each; "
        "this was never run on a GPU",
    )
    parser.add_argument(
        "--max-batch-size", type=int, default=default.max_batch_size, help="answered together (%(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=default.max_waiting, help="pictures that may wait (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=default.workers, help="threads that prepare pictures (%(default)s)"
    )
    parser.add_argument(
        "--request-seconds",
        type=float,
        default=default.request_seconds,
        help="the longest a request may take (%(default)s)",
    )
    parser.add_argument(
        "--hang-seconds",
        type=float,
        default=default.hang_seconds,
        help="without a token for so long, liveness fails (%(default)s)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=int,
        default=default.grace_seconds,
        help="for requests under way, after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--api-keys",
        type=Path,
        metavar="PATH",
        help="a folder with a file a key, such as a mounted Secret, or a file with lines of name: key; "
        "without it, no key is asked for",
    )
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="for each key; no limit")
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        dest="cors_origins",
        metavar="ORIGIN",
        help="whose pages may ask from a browser; may be given again",
    )
    parser.add_argument(
        "--fetch-profile",
        metavar="NAME",
        help="fetch pictures by address, as this profile of the platform's configuration says; "
        "'default' reaches public addresses. Without it none are fetched",
    )
    parser.add_argument(
        "--log-format",
        default=default.log_format,
        choices=["line", "json"],
        help="for people or for machines (%(default)s)",
    )
    parser.add_argument(
        "--address-file",
        type=Path,
        metavar="FILE",
        help="write http://host:port here once requests are taken",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input closes")
    values = vars(parser.parse_args(arguments))
    return ServerSettings(
        model=values.pop("model_uri") or values.pop("model_dir"),
        name=values.pop("model_name"),
        port=values.pop("http_port"),
        cors_origins=tuple(values.pop("cors_origins")),
        **{name: value for name, value in values.items() if name not in ("model_uri", "model_dir")},
    )


def main() -> None:
    """Run the server; what the user can mend is one line on standard error."""
    try:
        serve(parse_arguments())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
