"""The sample model's tokenizer: a small separate vocabulary, with Phi-3's special tokens at Phi-3's ids."""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sample.model import FIRST_SPECIAL_ID, unused_tokens

_LAST_SPECIAL_ID = 32044
_NAMED = {
    32000: "<|endoftext|>",
    32001: "<|assistant|>",
    32006: "<|system|>",
    32007: "<|end|>",
    32010: "<|user|>",
    32044: "<|image|>",
}
# Phi-3 marks these tokens to strip the white space after them.
_RSTRIP = {"<|assistant|>", "<|image|>"}


def make_tokenizer(texts: Iterable[str], size: int = 1500) -> PreTrainedTokenizerFast:
    """Train a byte-pair encoding on ``texts``.

    As in Llama's and Phi-3's vocabulary, digits are separate tokens, a space is written ``▁`` and every byte
    has a token, so that every text can be encoded. Ids that the small vocabulary does not use are named
    ``<unused_…>``, because the ids of the special tokens are Phi-3's.

    Args:
        texts: What to learn pieces of words from.
        size: The number of tokens without the special ones.
    """
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.pre_tokenizer = pieces
    given = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ascii_characters = [chr(code) for code in range(33, 127)]
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=given,
            initial_alphabet=["▁", *ascii_characters],
            show_progress=False,
        ),
    )
    learned = learner.get_vocab()
    merges = _merges(learner)
    vocabulary = learned | unused_tokens(len(learned))
    special = {
        _NAMED.get(number, f"<|placeholder{number - FIRST_SPECIAL_ID}|>"): number
        for number in range(FIRST_SPECIAL_ID, _LAST_SPECIAL_ID + 1)
    }
    tokenizer = Tokenizer(models.BPE(vocabulary | special, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pieces
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
        + [AddedToken(name, special=True, normalized=False, rstrip=name in _RSTRIP) for name in special]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def count_learned(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the number of ids below the special ones that occur in texts."""
    return sum(
        not name.startswith("<unused_")
        for name, number in tokenizer.get_vocab().items()
        if number < FIRST_SPECIAL_ID
    )


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
