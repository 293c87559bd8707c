"""The model card: what the merged model is, what it was made from, and how to use it."""

import json

from fovea.records import AdapterRecord, ModelRecord


def model_card(adapter: AdapterRecord, base: ModelRecord, changed: int) -> str:
    """Return the card as Markdown. It contains no time, so equal inputs give equal cards."""
    validation = "none" if adapter.validation_loss is None else f"{adapter.validation_loss:.4f}"
    fields = "\n".join(f"- `{name}`" for name in adapter.task.fields)
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [fovea, phi-3-vision, lora]
---

# {base.architecture}, tuned for the task `{adapter.task.name}`

A LoRA adapter merged into its base: {changed} tensors were changed, all others are identical to the base's.

| | |
|---|---|
| base | `{base.digest}` |
| adapter | `{adapter.digest}` |
| dataset | `{adapter.dataset_digest}` |
| task | `{adapter.task.name}`, version {adapter.task.version}, `{adapter.task.digest}` |
| trained | {adapter.steps} steps, {adapter.epochs:g} epochs |
| loss | training {adapter.train_loss:.4f}, validation {validation} |
| crops of a picture | {adapter.num_crops} at most, in training and in use |

## Question and answer

    {json.dumps(adapter.task.prompt(), ensure_ascii=False)}

    {json.dumps(adapter.task.template, ensure_ascii=False)}

{fields}

`task.json` next to the weights has this in machine-readable form. The model was not trained on other
questions. Answers can be wrong; the evaluation with this model's digest says how often.

## Usage

    python -m serving --model-dir .

No remote code is needed. The licence is that of the base model.
"""
