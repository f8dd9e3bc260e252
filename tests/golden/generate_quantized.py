"""Blocks as ggml's reference quantizers write them, without an importance matrix.

    python tests/golden/generate_quantized.py LIBGGML_BASE.so     # needs numpy, gguf and safetensors

LIBGGML_BASE.so is llama.cpp's libggml-base, as in the npm package @node-llama-cpp/linux-x64 (`bins/linux-x64`); the
committed file was made with its 3.22.1 on x86-64, where no product and sum are fused. What the gguf package (0.19) can
quantize too has to agree.

  gguf_quantized.safetensors   values (float32) and <TYPE> (uint8), for each type that is written
"""
import ctypes
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, quants
from gguf.constants import GGML_QUANT_SIZES
from safetensors.numpy import save_file

HERE = Path(__file__).parent
rng = np.random.default_rng(7)
TYPES = (T.Q4_0, T.Q5_0, T.Q8_0, T.Q4_K, T.Q6_K)


def values():
    """Rows of 256 of every kind that a quantizer treats apart."""
    normal = lambda s=1.0: rng.normal(0, s, 256)
    rows = [normal(), normal(0.02), normal(1e-6), normal(3e3), rng.uniform(-1, 1, 256), rng.uniform(0, 1, 256)]
    rows += [rng.uniform(-2, -1, 256), rng.standard_t(2, 256), np.zeros(256), np.full(256, 0.3), np.full(256, -0.3)]
    rows += [np.where(np.arange(256) == 77, 5.0, 0.0), np.where(np.arange(256) % 32 == 3, 1.0, normal(1e-3))]
    rows += [np.round(normal() * 4) / 4, np.tile([1.0, -1.0], 128), np.linspace(-1, 1, 256), normal(1e-18), normal(1e-30)]
    # Sub-blocks of very different size, and some of zeros.
    rows += [normal() * np.repeat(10.0 ** rng.integers(-6, 3, 16), 16), normal() * np.repeat(rng.integers(0, 2, 16), 16)]
    rows += [normal(0.05) for _ in range(12)]
    return np.stack(rows).astype(np.float32)


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    x = values()
    out = {"values": x.reshape(-1)}
    for kind in TYPES:
        elements, size = GGML_QUANT_SIZES[kind]
        codes = np.zeros(x.size // elements * size, np.uint8)
        n = ggml.ggml_quantize_chunk(
            ctypes.c_int(kind.value), pointer(x), pointer(codes), ctypes.c_int64(0), ctypes.c_int64(x.shape[0]),
            ctypes.c_int64(x.shape[1]), None,
        )
        assert n == codes.size, (kind, n)
        try:
            theirs = quants.quantize(x, kind).reshape(-1)
        except NotImplementedError:
            pass
        else:
            assert (theirs == codes).all(), kind
        out[kind.name] = codes
    save_file(out, HERE / "gguf_quantized.safetensors")


main()
