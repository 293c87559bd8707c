"""The model with its LoRA layers, and the adapter's files."""

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
    """Return the dtype of the weights: ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if parameters.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if parameters.precision == "bfloat16" else torch.float32


def target_modules(parameters: TrainLoraParameters, config: Phi3VConfig) -> list[str]:
    """Return the name suffixes of the linear layers that get LoRA matrices.

    The tower's last layer is never included, because its output is not used.
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
    """Load the base model and add LoRA matrices, the only weights that are trained."""
    return with_lora(Phi3VForCausalLM.from_pretrained(weights, dtype=torch_dtype(parameters)), parameters)


def with_lora(model: Phi3VForCausalLM, parameters: TrainLoraParameters) -> Any:
    """Add LoRA matrices to a model, the only weights that are trained; they are float32 for any dtype."""
    model.config.use_cache = False
    lora = LoraConfig(
        r=parameters.lora_r,
        lora_alpha=parameters.lora_alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=parameters.lora_dropout,
        target_modules=target_modules(parameters, model.config),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT passes the setting for checkpointing under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, lora)
    if parameters.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Only reentrant checkpointing needs gradients of the frozen embeddings.
        model.disable_input_require_grads()
        # The backward pass starts in the last layer, whose activations are still there.
        model.model.layers[-1].gradient_checkpointing = False
    trained, total = wrapped.get_nb_trainable_parameters()
    logger.info("train_lora: %s of %s parameters are trained", f"{trained:,}", f"{total:,}")
    return wrapped


def save_adapter(model: Any, folder: Path, base_digest: str) -> None:
    """Write PEFT's two files, so that the same training gives the same bytes on any machine."""
    model.save_pretrained(folder)
    # PEFT writes the base's local path, also into a model card, and sets in arbitrary order.
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_digest
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
