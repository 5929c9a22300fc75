from __future__ import annotations

import json
from dataclasses import replace

import yaml

from cdt.evaluate.results import ConstraintState, Evaluation, NearCopies
from cdt.runs.card import CardFacts, Requirement, model_card

COPIES = NearCopies(1, 100, 300, 2, 2.9, 0.7, 0.1, 0.3, 0.3)
EVALUATION = Evaluation(
    samples=2000,
    class_names=("cat", "dog"),
    class_counts=(900, 100),
    shares=(0.85, 0.15),
    intervals=((0.834, 0.865), (0.135, 0.166)),
    tv_uniform=0.35,
    tv_floor=0.009,
    confident=0.8,
    frechet=12.345,
    judge_accuracy=0.975,
    judge_held_out=125,
    near_copies=(COPIES,),
    constraints=(ConstraintState("dogs", (1,), 0.2, 0.14, 3.6, 3.5, -0.1, False),),
)
FACTS = CardFacts(
    name="pets",
    source="Photographs of pets",
    class_counts={"cat": 900, "dog": 100},
    shape=(3, 32, 32),
    network="UNet of 32, 64 channels",
    parameters=1_234_567,
    training={"steps": "1,200 + 1,200", "seed": 0},
    cdt_version="0.1.0",
    requirements=[
        Requirement("dogs", "class dog: at least 0.2 of the samples", 1.609, 3.5, 3.6, 0.14, -0.1, False, window=0.5),
    ],
    usage="pipeline = DDPMPipeline.from_pretrained('pets')\n",
    evaluation=json.loads(EVALUATION.to_json()),
)


def sections(card: str) -> dict[str, str]:
    parts = card.split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}


def test_front_matter_is_what_model_hubs_read() -> None:
    _, head, body = model_card(FACTS).split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["license"] == "other"
    assert front["library_name"] == "diffusers"
    assert {"diffusion", "constrained-learning"} <= set(front["tags"])
    assert body.startswith("\n# pets\n")


def test_every_section_tells_its_facts() -> None:
    found = sections(model_card(FACTS))
    assert list(found) == ["Data", "Requirements", "What it generates", "Training", "Use", "Limits"]
    assert "| dog | 100 | 10.0% |" in found["Data"]
    requirement = "| dogs | class dog: at least 0.2 of the samples | 1.61 | 3.50 | 3.60 | 0.140 | -0.10 | no |"
    assert requirement in found["Requirements"]
    assert "| cat | 85.0% | 83.4% to 86.5% | not measured | - |" in found["What it generates"]
    assert "| dog | 15.0% | 13.5% to 16.6% | 2 of 300 | 2.9 |" in found["What it generates"]
    assert "uniform: 0.350 (a uniform generator would show 0.009" in found["What it generates"]
    assert "| parameters | 1,234,567 |" in found["Training"]
    assert "| seed | 0 |" in found["Training"]
    assert found["Use"] == "```python\npipeline = DDPMPipeline.from_pretrained('pets')\n```"
    assert "right on 97.5% of 125 held-out real images" in found["Limits"]
    assert "No more near-copies of training images than chance explains" in found["Limits"]
    assert "log-SNR up to 0.5" in found["Limits"]
    assert "Not satisfied when training ended: dogs." in found["Limits"]


def test_what_was_not_measured_is_said() -> None:
    unmeasured = Requirement("dogs", "more dogs", None, None, None, 0.0, None, None, None)
    found = sections(model_card(replace(FACTS, evaluation=None, requirements=[unmeasured])))
    assert found["What it generates"] == "Not measured."
    assert "was not measured" in found["Limits"]
    assert "| dogs | more dogs | - | - | - | 0.000 | - | not measured |" in found["Requirements"]
    no_search = json.loads(replace(EVALUATION, near_copies=(), frechet=None).to_json())
    found = sections(model_card(replace(FACTS, evaluation=no_search)))
    assert "Whether it repeats training images was not measured." in found["Limits"]
    assert "features: not measured." in found["What it generates"]


def test_memorising_is_said() -> None:
    memorised = replace(EVALUATION, near_copies=(replace(COPIES, near_copies=80, chance=1e-9),))
    found = sections(model_card(replace(FACTS, evaluation=json.loads(memorised.to_json()))))
    assert "more near-copies than chance explains in dog." in found["Limits"]


def test_without_requirements() -> None:
    card = model_card(replace(FACTS, requirements=[]))
    assert "trained without constraints" in card
    assert sections(card)["Requirements"] == "None: the model follows its data."


def test_names_from_data_cannot_break_tables() -> None:
    card = model_card(replace(FACTS, class_counts={"a|b\n<script>": 1, "dog": 1}))
    assert "| a\\|b &lt;script> | 1 | 50.0% |" in card
