"""DeepSpeed and torch still have what cdt uses of their internals; what a new version lacks is named, with its use."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from internals import missing, missing_in_source, private_imports

from cdt.engine.deepspeed_private import READERS

ENGINE = Path(__file__).parents[2] / "cdt" / "engine"
TORCH = {
    "torch._foreach_lerp_": "average weights",
    "torch.UntypedStorage._cdata": "estimate memory before a run starts",
    "torch.distributed.HashStore": "train in one process without a port",
}
DEEPSPEED = {
    ("checkpoint/ds_to_universal.py", "main"): "convert a checkpoint for another number of workers",
    ("runtime/base_optimizer.py", "_hp_mapping"): "find the fp32 weights of a rank at stages 1 and 2",
    ("runtime/checkpoint_engine/checkpoint_engine.py", "load"): "read checkpoints without executing them",
    ("runtime/checkpoint_engine/checkpoint_engine.py", "save"): "write checkpoints while training goes on",
    ("runtime/config.py", "load_universal_checkpoint"): "load a converted checkpoint",
    ("runtime/engine.py", "_config"): "load a converted checkpoint",
    ("runtime/engine.py", "_copy_recovery_script"): "keep DeepSpeed from copying scripts into checkpoints",
    ("runtime/engine.py", "checkpoint_engine"): "read and write checkpoints in its own way",
    ("runtime/engine.py", "load_universal_checkpoint"): "load a converted checkpoint",
    ("runtime/engine.py", "overflow"): "skip updates with infinite gradients at stage 0",
    ("runtime/fp16/loss_scaler.py", "LossScaler"): "read optimiser state",
    ("runtime/fp16/unfused_optimizer.py", "fp16_groups"): "find the fp32 weights at stage 0 in bf16",
    ("runtime/fp16/unfused_optimizer.py", "fp32_groups"): "find the fp32 weights at stage 0 in bf16",
    ("runtime/zero/partition_parameters.py", "ds_numel"): "find the weights of a rank at stage 3",
    ("runtime/zero/partition_parameters.py", "ds_tensor"): "find the weights of a rank at stage 3",
    ("utils/tensor_fragment.py", "fragment_address"): "read optimiser state",
    ("utils/tensor_fragment.py", "hp_fragment"): "find the fp32 weights of a rank at stages 1 and 2",
    ("utils/tensor_fragment.py", "lp_fragment_address"): "find the fp32 weights of a rank at stages 1 and 2",
}
NEVER_REACHED = {
    "nvme.torch_fastio_engine": "a benchmark",
    "nvme.torch_io": "a benchmark",
    "runtime.checkpoint_engine.decoupled_checkpoint_engine": "each engine gets a load of its own",
    "runtime.checkpoint_engine.fast_checkpoint_engine": "each engine gets a load of its own",
    "runtime.checkpoint_engine.torch_checkpoint_engine": "each engine gets a load of its own",
    "runtime.zero.partition_parameters": "loads pretrained models, which cdt does itself",
    "utils.zero_to_fp32": "a script for users",
}
"""Modules of DeepSpeed that call ``torch.load``, and why it need not be replaced there."""


@pytest.mark.parametrize("path", TORCH)
def test_torch_has_it(path: str) -> None:
    if problem := missing("torch", path, TORCH[path]):
        pytest.fail(problem)


@pytest.mark.parametrize(("file", "name"), DEEPSPEED)
def test_deepspeed_has_it(file: str, name: str) -> None:
    if problem := missing_in_source("deepspeed", file, name, DEEPSPEED[file, name]):
        pytest.fail(problem)


@pytest.mark.parametrize("package", ["torch", "deepspeed"])
def test_there_is_no_private_import(package: str) -> None:
    assert {name for file in sorted(ENGINE.glob("*.py")) for name in private_imports(file, package)} == set()


def test_what_is_gone_is_named_with_its_purpose() -> None:
    problem = missing_in_source("deepspeed", "runtime/engine.py", "_no_such_thing", "save")
    assert problem is not None
    assert problem.startswith("deepspeed 0.")
    assert problem.endswith("has no _no_such_thing in deepspeed/runtime/engine.py any more, which cdt uses to save")
    assert missing_in_source("deepspeed", "no_such_file.py", "x", "save") is not None


def test_all_of_deepspeed_that_reads_checkpoints_is_known() -> None:
    """Where DeepSpeed calls ``torch.load``, files are executed unless cdt replaces it."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    found = set()
    for folder in ("checkpoint", "nvme", "runtime", "utils"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "torch.load" in text and any(_loads(node) for node in ast.walk(ast.parse(text))):
                found.add(".".join(path.relative_to(root).with_suffix("").parts))
    unknown = found - set(READERS) - NEVER_REACHED.keys()
    assert not unknown, f"deepspeed.{{{', '.join(sorted(unknown))}}} call torch.load: add them to READERS"
    assert set(READERS) <= found, "no longer there, or without torch.load: take them out of READERS"


def _loads(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
