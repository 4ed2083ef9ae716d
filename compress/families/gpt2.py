"""GPT-2: LayerNorm, learned positions, fused query-key-value; linears stored as Conv1D `[in, out]`."""

from compress.families import Family

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    decoder=True,
    backbone="transformer",
    blocks="h",
    attention="attn",
    ffn=("mlp",),
    qkvo=("attn.c_attn", "attn.c_proj"),
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    core="attn",
    counts=("num_heads",),
    widths=("split_size",),
    norms=("ln_1", "ln_2"),
    config_ffn="n_inner",
    head="lm_head",
    transposed=True,
)
