"""Record what `transformers` makes of choices and answers, on a tiny Llama.

    pip install torch transformers peft
    python tests/references/make_llm_references.py tests/files

Reads `models/llama3` and writes `llm/tokenizer.json` (byte-level BPE of 47 tokens, some
of which join a space to what follows), `llm/references.json` and `llm/curve.npz`, the
losses of 30 steps of LoRA. Nothing of peftjax is used here: every choice is scored by a
call of its own, without a cache, and rows are padded.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import tokenizers as tk
import torch
import transformers as tf

QUESTIONS = [
    ("the cat sat", [" on a mat.", " at the sea", "s there"], 1),
    ("what is 12 and 7? add: ", ["19", "18", "a", "the"], 0),
    ("a", [" b", " ab"], 1),
    (
        "q: is it so? a long text of many words to read. the answer is",
        [" yes", " no"],
        0,
    ),
]
PROMPTS = ["the", "what is 12 and 7? add: ", "a b c d e f g h i j k l m n o p"]
STEPS = 12


def tokenizer():
    """Return the tokenizer."""
    special = ["<pad>", "<s>", "</s>"]
    signs = ["Ġ", "Ċ", *"abcdefghijklmnopqrstuvwxyz0123456789.?:"]
    merges = [("Ġ", "a"), ("t", "h"), ("Ġ", "th")]
    tokens = [*special, *signs, "Ġa", "th", "Ġth"]
    result = tk.Tokenizer(tk.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    result.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = tk.decoders.ByteLevel()
    result.add_special_tokens(special)
    return result


@torch.no_grad()
def score(model, tokens, text, choice):
    """Return the log-likelihood of a choice, and its tokens."""
    whole = tokens.encode(text + choice).ids
    start = min(len(tokens.encode(text).ids), len(whole) - 1)
    logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    own = [logits[i - 1, whole[i]].item() for i in range(start, len(whole))]
    return sum(own), len(own)


def curve(model):
    """Return rows of tokens, LoRA's first factors, and the losses of 30 steps."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    shape = (5, 4, 14)
    ids = draw.integers(3, 50, shape)
    lengths, asked = (draw.integers(*span, shape[:2]) for span in ((9, 15), (1, 6)))
    places = np.arange(shape[-1])
    token = places < lengths[..., None]
    learned = token & (places >= asked[..., None])
    targets = ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets)
    adapted = peft.get_peft_model(model, settings)
    prefix, found = "base_model.model.model.", {}
    for name, value in adapted.named_parameters():
        if "lora_A" in name:
            path = name.removeprefix(prefix).removesuffix(".lora_A.default.weight")
            found[path] = value.detach().numpy().copy()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    descent = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(30):
        row = step % len(ids)
        batch = torch.tensor(ids[row])
        labels = torch.where(torch.tensor(learned[row]), batch, -100)
        mask = torch.tensor(token[row]).long()
        loss = adapted(batch, attention_mask=mask, labels=labels).loss
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    rows = {"ids": ids, "token": token, "learned": learned}
    return {**rows, "losses": np.array(losses), **found}


def main(folder):
    """Write the files."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder / "models" / "llama3").eval()
    tokens, found = tokenizer(), []
    for text, choices, answer in QUESTIONS:
        both = [score(model, tokens, text, choice) for choice in choices]
        sums, counts = zip(*both)
        one = {"text": text, "choices": choices, "answer": answer}
        found.append({**one, "sums": sums, "tokens": counts})
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokens.encode(prompt).ids])
        for _ in range(STEPS):
            new = model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], 1)
        answers.append({"prompt": prompt, "ids": ids[0, -STEPS:].tolist()})
    place = folder / "llm"
    place.mkdir(exist_ok=True)
    tokens.save(str(place / "tokenizer.json"))
    document = {"questions": found, "answers": answers}
    (place / "references.json").write_text(json.dumps(document, indent=1) + "\n")
    np.savez(place / "curve.npz", **curve(model))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
