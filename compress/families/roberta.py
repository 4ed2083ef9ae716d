"""RoBERTa: an encoder, LayerNorm after attention and FFN, biases everywhere."""

from compress.families import Family

FAMILY = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta"),
    decoder=False,
    backbone="roberta",
    blocks="encoder.layer",
    attention="attention",
    ffn=("intermediate", "output"),
    qkvo=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    up=("intermediate.dense",),
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
    core="attention.self",
    head_dim="attention_head_size",
    counts=("num_attention_heads",),
    widths=("all_head_size",),
)
