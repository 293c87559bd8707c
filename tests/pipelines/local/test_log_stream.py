import io
from collections.abc import Iterator

from pipelines.local.log_stream import Stream

OUTPUT = """\
10:00:00.001 - INFO - Running pipeline: \x1b[95m'fovea-finetune'\x1b[0m
--------------------------------------------------------------------------------
10:00:00.002 - INFO - Executing task \x1b[96m'prepare-data'\x1b[0m
10:00:00.003 - INFO - Streamed logs:

    [KFP Executor 2026-01-01 10:00:00,100 INFO]: Looking for component `prepare_data`
    [KFP Executor 2026-01-01 10:00:00,100 INFO]: Got executor_input:
    {
        "inputs": {
            "source": "s3://bucket/products.csv"
        }
    }
    prepare_data: fetched 20 of 30
    Loading weights: 100%|#####| 3/3
    [KFP Executor 2026-01-01 10:00:00,100 INFO]: gate: refused

10:00:01.001 - INFO - Task \x1b[96m'prepare-data'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
10:00:01.002 - INFO - Task \x1b[96m'prepare-data'\x1b[0m outputs:
    dataset: Dataset( name='dataset',
                      metadata={} )
"""
FAILED = """\
10:00:02.002 - INFO - Executing task \x1b[96m'train-lora'\x1b[0m
    Traceback (most recent call last):
      File "train.py", line 1, in <module>
        open("x")
    FileNotFoundError: [Errno 2] x

    The above exception was the direct cause of the following exception:

    Traceback (most recent call last):
      File "train.py", line 2, in <module>
        raise UserError("no x")
    fovea.errors.UserError: x: is not there; make it
10:00:03.001 - ERROR - Task \x1b[96m'train-lora'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
10:00:03.002 - INFO - Executing task \x1b[96m'evaluate'\x1b[0m
    ValueError: another one
10:00:04.001 - ERROR - Task \x1b[96m'evaluate'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
"""


def follow(text: str) -> tuple[Stream, list[str], str]:
    shown: list[str] = []
    log = io.StringIO()
    stream = Stream(shown.append, log)
    stream.follow(text.splitlines(keepends=True))
    return stream, shown, log.getvalue()


def test_the_tasks_own_lines_are_shown_and_all_is_logged() -> None:
    stream, shown, log = follow(OUTPUT)
    assert shown == ["prepare_data: fetched 20 of 30", "gate: refused"]
    assert log == OUTPUT
    assert stream.failed == ""


def test_the_first_failure_is_remembered_by_its_last_error() -> None:
    stream, shown, _ = follow(OUTPUT + FAILED)
    assert (stream.failed, stream.error) == ("train_lora", "x: is not there; make it")
    assert len(shown) == 2


def test_an_error_without_a_message_is_named() -> None:
    stream, _, _ = follow(FAILED.replace(": x: is not there; make it", ""))
    assert stream.error == "fovea.errors.UserError"


def test_a_silent_task_is_said_to_be_at_work() -> None:
    shown: list[str] = []
    stream = Stream(shown.append, io.StringIO(), silence=0.02)

    def lines() -> Iterator[str]:
        yield "10:00:00.002 - INFO - Executing task 'merge-adapter'\n"
        while not shown:
            pass
        yield "10:00:01.001 - INFO - Task 'merge-adapter' finished with status SUCCESS\n"

    stream.follow(lines())
    assert shown[0].startswith("merge_adapter: at work (")
