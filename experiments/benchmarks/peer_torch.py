"""The torch library on the shapes of `step_time`, one step for every line of input.

Run by `step_time --peer PYTHON` under that Python, which has torch and peft only:
`PYTHON peer_torch.py THREADS SIZE DEPTH BATCH DTYPE METHOD...`. A line of standard
input names a method, or `bound`; the same line comes back when the step is done. On a
GPU each model is compiled. The base has the dtype; adapters stay as the library makes
them.
"""

import sys

import peft
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, PATCH, CLASSES = 768, 12, 16, 10
TARGETS = ["qkv", "proj", "fc1", "fc2"]
CONFIGS = {
    "lora": peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
    "dora": peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, use_dora=True),
    "hra": peft.HRAConfig(r=8, target_modules=TARGETS),
}


class Block(nn.Module):
    """A pre-norm layer with fused q, k, v."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(y.reshape(batch, tokens, WIDTH))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """The Vision Transformer of `step_time`."""

    def __init__(self, depth, size):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        tokens = (size // PATCH) ** 2 + 1
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x + self.pos_embed))[:, 0])


def build(name, depth, size, dtype, device):
    """Return a model of which only the adapters, or the positions, have a gradient."""
    torch.manual_seed(0)
    model = ViT(depth, size).to(device, dtype).requires_grad_(False)
    if name in CONFIGS:
        model = peft.get_peft_model(model, CONFIGS[name])
    else:
        model.pos_embed.requires_grad_(True)
    return torch.compile(model) if device == "cuda" else model


def main():
    threads, size, depth, batch = map(int, sys.argv[1:5])
    dtype, device = getattr(torch, sys.argv[5]), "cpu"
    if torch.cuda.is_available():
        device = "cuda"
    torch.set_num_threads(threads)
    images = torch.randn(batch, 3, size, size, dtype=dtype, device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    names = ["bound", *(name for name in sys.argv[6:] if name in CONFIGS)]
    models = {name: build(name, depth, size, dtype, device) for name in names}
    for name in map(str.strip, sys.stdin):
        model = models[name]
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images).float(), labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        print(name, flush=True)


if __name__ == "__main__":
    main()
