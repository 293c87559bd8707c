"""Trainings in processes of their own, which end by a signal.

The processes are forked from one that has imported everything: to import it anew takes longer than to train.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from components.train_lora import train
from components.train_lora.step import train_lora_step
from components.train_lora.trainer import LoraTrainer
from tests.components.train_lora.inputs import Inputs


@contextmanager
def training(
    inputs: Inputs,
    log: Path,
    root: str,
    parameters: Mapping[str, Any],
    *,
    step: int = 0,
    number: signal.Signals = signal.SIGTERM,
    processes: int = 1,
) -> Iterator[BaseProcess]:
    """A training that writes its output to ``log``; with ``step``, it sends itself a signal within that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    given = (dict(os.environ), inputs.folder, log, root, step, number, dict(parameters), processes)
    process = context.Process(target=_train, args=given)
    process.start()
    try:
        yield process
        process.join(240)
        assert process.exitcode is not None, log.read_text()
    finally:
        process.kill()
        process.join()


def _train(
    environment: dict[str, str],
    folder: Path,
    log: Path,
    root: str,
    step: int,
    number: signal.Signals,
    parameters: dict[str, Any],
    processes: int,
) -> None:
    os.environ.update(environment)
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    if step:
        LoraTrainer.training_step = dying(LoraTrainer.training_step, step, number)
    train.count_processes = lambda: processes
    train_lora_step(
        dataset_record=folder / "dataset.json",
        base_record=folder / "base.json",
        adapter_record=folder / "adapter.json",
        artifact_root=root,
        run_id="killed",
        parameters=parameters,
    )


def dying(usual: Callable[..., Any], step: int, number: signal.Signals) -> Callable[..., Any]:
    def training_step(self: LoraTrainer, *args: Any, **kwargs: Any) -> Any:
        # Once: a second SIGTERM would end it at once.
        if self.state.global_step + 1 == step and not self.micro_batches:
            os.kill(os.getpid(), number)
        return usual(self, *args, **kwargs)

    return training_step
