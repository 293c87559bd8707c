"""Check whether a folder is a complete Phi-3-Vision checkpoint, from the headers of its files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fovea.checkpoint_files import read_json, weight_files
from fovea.errors import UserError
from fovea.phi3v.configuration import Phi3VConfig
from fovea.phi3v.modeling import Phi3VForCausalLM
from fovea.phi3v.processing import Phi3VProcessor

_CONFIGURATION = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
_TYPES = {"F32", "BF16", "F16"}
_ARCHITECTURE = "Phi3VForCausalLM"

Shapes = dict[str, tuple[int, ...]]


def check_checkpoint(folder: Path) -> Phi3VConfig:
    """Check that a folder's tensors match its configuration, by name, shape and type.

    Only the headers of the safetensors files are read, which also reveals truncated files.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; or tokenizer, image processor and
            configuration do not match.
    """
    config = _read_config(folder)
    expected = expected_shapes(config)
    found: Shapes = {}
    for path in weight_files(folder):
        found |= _read_shapes(path)
    _compare(folder, expected, found)
    _check_processor(folder, config)
    return config


def expected_shapes(config: Phi3VConfig) -> Shapes:
    """Return the names and shapes of a checkpoint's tensors: 592 for the published configuration."""
    with torch.device("meta"):
        model = Phi3VForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_config(folder: Path) -> Phi3VConfig:
    documents = {name: read_json(folder / name) for name in _CONFIGURATION}
    architectures = documents["config.json"].get("architectures")
    if architectures != [_ARCHITECTURE]:
        raise UserError(f"{folder}: is a {architectures}, only {_ARCHITECTURE} can be fine-tuned")
    try:
        config: Phi3VConfig = Phi3VConfig.from_dict(documents["config.json"])
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: is not a Phi-3-Vision configuration: {error}") from error
    return config


def _read_shapes(path: Path) -> Shapes:
    shapes: Shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is not a mapping
                part = file.get_slice(name)
                if part.get_dtype() not in _TYPES:
                    raise UserError(
                        f"{path}: {name} is {part.get_dtype()}, only {', '.join(sorted(_TYPES))} are read; "
                        "use the checkpoint that is not quantised"
                    )
                shapes[name] = tuple(part.get_shape())
    except SafetensorError as error:
        raise UserError(f"{path}: is not a complete safetensors file ({error}); download it again") from error
    return shapes


def _compare(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Shapes) -> None:
    other_shape = [
        f"{name} {list(shape)} instead of {list(expected[name])}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    differences = [
        ("lacks", sorted(set(expected) - set(found))),
        ("has unexpected", sorted(set(found) - set(expected))),
        ("has with another shape", other_shape),
    ]
    told = "; ".join(f"{what} {_first(names)}" for what, names in differences if names)
    if told:
        raise UserError(f"{folder}: its tensors do not match its config.json: {told}")


def _first(names: list[str], count: int = 3) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _check_processor(folder: Path, config: Phi3VConfig) -> None:
    try:
        processor = Phi3VProcessor.from_pretrained(folder)
    # The reader of the tokenizer can raise any exception; the fix is always to replace the file.
    except Exception as error:
        raise UserError(
            f"{folder}: tokenizer or image processor cannot be read ({str(error).splitlines()[0]})"
        ) from error
    images = processor.image_processor
    for what, stored, wanted in (
        ("the id of <|image|>", processor.image_token_id, config.image_token_id),
        ("crop_size", images.crop_size, config.vision_config.image_size),
        ("num_img_tokens", images.num_img_tokens, config.tokens_per_side**2),
    ):
        if stored != wanted:
            raise UserError(f"{folder}: {what} is {stored}, but the model was made for {wanted}")
    if len(processor.tokenizer) > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(processor.tokenizer)} ids, the model {config.vocab_size}"
        )
