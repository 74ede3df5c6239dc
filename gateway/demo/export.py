"""Writes the demo model as a GGUF file: Q8_0 matrices, f32 norms, vocabulary and chat template.

`train.py` calls `write` at the end and `rounded` to measure what quantization costs. The tensors
already carry GGUF names and layout (see `model.py`), so this module only quantizes and labels.
"""

from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from model import DemoModel
from tokenizer import CONTROL_TOKENS

TEMPLATE_PATH = Path(__file__).parent / "chat_template.jinja"
END_OF_TEXT_ID, TURN_END_ID = 0, 2
SIZE_LIMIT_BYTES = 4_000_000


def rounded(tensor: Tensor) -> Tensor:
    """What a reader gets back: matrices pass through Q8_0, vectors stay as they are."""
    if tensor.dim() != 2:
        return tensor
    packed = gguf.quants.quantize(tensor.numpy(), Kind.Q8_0)
    return torch.from_numpy(gguf.quants.dequantize(packed, Kind.Q8_0))


def write(path: Path, model: DemoModel, tokens: list[str], merges: list[str]) -> None:
    """Writes the file. Raises ValueError when it is larger than a repository should carry."""
    writer = gguf.GGUFWriter(path, "llama")
    add_description(writer, model)
    add_vocabulary(writer, tokens, merges)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if tensor.dim() == 2:
            writer.add_tensor(name, gguf.quants.quantize(data, Kind.Q8_0), raw_dtype=Kind.Q8_0)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if path.stat().st_size > SIZE_LIMIT_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, limit {SIZE_LIMIT_BYTES}")


def add_description(writer: gguf.GGUFWriter, model: DemoModel) -> None:
    shape = model.shape
    writer.add_name("ROCmForge Demo")
    writer.add_description(
        "A tiny chat model for trying and testing ROCmForge; it knows a few hundred facts."
    )
    writer.add_license("Apache-2.0")
    writer.add_languages(["en"])
    writer.add_size_label(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab)


def add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], merges: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in CONTROL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_eos_token_id(TURN_END_ID)
    writer.add_pad_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE_PATH.read_text("utf-8").rstrip("\n"))
