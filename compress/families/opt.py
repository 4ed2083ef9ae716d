"""OPT: LayerNorm, learned positions, ReLU FFN directly in the block, biases everywhere."""

from compress.families import Family

FAMILY = Family(
    name="opt",
    model_types=("opt",),
    decoder=True,
    backbone="model",
    blocks="decoder.layers",
    attention="self_attn",
    ffn=("fc1", "fc2"),
    qkvo=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    up=("fc1",),
    down="fc2",
    activation="activation_fn",
    core="self_attn",
    counts=("num_heads",),
    norms=("self_attn_layer_norm", "final_layer_norm"),
    config_ffn="ffn_dim",
    head="lm_head",
)
