"""The demo model in PyTorch: a small Llama with the GGUF conventions built in.

`train.py` trains it and `export.py` reads its weights. The parameter names are the GGUF tensor
names, and RoPE rotates adjacent pairs (`2i`, `2i + 1`) as GGUF's llama architecture does, so
nothing is renamed or permuted on export. Sampling and caching are left to the real engine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Every matrix dimension is a multiple of 32, the Q8_0 block, and `width` one of 256."""

    vocab: int = 1536
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 512
    context: int = 2048
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5


def rope_tables(shape: Shape, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [positions, head_dim / 2], f32."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * shape.rope_base**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates adjacent pairs of `x` [batch, heads, positions, head_dim] by position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1).flatten(-2)


class Block(nn.Module):
    """One pre-norm decoder layer: grouped-query attention, then SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.attn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, queries, bias=False)
        self.attn_k = nn.Linear(shape.width, keys, bias=False)
        self.attn_v = nn.Linear(shape.width, keys, bias=False)
        self.attn_output = nn.Linear(queries, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        q, k, v = (
            projection(normed).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for projection in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, cosines, sines).to(v.dtype), rotate(k, cosines, sines).to(v.dtype)
        group = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class DemoModel(nn.Module):
    """Token ids [batch, positions] in, final hidden states out; `logits` maps those to scores.

    The output matrix is the embedding itself (tied), so GGUF holds no `output.weight`.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        cosines, sines = rope_tables(shape, shape.context)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
                # Each layer starts as the identity.
                if name.endswith(("attn_output.weight", "ffn_down.weight")):
                    nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        cosines, sines = self.cosines[: ids.shape[1]], self.sines[: ids.shape[1]]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, cosines, sines)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.token_embd.weight)
