"""What a training leaves behind, without one."""

import json
from pathlib import Path
from typing import Any


def history(steps: int) -> list[dict[str, float]]:
    entries: list[dict[str, float]] = []
    for number in range(1, steps + 1):
        entries.append(
            {
                "step": number,
                "loss": 5 / number,
                "grad_norm": 1.0,
                "learning_rate": 1e-4,
                "seconds": 2.0,
                "waiting_seconds": 0.02,
                "tokens": 1000.0,
                "pictures": 4.0,
            }
        )
        if number % 10 == 0:
            entries.append({"step": number, "eval_loss": 6 / number, "eval_answers_right": 0.5})
    return entries


def left(output: Path, answers: list[dict[str, Any]], steps: int = 30) -> Path:
    (output / "history.json").write_text(json.dumps(history(steps)))
    trained = {"steps": steps, "epochs": 3.0, "train_loss": 1.0, "validation_loss": 0.2, "kept_step": 20}
    (output / "trained.json").write_text(json.dumps(trained))
    (output / "answers.json").write_text(json.dumps({"step": steps, "rows": answers}))
    return output
