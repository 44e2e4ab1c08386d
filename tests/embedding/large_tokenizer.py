"""Writes a tokenizer.json as large as multilingual models have: 250,000 tokens (XLM-RoBERTa)."""

import json
from itertools import count, islice, product
from pathlib import Path
from typing import Any

TOKENS = 250_000
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
_SPACE = "\u2581"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = [chr(code) for code in range(0xAC00, 0xAC00 + 11_172)]


def write_large_tokenizer(path: Path) -> Path:
    """Write it: Unigram, with pieces of Latin letters and of Hangul syllables."""
    special = [BEGIN, PAD, END, UNKNOWN]
    words = [
        *_SYLLABLES,
        *("".join(each) for n in (1, 2, 3) for each in product(_LETTERS, repeat=n)),
    ]
    words += [_SPACE, *(_SPACE + word for word in words)]
    pairs = (one + words[(number * 7919) % 11_172] for number in count() for one in words[:11_172])
    more = islice(dict.fromkeys(islice(pairs, 2 * TOKENS)), TOKENS - len(words) - len(special))
    vocabulary = [[word, 0.0] for word in special]
    vocabulary += [[word, -8.0 - len(word) / 10] for word in (*words, *more)]
    path.write_text(json.dumps(_file(vocabulary), ensure_ascii=False), encoding="utf-8")
    return path


def _file(vocabulary: list[list[Any]]) -> dict[str, Any]:
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": word, "special": True, **flags}
            for number, (word, _) in enumerate(vocabulary[:4])
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": space,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": BEGIN, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {
                word: {"id": word, "ids": [number], "tokens": [word]}
                for number, word in ((0, BEGIN), (2, END))
            },
        },
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
    }
