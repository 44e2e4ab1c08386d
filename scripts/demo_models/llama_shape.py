"""The measures of a small model of the llama architecture."""

from dataclasses import dataclass

from gguf import GGUFWriter, LlamaFileType

NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes in values, not bytes; every head has `head_size` keys and values."""

    context_tokens: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    head_size: int

    def add_to(self, writer: GGUFWriter, name: str) -> None:
        """Write the name and the measures that llama.cpp asks of this architecture."""
        writer.add_name(name)
        writer.add_file_type(LlamaFileType.MOSTLY_F16)
        writer.add_context_length(self.context_tokens)
        writer.add_block_count(self.layers)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_rope_dimension_count(self.head_size)
        writer.add_layer_norm_rms_eps(NORM_EPSILON)
