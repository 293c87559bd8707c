"""The model card: what the merged model is, what it was made from, and how it is used."""

import json

from fovea.records import AdapterRecord, ModelRecord


def model_card(adapter: AdapterRecord, base: ModelRecord, changed: int) -> str:
    """Return the card as Markdown. It says nothing of the moment, so equal inputs make equal cards."""
    validation = "none" if adapter.validation_loss is None else f"{adapter.validation_loss:.4f}"
    fields = "\n".join(f"- `{name}`" for name in adapter.task.fields)
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [fovea, phi-3-vision, lora]
---

# {base.architecture}, tuned for the task `{adapter.task.name}`

A LoRA adapter merged into its base: {changed} tensors were changed, all others are the base's bit by bit.

| | |
|---|---|
| base | `{base.digest}` |
| adapter | `{adapter.digest}` |
| dataset | `{adapter.dataset_digest}` |
| task | `{adapter.task.name}`, version {adapter.task.version}, `{adapter.task.digest}` |
| trained | {adapter.steps} steps, {adapter.epochs:g} epochs |
| loss | training {adapter.train_loss:.4f}, validation {validation} |
| crops of a picture | {adapter.num_crops} at most, in training and in use |

## What it is asked, and answers

    {json.dumps(adapter.task.prompt(), ensure_ascii=False)}

    {json.dumps(adapter.task.template, ensure_ascii=False)}

{fields}

`task.json` beside the weights holds this for programs. Other questions were not trained, and answers may be
wrong: how often, the evaluation of this very model tells, by its digest.

## How it is used

    python -m serving --model-dir .

It takes no remote code. The licence is the base model's.
"""
