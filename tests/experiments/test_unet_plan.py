"""A U-Net's adapters planned on shapes, against counts by hand."""

import peftjax as pj
from experiments.benchmarks.unet_plan import markdown, plan
from peftjax.models import UNetConfig

CONFIG = UNetConfig(
    block_out_channels=(4, 8),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=6,
    norm_num_groups=2,
)


def test_facts_are_those_of_the_attention_alone():
    rank, tokens, side, width = 2, 3, 4, 8
    rules = pj.presets.rules("unet", pj.LoRA(rank, alpha=1.0))
    every = plan(CONFIG, side, tokens, {"lora": rules})
    found = every["lora"]
    # One transformer on the way down, one in the middle, two on the way up.
    assert found["sites"] == 4 * 8
    assert found["trainable"] == 4 * rank * (6 * 2 * width + 2 * (width + 6))
    pixels = (side // 2) ** 2
    on_pixels = 2 * pixels * 6 * 2 * width
    on_text = 2 * tokens * 2 * (width + 6)
    assert found["added_flops"] == 4 * rank * (on_pixels + on_text)
    assert found["bytes"] == 2 * found["parameters"] + 16 * found["trainable"]
    # The first convolution alone, and all parameters at all pixels.
    least = 2 * side**2 * 9 * 4 * 4
    assert least < found["forward_flops"] < 2 * side**2 * found["parameters"]
    assert f"| lora | 32 | {found['trainable']:,} | " in markdown(every)
