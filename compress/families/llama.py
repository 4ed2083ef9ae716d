"""Llama and its kin: RMSNorm before attention and a gated FFN, grouped-query attention, rotary positions."""

from compress.families import Family

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    decoder=True,
    backbone="model",
    blocks="layers",
    attention="self_attn",
    ffn=("mlp",),
    qkvo=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    factor="mlp.up_proj",
    core="self_attn",
    groups=("num_key_value_groups",),
    norms=("input_layernorm", "post_attention_layernorm"),
    free_heads=True,
    head="lm_head",
)
