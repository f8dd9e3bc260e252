"""The keys of config.json that transformers' config classes have, for the families of src/models: config_keys.json.

A key is a field of the class, a name of its attribute_map, or one that the class takes out of further arguments. Made with
transformers 5.23.0.
"""

import dataclasses
import inspect
import json
import pathlib
import re

from transformers import CONFIG_MAPPING, PreTrainedConfig, modeling_rope_utils

TYPES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "bert", "roberta", "distilbert", "t5"]
TAKEN = re.compile(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""")


def keys(cls):
    found = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map) | set(cls().to_dict())
    for base in cls.__mro__:
        if base.__module__.startswith("transformers") and base is not PreTrainedConfig:
            found |= set(TAKEN.findall(inspect.getsource(base)))
    return found


def rope_keys():
    source = inspect.getsource(modeling_rope_utils)
    return sorted(set(re.findall(r"""rope_parameters(?:_dict)?(?:\.get\(|\[)["'](\w+)["']""", source)))


common = keys(PreTrainedConfig) | set(TAKEN.findall(inspect.getsource(PreTrainedConfig)))
found = {"common": sorted(common), "rope_parameters": rope_keys()}
found |= {kind: sorted(keys(CONFIG_MAPPING[kind]) - common) for kind in TYPES}
path = pathlib.Path(__file__).with_name("config_keys.json")
path.write_text(json.dumps(found, indent=1) + "\n")
