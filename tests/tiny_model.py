"""A tiny Phi-3-Vision with random weights and a character tokenizer: the real classes, made in a second."""

import itertools
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from fovea.task import Task

_NAMED = {
    32000: "<|endoftext|>",
    32001: "<|assistant|>",
    32006: "<|system|>",
    32007: "<|end|>",
    32010: "<|user|>",
    32044: "<|image|>",
}
_KEEP_WHITE_SPACE = {32000, 32006, 32007, 32010}
_FIRST_CHARACTER, _CHARACTERS = 259, 95
_FIRST_PIECE = 1000


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    num_crops: int = 4,
    task: Task | None = None,
    answer: str | None = None,
) -> Path:
    """Write a checkpoint into ``folder`` and return it.

    2 decoder layers of width 64, a CLIP tower of 2 layers over crops of 28 x 28 pixels, Phi-3's 32064 ids.
    What it says is noise that depends on the picture and on ``seed``. With ``answer`` it says just that, and
    of words that are joined by ``|`` one or another, by the picture: ``Colour: red|blue``. With ``task``, a
    task.json lies beside the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choices = [[f"▁{word}" for word in words.split("|")] for words in answer.split(" ")] if answer else []
    pieces = [piece for choice in choices for piece in choice]
    if len(set(pieces)) != len(pieces):
        raise ValueError("the words of an answer must differ: each is told by the one before it")
    _write_tokenizer(folder, pieces)
    Phi3VImageProcessor(num_crops=num_crops, crop_size=28, num_img_tokens=4).save_pretrained(folder)
    model = _random_model(seed)
    if choices:
        numbers = iter(range(_FIRST_PIECE, _FIRST_PIECE + len(pieces)))
        chain = [[next(numbers) for _ in choice] for choice in choices]
        _speak(model, [[32001], *chain, [32007]], seed)
    model.save_pretrained(folder)
    if task is not None:
        task.save(folder)
    return folder


def _random_model(seed: int) -> Phi3VForCausalLM:
    config = Phi3VConfig(
        vocab_size=32064,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "su", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "hidden_act": "quick_gelu",
        },
    )
    model = Phi3VForCausalLM(config).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() or "layrnorm" in name:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise * (0.5 if "embed_tokens" in name else 0.15))
        # Characters and the end of an answer can be said; bytes and the fillers of the vocabulary cannot.
        head = model.get_output_embeddings().weight
        head[:_FIRST_CHARACTER] = 0
        head[_FIRST_CHARACTER + _CHARACTERS : 32007] = 0
        head[32008:] = 0
    return model.eval()


@torch.no_grad()
def _speak(model: Phi3VForCausalLM, chain: list[list[int]], seed: int) -> None:
    """Set the weights so that an id of each choice of ``chain`` is followed by one of the next."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        # The layers add little: what comes out is mostly what the last token's embedding put in.
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            weight.mul_(0.05)
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    head.zero_()
    generator = torch.Generator().manual_seed(seed)
    spoken = torch.linalg.qr(embeddings[[token for choice in chain for token in choice]].T).Q
    for choice, following in itertools.pairwise(chain):
        for token in following:
            head[token] = embeddings[choice].sum(0)
            if len(following) > 1:
                # Which of them it is lies in what the layers add to any embedding, and so in the picture.
                noise = 3 * torch.randn(head.shape[1], generator=generator)
                head[token] += noise - spoken @ (spoken.T @ noise)
    weights["model.norm.weight"].fill_(1.0)


def _write_tokenizer(folder: Path, pieces: list[str]) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for value in range(256):
        vocabulary[f"<0x{value:02X}>"] = len(vocabulary)
    for character in ["▁", *map(chr, range(33, 127))]:
        vocabulary[character] = len(vocabulary)
    for number in range(len(vocabulary), 32000):
        vocabulary[f"<unused{number}>"] = number
    for number, piece in enumerate(pieces, start=_FIRST_PIECE):
        del vocabulary[f"<unused{number}>"]
        vocabulary[piece] = number
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # noqa: S106
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    placeholders = iter(range(1, 64))
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>")]
        + [
            AddedToken(
                _NAMED.get(number) or f"<|placeholder{next(placeholders)}|>",
                rstrip=number not in _KEEP_WHITE_SPACE,
                normalized=False,
                special=True,
            )
            for number in range(32000, 32045)
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
