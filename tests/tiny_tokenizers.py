"""Small tokenizers of the kinds that models have, trained on a few words where the test builds them."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer

TEXTS = [
    "The keys near the cabinet are here. The key near the cabinets is here.",
    "When Mary and John went to the store, John gave a drink to Mary. Is it so? Yes No yes no",
    "The capital of France is Paris. The capital of Peru is Lima, and Buenos Aires and Quito and Rome are too.",
    "  Two  spaces\n\nlines naïve café 東京 🎉 17 32",
]
ROLES = ("<|user|>", "<|assistant|>")
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""A chat template that writes special tokens."""


def byte_level(*, trim: bool = False, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """Of GPT-2's kind: a space belongs to the word after it, and letters may be several tokens.

    Args:
        trim: Offsets leave out the space, as those of Llama 3 do.
        bos: A text begins with ``<bos>``.
        chat: There is a chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(tokenizer, ["<bos>", "<eos>", *ROLES], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.decoder = decoders.ByteLevel()
    after = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        after.append(processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)]))
    tokenizer.post_processor = processors.Sequence(after)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": list(ROLES)})
    made.chat_template = CHAT if chat else None
    return made


def metaspace(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind: a text gets a space before it, ``▁`` stands for spaces, and other letters are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    _train(tokenizer, ["<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))], [])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


def bytes_alone() -> ByT5Tokenizer:
    """Not a fast one: it has no offsets, its tokens are bytes, and it ends a text with a special token."""
    return ByT5Tokenizer(extra_ids=0)


@cache
def kinds() -> dict[str, PreTrainedTokenizerBase]:
    """A tokenizer of each kind."""
    return {
        "byte_level": byte_level(),
        "byte_level_trimmed": byte_level(trim=True, bos=True),
        "metaspace": metaspace(),
        "words": tiny_tokenizer(),
        "bytes": bytes_alone(),
    }


def _train(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> None:
    options = {"vocab_size": 480, "limit_alphabet": 300 if alphabet else 50, "show_progress": False}
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
