"""Makes the files of this folder with the PyPI package `gguf` (0.19.0), the format's reference writer, so that
the reader is checked against something other than its own test builder. `python make.py` overwrites them."""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter

HERE = Path(__file__).parent
SCALARS = {
    "UINT8": 200, "INT8": -100, "UINT16": 60000, "INT16": -30000, "UINT32": 4000000000, "INT32": -2000000000,
    "UINT64": 2**63 + 5, "INT64": -(2**62), "FLOAT32": 0.15625, "FLOAT64": 1e-300, "BOOL": True,
    "STRING": "grüße 你好 🚀",
}
ARRAYS = {
    "INT32": [-1, 0, 2**31 - 1], "FLOAT32": [0.5, -2.0, 1e30], "BOOL": [True, False, True],
    "STRING": ["", "a", "▁the", "\n", "🚀"],
}
QUANTIZED = {"Q4_0": (18, 32), "Q8_0": (34, 32), "Q6_K": (210, 256), "MXFP4": (17, 32)}


def fill(writer: GGUFWriter) -> None:
    for name, value in SCALARS.items():
        writer.add_key_value(f"scalar.{name.lower()}", value, GGUFValueType[name])
    for name, value in ARRAYS.items():
        writer.add_array(f"array.{name.lower()}", value)
    random = np.random.default_rng(1)
    writer.add_tensor("f32", random.standard_normal((3, 5), dtype=np.float32))
    writer.add_tensor("f16", random.standard_normal((2, 3, 4, 5), dtype=np.float32).astype(np.float16))
    writer.add_tensor("i32", np.arange(7, dtype=np.int32))
    for name, (block_bytes, _) in QUANTIZED.items():
        data = random.integers(0, 256, (2, 2 * block_bytes), dtype=np.uint8)
        writer.add_tensor(name.lower(), data, raw_dtype=GGMLQuantizationType[name])


def write(name: str, **options) -> None:
    writer = GGUFWriter(HERE / name, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expected(paths: list[Path]) -> dict:
    tensors = []
    for part, path in enumerate(paths):
        for tensor in GGUFReader(path).tensors:
            tensors.append({
                "name": tensor.name, "dims": [int(dim) for dim in tensor.shape], "type": tensor.tensor_type.name,
                "part": part, "offset": int(tensor.data_offset), "bytes": int(tensor.n_bytes),
                "sum": int(tensor.data.view(np.uint8).sum(dtype=np.uint64)),
            })
    return {"scalars": SCALARS, "arrays": ARRAYS, "tensors": tensors}


write("types.gguf")
write("big-endian.gguf", endianess=GGUFEndian.BIG)
write("split.gguf", split_max_tensors=3)
split = sorted(HERE.glob("split-*.gguf"))
(HERE / "types.json").write_text(json.dumps(expected([HERE / "types.gguf"]), indent=1, ensure_ascii=False) + "\n")
(HERE / "split.json").write_text(json.dumps(expected(split), indent=1, ensure_ascii=False) + "\n")
