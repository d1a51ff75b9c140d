"""Transformers and the torch library on `llm_time`, a step for every line of input.

Run by `llm_time --peer PYTHON` under that Python: `PYTHON peer_llm.py THREADS TOKENS
PROMPT NEW`. A line of standard input is `train` or `generate`; the same line comes back
when the step is done.
"""

import sys

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


def main():
    threads, tokens, prompt, new = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ids = torch.randint(0, CONFIG.vocab_size, (1, tokens))
    base = LlamaForCausalLM(CONFIG).eval()
    adapted = peft.get_peft_model(LlamaForCausalLM(CONFIG), LORA)

    def train():
        adapted.zero_grad(set_to_none=True)
        adapted(input_ids=ids, labels=ids).loss.backward()

    def generate():
        amount = {"min_new_tokens": new, "max_new_tokens": new}
        given, mask = ids[:, :prompt], torch.ones((1, prompt), dtype=torch.long)
        with torch.inference_mode():
            base.generate(given, attention_mask=mask, do_sample=False, **amount)

    steps = {"train": train, "generate": generate}
    for name in map(str.strip, sys.stdin):
        steps[name]()
        print(name, flush=True)


if __name__ == "__main__":
    main()
