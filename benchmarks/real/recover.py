"""A folder of sentence-transformers from the ONNX file of a small BERT.

python -m benchmarks.real.recover FILE.onnx FOLDER-OF-THE-SAME-TOKENIZER NEW-FOLDER

Embeddings, biases and norms keep their names in such a file; the weights of linear maps are initialisers without one, stored
(in, out), which the nodes of the graph read in the order of the forward pass.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LEAD = "model.0.auto_model."
ORDER = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense",
    "output.dense",
)  # fmt: skip


def recover(file: Path, like: Path, folder: Path) -> None:
    """Writes the folder.

    Arguments:
        like: A folder whose tokenizer, pooling and shape, but for the depth, are the file's.
    """
    import onnx  # of the environment that `models.py` makes
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    tensors = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    state = {name.removeprefix(LEAD): tensor for name, tensor in tensors.items() if name.startswith(LEAD)}
    reads = [name for node in graph.node if node.op_type == "MatMul" for name in node.input if name in tensors]
    blocks, rest = divmod(len(reads), len(ORDER))
    assert not rest and not any(name.startswith(LEAD) for name in reads)
    for n, name in enumerate(reads):
        state[f"encoder.layer.{n // len(ORDER)}.{ORDER[n % len(ORDER)]}.weight"] = tensors[name].T.contiguous()
    half = folder.with_suffix(".part")
    shutil.copytree(
        like, half, ignore=shutil.ignore_patterns("*.safetensors", "README.md", "data_config.json"), dirs_exist_ok=True
    )
    config = json.loads((half / "config.json").read_text())
    config |= {"num_hidden_layers": blocks, "_name_or_path": folder.name}
    (half / "config.json").write_text(json.dumps(config, indent=2))
    modules = json.loads((half / "modules.json").read_text())
    (half / "modules.json").write_text(json.dumps(modules[:2], indent=2))  # this one does not normalise
    (half / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    save_file(state, half / "model.safetensors", {"format": "pt"})
    half.rename(folder)


if __name__ == "__main__":
    recover(*map(Path, sys.argv[1:]))
