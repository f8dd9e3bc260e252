"""Writes a GGUF's weights as float32 into another GGUF, everything else as it is: other engines' f32 on the same numbers.

    python scripts/gguf-to-f32.py models/SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct.F32.gguf

Needs gguf and numpy.
"""
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize

source, out = sys.argv[1:]
reader = GGUFReader(source)
writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
for key, field in reader.fields.items():
    # The writer adds these itself.
    if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.quantization_version"):
        continue
    array = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
    writer.add_key_value(key, field.contents(), field.types[0], array)
writer.add_file_type(LlamaFileType.ALL_F32)
for tensor in reader.tensors:
    values = dequantize(tensor.data, GGMLQuantizationType(tensor.tensor_type)).astype(np.float32)
    # GGUF tells dimensions from the fastest on, numpy from the slowest.
    writer.add_tensor(tensor.name, values.reshape(tuple(int(n) for n in reversed(tensor.shape))))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(out)
