"""A tokenizer of whole words, for models that were never trained.

It is llama.cpp's unigram tokenizer (`tokenizer.ggml.model = t5`), because the other kinds build a
word by merging its letters and would need every step on the way in the vocabulary. What no word
covers falls back to single characters, and what no character covers to one `<unk>`, so any text
has tokens.
"""

from dataclasses import dataclass

from gguf import GGUFWriter, TokenType

WORD_START = "\u2581"

PADDING, END, UNKNOWN, BEGIN = "<pad>", "</s>", "<unk>", "<s>"
ASSISTANT = "<|assistant|>"
SPECIAL_TOKENS = (PADDING, END, UNKNOWN, BEGIN, "<|system|>", "<|user|>", ASSISTANT)

CHARACTERS = (WORD_START, "\n", *map(chr, range(ord("!"), ord("~") + 1)))

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message.role }}|>{{ message.content or '' }}" + END + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}" + ASSISTANT + "{%- endif -%}"
)

PIECE_SCORE, CHARACTER_SCORE = -10.0, -20.0
"""Log-probabilities: the fewest pieces win, and a character only fills a gap between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTokenizer:
    """The special tokens, then the characters, then `pieces`, in the order of their ids.

    `pieces` are words with their leading space written as `WORD_START`, or parts of words.
    """

    pieces: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token; its place is its id."""
        return SPECIAL_TOKENS + CHARACTERS + self.pieces

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the vocabulary, its scores and the chat template into a model."""
        others = len(CHARACTERS) + len(self.pieces)
        special_types = [
            TokenType.UNKNOWN if token == UNKNOWN else TokenType.CONTROL for token in SPECIAL_TOKENS
        ]
        writer.add_tokenizer_model("t5")
        writer.add_token_list(self.tokens)
        writer.add_token_types(special_types + [TokenType.NORMAL] * others)
        writer.add_token_scores(
            [0.0] * len(SPECIAL_TOKENS)
            + [CHARACTER_SCORE] * len(CHARACTERS)
            + [PIECE_SCORE] * len(self.pieces)
        )
        writer.add_pad_token_id(SPECIAL_TOKENS.index(PADDING))
        writer.add_eos_token_id(SPECIAL_TOKENS.index(END))
        writer.add_unk_token_id(SPECIAL_TOKENS.index(UNKNOWN))
        writer.add_bos_token_id(SPECIAL_TOKENS.index(BEGIN))
        writer.add_add_bos_token(value=True)
        writer.add_add_eos_token(value=False)
        writer.add_add_space_prefix(value=True)
        writer.add_remove_extra_whitespaces(value=False)
        writer.add_chat_template(CHAT_TEMPLATE)
