"""Parsing a configuration: it opens no file, imports nothing heavy, and leaves to `init` what only that can say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.settings import parse

DATA = {"shards": "shards"}
DIT = {"kind": "dit"}

PARSES = """
import sys
import cdt
from cdt.config import RunConfig

opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
constraints = {"four": {"class": 4, "generated_frequency": {"min": 0.2, "classifier": "nowhere.safetensors"}}}
constraints |= {"five": {"class": 5, "max_kl": 1.0, "reference": "nowhere"}, "old": {"prior": {"max_kl": 0.5}}}
tree = {"init": "nowhere", "data": {"shards": "nowhere"}, "constraints": constraints}
config = RunConfig.model_validate(tree)
assert config.network is None
assert config.train.warm_steps == 0
print(opened, [m for m in ("torch", "scipy", "ray", "deepspeed", "diffusers", "urllib3") if m in sys.modules])
"""


def test_parsing_opens_no_file_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PARSES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"data": DATA}, "network: missing; must be a mapping with kind: unet | dit | diffusers"),
        ({"data": DATA, "network": None}, "network: null; only with `init` can it be left out"),
        ({"data": DATA, "init": "run", "network": {"kind": "dti"}}, 'network.kind: got "dti"; must be unet, dit or'),
    ],
)
def test_a_network_is_stated_or_that_of_the_pretrained_model(tree: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match="told") as caught:
        parse(RunConfig, tree, where="told")
    assert told in str(caught.value)


def test_an_empty_network_is_none_beside_init() -> None:
    config = parse(RunConfig, {"data": DATA, "init": "run", "network": {}}, where="run")
    assert config.network is None
    assert parse(RunConfig, {"data": DATA, "network": DIT}, where="run").resolved_network.kind == "dit"


def test_a_micro_batch_is_what_a_worker_has_in_one_forward() -> None:
    config = RunConfig.model_validate(
        {"data": DATA, "network": DIT, "train": {"batch_size": 48}, "engine": {"accumulation": 3}}
    )
    assert [config.micro_batch(workers) for workers in (1, 2, 4, 100)] == [16, 8, 4, 1]
