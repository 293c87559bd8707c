"""Phi-3-Vision for current transformers, without remote code.

Importing this registers the classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fovea.phi3v.configuration import Phi3VConfig
from fovea.phi3v.image_processing import Phi3VImageProcessor
from fovea.phi3v.modeling import Phi3VForCausalLM
from fovea.phi3v.processing import Phi3VProcessor

AutoConfig.register("phi3_v", Phi3VConfig)
AutoImageProcessor.register(Phi3VConfig, image_processor_classes={"pil": Phi3VImageProcessor})
AutoTokenizer.register(Phi3VConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
AutoProcessor.register(Phi3VConfig, Phi3VProcessor)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM)
# Trainer uses this table to decide for which classes label smoothing shifts the labels.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[Phi3VConfig.model_type] = Phi3VForCausalLM.__name__

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VProcessor"]
