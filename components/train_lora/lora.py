"""The model with its LoRA matrices, and the adapter's files."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from components.train_lora.parameters import DECODER_PROJECTIONS, TrainLoraParameters
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM

logger = logging.getLogger("fovea.train_lora")

_PROJECTOR = ("img_projection.0", "img_projection.2")
_TOWER_LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)


def torch_dtype(parameters: TrainLoraParameters) -> torch.dtype:
    """Return the type of the weights: ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if parameters.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if parameters.precision == "bfloat16" else torch.float32


def target_modules(parameters: TrainLoraParameters, config: Phi3VConfig) -> list[str]:
    """Return the ends of the names of the linear layers that get LoRA matrices.

    The tower's last layer is never among them: nothing reads what it makes.
    """
    parts = parameters.lora_target_modules.split("+")
    names = list(DECODER_PROJECTIONS)
    if "projector" in parts:
        names += _PROJECTOR
    if "tower" in parts:
        layers = range(config.vision_config.num_hidden_layers - 1)
        names += [f"encoder.layers.{layer}.{name}" for layer in layers for name in _TOWER_LAYER]
    return names


def load_with_lora(weights: Path, parameters: TrainLoraParameters) -> Any:
    """Load the base model and give it LoRA matrices, which alone are trained."""
    return with_lora(Phi3VForCausalLM.from_pretrained(weights, dtype=torch_dtype(parameters)), parameters)


def with_lora(model: Phi3VForCausalLM, parameters: TrainLoraParameters) -> Any:
    """Give a model LoRA matrices, which alone are trained. They are float32 whatever the model's type."""
    model.config.use_cache = False
    lora = LoraConfig(
        r=parameters.lora_r,
        lora_alpha=parameters.lora_alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=parameters.lora_dropout,
        target_modules=target_modules(parameters, model.config),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for checkpointing by its earlier name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, lora)
    if parameters.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Only the reentrant kind needs gradients of the frozen embeddings.
        model.disable_input_require_grads()
        # The backward pass begins here: what it would recompute is still of use.
        model.model.layers[-1].gradient_checkpointing = False
    trained, total = wrapped.get_nb_trainable_parameters()
    logger.info("train_lora: %s of %s parameters are trained", f"{trained:,}", f"{total:,}")
    return wrapped


def save_adapter(model: Any, folder: Path, base_digest: str) -> None:
    """Write PEFT's two files, so that the same training gives the same bytes wherever it ran."""
    model.save_pretrained(folder)
    # PEFT names the base by its path on this machine, in a model card too, and writes sets in any order.
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_digest
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
