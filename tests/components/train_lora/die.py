"""Trains, and sends itself a signal within a step: ``die.py FOLDER ROOT STEP SIGNAL PARAMETERS``."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from components.train_lora.train import train_lora_step
from components.train_lora.trainer import LoraTrainer


def main(folder: Path, root: str, step: int, number: signal.Signals, parameters: dict[str, Any]) -> None:
    usual = LoraTrainer.training_step

    def training_step(self: LoraTrainer, *args: Any, **kwargs: Any) -> Any:
        # Once: a second SIGTERM would end it at once.
        if self.state.global_step + 1 == step and not self.micro_batches:
            os.kill(os.getpid(), number)
        return usual(self, *args, **kwargs)

    LoraTrainer.training_step = training_step
    train_lora_step(
        dataset_record=folder / "dataset.json",
        base_record=folder / "base.json",
        adapter_record=folder / "adapter.json",
        artifact_root=root,
        run_id="killed",
        experiment="tests",
        parameters=parameters,
    )


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        int(sys.argv[3]),
        signal.Signals(int(sys.argv[4])),
        json.loads(sys.argv[5]),
    )
