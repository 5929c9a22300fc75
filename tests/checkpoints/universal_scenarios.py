"""Training that goes on with another number of ranks, from a checkpoint that engine_scenarios.py saved half-way.

On one rank from the middle to the third quarter, then on two again to the end.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from scenario import Place, Scenario
from small_engine import CASES, TRAIN, build, config_of, distance, forward_error, same, save, steps_of, train, whole
from small_engine import uncovered as uncovered_weights

from cdt.checkpoints import checkpoint, universal
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine


@dataclass(frozen=True)
class Continued:
    """One rank after a checkpoint of another number of ranks was loaded and training went on."""

    uncovered: list[str]
    """Weights, raw or averaged, that no rank or several ranks hold."""
    forward_error: float
    loaded: bool
    """Whether the loaded raw weights are those of the checkpoint."""
    loaded_ema: bool
    damage: str | None
    """Of the checkpoint that was loaded, afterwards."""
    converted: list[str]
    """What the conversion wrote for all checkpoints so far."""
    distance: float | None = None
    """At the end, from the run that stayed on two ranks: of raw weights, relative L2."""
    ema_distance: float | None = None


def go_on(case: str, place: Place) -> Continued:
    config, ranks, folder = config_of(case), place.ranks, place.folder / case
    end = steps_of(config)
    first, last = {1: (end // 2, 3 * end // 4), 2: (3 * end // 4, end)}[ranks.world]
    elastic = folder / "elastic"
    path = (folder if ranks.world == 1 else elastic) / checkpoint.checkpoint_name(first)
    engine = Engine(build, config, TRAIN, ranks)
    ema = Ema(engine)
    for _ in range(2):  # the second time it finds what was converted
        universal.load(path, elastic, engine, ema, ranks)
    uncovered = uncovered_weights(engine, engine.fragments(), ranks) + uncovered_weights(engine, ema.fragments, ranks)
    error = forward_error(engine, ema.fragments)
    loaded = same(whole(engine), checkpoint.read_weights(path, raw=True))
    loaded_ema = same(whole(engine, ema.fragments), checkpoint.read_weights(path))
    damage = checkpoint.damage(path)
    converted = sorted(found.name for found in elastic.glob(".*"))
    train(engine, ranks, first, last, lambda step: ema.update(TRAIN.ema_decay_at(step)))
    if ranks.world == 1:
        save(elastic, last, engine, ema, ranks)
        return Continued(uncovered, error, loaded, loaded_ema, damage, converted)
    undisturbed = folder / checkpoint.checkpoint_name(end)
    weights, averages = (checkpoint.read_weights(undisturbed, raw) for raw in (True, False))
    ours, our_averages = whole(engine), whole(engine, ema.fragments)
    return Continued(
        uncovered,
        error,
        loaded,
        loaded_ema,
        damage,
        converted,
        distance(ours, {name: weights[name] for name in ours}),
        distance(our_averages, {name: averages[name] for name in our_averages}),
    )


KINDS = [name for name, (_, _, accumulation) in CASES.items() if accumulation == 1]
GONE_ON = {
    world: {case: Scenario(f"{case}, gone on with {world}", functools.partial(go_on, case), world) for case in KINDS}
    for world in (1, 2)
}
"""By number of ranks and kind of engine."""
SCENARIOS = [scenario for by_case in GONE_ON.values() for scenario in by_case.values()]
