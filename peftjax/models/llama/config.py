"""The architecture of Llama and its kin."""

from __future__ import annotations

from dataclasses import dataclass

from peftjax.models.llama.places import Sight
from peftjax.models.rope import DEFAULT_ROPE, Rope


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, in the names of the original's `config.json`.

    Attributes:
        vocab_size: rows of the embeddings.
        hidden_size: features per token.
        intermediate_size: hidden features of the MLP.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of the query heads.
        head_dim: features per head.
        hidden_act: the MLP's activation.
        max_position_embeddings: the context of pretraining; nothing depends on it.
        rms_norm_eps: epsilon of every RMSNorm.
        rope: rotary embeddings.
        attention_bias: q, k, v, o have biases.
        mlp_bias: gate, up, down have biases.
        attention_dropout: probability of dropping an attention weight.
        tie_word_embeddings: the embedding table is the output layer too.
        model_type: `"llama"`, `"mistral"`, `"qwen2"` (q, k, v have biases), `"qwen3"`
            (norms on q and k), `"gemma2"` or `"gemma3_text"` (see `gemma`).
        sliding_window: how many tokens, itself among them, a token sees; None: all.
        full_layers: layers that see all in spite of a window.
        local_rope: of the layers with a window; None: as of the others.
        query_pre_attn_scalar: scores are divided by its root; None: by `head_dim`'s.
        attn_logit_softcapping: what scores are softly kept below; None: nothing.
        final_logit_softcapping: the same of the language model's logits.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = DEFAULT_ROPE
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    model_type: str = "llama"
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    local_rope: Rope | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k, v have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether q and k of each head are normalised before they are rotated."""
        return self.model_type in ("qwen3", "gemma3_text")

    @property
    def gemma(self) -> bool:
        """Whether it has Gemma's norms and scale of the embeddings.

        Norms multiply by `1 + scale`; one more follows attention and MLP of each layer;
        embeddings are multiplied by the root of their size.
        """
        return self.model_type in ("gemma2", "gemma3_text")

    @property
    def windowed(self) -> tuple[bool, ...]:
        """Which layers see a window only."""
        window = self.sliding_window is not None
        depth = range(self.num_hidden_layers)
        return tuple(window and i not in self.full_layers for i in depth)

    @property
    def sights(self) -> tuple[Sight, ...]:
        """What layers see: all that is before; or a window; or both, in this order."""
        full = Sight(self.rope.frequencies(self.head_dim))
        local = (self.local_rope or self.rope).frequencies(self.head_dim)
        near = Sight(local, self.sliding_window)
        if not any(self.windowed):
            return (full,)
        return (near,) if all(self.windowed) else (full, near)
