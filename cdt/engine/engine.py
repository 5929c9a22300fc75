"""DeepSpeed, wrapped once. Only this room imports it, and only deepspeed_private.py uses its internals."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdt.engine import deepspeed_private
from cdt.engine.await_build import await_build
from cdt.engine.config import EngineConfig, deepspeed_options
from cdt.engine.deepspeed_files import UNFIT, captured, data_only, load_data_only, reason_in
from cdt.engine.host_copies import Copies
from cdt.engine.numerics import allow_tf32
from cdt.engine.ranks import Ranks
from cdt.errors import RunError


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one weight: a contiguous piece of its flattened fp32 values."""

    start: int
    values: Tensor

    def clone(self) -> Fragment:
        return Fragment(self.start, self.values.detach().clone())


class OptimizerSettings(Protocol):
    """What the engine needs to know of training: the global batch, and AdamW's settings."""

    @property
    def batch_size(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def weight_decay(self) -> float: ...


def start_deepspeed() -> None:
    """Imports DeepSpeed on the process group that exists, without its messages.

    Raises RunError when it would wait for a build that was killed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        await_build()
    # Known and harmless: DeepSpeed's hooks under this torch.
    warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)
        deepspeed.init_distributed(verbose=False)


class Engine:
    """The network under training: forward, backward, step, and its weights as fp32 fragments."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        config: EngineConfig,
        train: OptimizerSettings,
        ranks: Ranks,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """``weights``: those to begin with, in place of new ones."""
        import deepspeed

        self._deepspeed, self._build, self._config, self._ranks = deepspeed, build, config, ranks
        self.module = build()
        if weights is not None:
            self.module.load_state_dict(weights)
        self.module.to(ranks.device)
        allow_tf32(config.eval_precision == "tf32")
        named = dict(self.module.named_parameters())
        self._shapes = {name: tuple(weight.shape) for name, weight in named.items()}
        self.trained = [name for name, weight in named.items() if weight.requires_grad]
        # Their fp32 values: DeepSpeed keeps none of what it does not train.
        self._frozen = {name: self._slice(named[name]).clone() for name in named.keys() - set(self.trained)}
        weights_to_train = [named[name] for name in self.trained]
        low = config.precision == "bf16"
        # DeepSpeed makes its fp32 masters from weights that it has rounded already.
        exact = {name: named[name].detach().to("cpu", copy=True) for name in self.trained} if low else {}
        optimizer = torch.optim.AdamW(
            weights_to_train, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trained = sum(weight.numel() for weight in weights_to_train)
            gpus = ranks.device.type == "cuda"
            options = deepspeed_options(config, train.batch_size, ranks.world, trained, gpus=gpus)
            wrapped = deepspeed.initialize(model=self.module, optimizer=optimizer, config=options)
        self.network: Any = wrapped[0]
        deepspeed_private.copy_no_scripts(self.network)
        deepspeed_private.read_with(self.network, load_data_only)
        self._optimizer: Any = wrapped[1]
        self.dtype = torch.bfloat16 if low else torch.float32
        self.accumulation = config.accumulation
        self._masters = self._unpartitioned_masters()
        self._begin_from(exact)
        self.applied = True
        """Whether the last update was made. If the gradient is not finite, it is skipped on all ranks."""
        if config.zero_stage == 0 and not low:
            self._check_gradient()
        self._partitioned_network: Any = None
        self._bare_network: nn.Module | None = None

    def problem_with(self, weights: Mapping[str, Tensor]) -> str | None:
        """Why ``weights``, whole and by name, are not those of the network; None if they are."""
        if odd := sorted(weights.keys() ^ self._shapes.keys()):
            return f"{odd[0]} is {'surplus' if odd[0] in weights else 'missing'}"
        shapes = ((name, tuple(weight.shape), self._shapes[name]) for name, weight in weights.items())
        return next((f"{name} is {list(a)} and not {list(b)}" for name, a, b in shapes if a != b), None)

    @contextlib.contextmanager
    def training_precision(self) -> Iterator[None]:
        """Products of fp32 as training computes them; outside of this context, as evaluation does."""
        allow_tf32(self._config.precision == "tf32")
        try:
            yield
        finally:
            allow_tf32(self._config.eval_precision == "tf32")

    def backward(self, loss: Tensor) -> None:
        self.network.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Counts one micro-batch; at the last one of the batch, updates the weights."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        last = self.network.is_gradient_accumulation_boundary()
        if self._config.zero_stage == 0 and last:
            gradients = [weight.grad for weight in self.module.parameters() if weight.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self.network.step()
        if last:
            self.applied = self.network.was_step_applied()

    def _check_gradient(self) -> None:
        """Skips updates whose gradient is not finite, as DeepSpeed does at all other stages and precisions."""
        update, optimizer = self._optimizer.step, self._optimizer

        def step() -> None:
            finite = bool(torch.isfinite(self._gradient_norm))
            deepspeed_private.skip_update(optimizer, not finite)
            if finite:
                update()

        optimizer.step = step

    def gradient_norm(self) -> float:
        """Of the last step's gradient over all ranks, before clipping."""
        norm = self._gradient_norm if self._config.zero_stage == 0 else self.network.get_global_grad_norm()
        return float(norm)

    def fragments(self) -> dict[str, Fragment]:
        """This rank's fp32 weights by name: views where they change in place; together the ranks hold each once."""
        named = self.module.named_parameters()
        return {name: self._frozen[name] if name in self._frozen else self._fragment(weight) for name, weight in named}

    def _fragment(self, weight: Any) -> Fragment:
        if self._config.zero_stage == 3:
            values = self._deepspeed.utils.safe_get_local_fp32_param(weight)
            start = self._ranks.rank * deepspeed_private.part(weight).numel()
            return Fragment(start, values.detach().flatten()[: max(deepspeed_private.whole_numel(weight) - start, 0)])
        if self._config.zero_stage in (1, 2):
            if (found := deepspeed_private.fragment(weight)) is None:
                return Fragment(0, torch.zeros(0, device=weight.device))
            start, values = found
            return Fragment(start, values.detach())
        return self._slice(self._masters[weight])

    def _slice(self, weight: Tensor) -> Fragment:
        """This rank's even part, where DeepSpeed shards nothing."""
        whole = weight.detach().float().flatten()
        share = -(-whole.numel() // self._ranks.world)
        start = min(self._ranks.rank * share, whole.numel())
        return Fragment(start, whole[start : start + share])

    def _unpartitioned_masters(self) -> dict[nn.Parameter, Tensor]:
        """Every weight's fp32 values if nothing is sharded: DeepSpeed keeps copies next to bf16 weights."""
        masters: dict[nn.Parameter, Tensor] = {weight: weight for weight in self.module.parameters()}
        if self._config.zero_stage != 0 or self._config.precision != "bf16":
            return masters
        return masters | dict(deepspeed_private.fp32_copies(self._optimizer))

    def _begin_from(self, whole: Mapping[str, Tensor]) -> None:
        """Takes the masters that this rank has from whole fp32 weights by name."""
        if self._config.zero_stage == 0:
            named = dict(self.module.named_parameters())
            for name, values in whole.items():
                self._masters[named[name]].data.copy_(values)
            return
        fragments = self.fragments() if whole else {}
        for name, values in whole.items():
            start, mine = fragments[name].start, fragments[name].values
            mine.copy_(values.flatten()[start : start + mine.numel()])

    def gather(self, name: str, fragment: Fragment) -> Tensor:
        """The whole of one weight from every rank's fragment: fp32, in its shape, on every rank."""
        whole = torch.zeros(self._shapes[name], dtype=torch.float32, device=self._ranks.device)
        whole.flatten()[fragment.start : fragment.start + fragment.values.numel()] = fragment.values
        dist.all_reduce(whole)
        return whole

    @contextlib.contextmanager
    def network_with(self, weights: dict[str, Fragment]) -> Iterator[nn.Module]:
        """The network in fp32 and evaluation mode with other weights, for probes and samples; no gradients.

        Up to stage 2 it is a copy that lives as long as the context; at stage 3 a second partitioned network, so no
        rank ever holds all of it, and every rank must run equally many forwards.
        """
        network = self._partitioned(weights) if self.partitioned else self._copy(weights)
        with torch.no_grad():
            yield network

    def _copy(self, weights: dict[str, Fragment]) -> nn.Module:
        if self._bare_network is None:
            # Drawing new weights, to be overwritten, takes seconds for hundreds of millions: once, not at each probe.
            self._bare_network = _without_weights(self._build().to(self._ranks.device).eval())
        network = copy.deepcopy(self._bare_network)
        whole = {name: self.gather(name, weights[name]) for name, _ in network.named_parameters()}
        network.load_state_dict(whole, strict=False, assign=True)
        return network

    def _partitioned(self, weights: dict[str, Fragment]) -> nn.Module:
        if self._partitioned_network is None:
            self._partitioned_network = self._partition(self._build().to(self._ranks.device))
        for name, weight in self._partitioned_network.module.named_parameters():
            values = weights[name].values
            deepspeed_private.part(weight).data.flatten()[: values.numel()] = values
        self._finish_writes()
        return self._partitioned_network

    def _finish_writes(self) -> None:
        """DeepSpeed gathers weights on a stream of its own, which does not wait for the one that wrote them."""
        self._deepspeed.get_accelerator().synchronize()

    def _partition(self, network: nn.Module, *, offload: bool = False) -> Any:
        """A second engine, which trains nothing: its weights are sharded over the ranks."""
        # Small weights would stay gathered after their first forward, and keep the values of that day.
        zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0}
        given = self._config.deepspeed.get("zero_optimization", {})
        if offload or "offload_param" in given:  # where the weights in training lie, these do
            zero["offload_param"] = given.get(
                "offload_param", {"device": "cpu", "pin_memory": torch.cuda.is_available()}
            )
        low = next(network.parameters()).dtype == torch.bfloat16
        options = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "bf16": {"enabled": low}}
        with contextlib.redirect_stdout(io.StringIO()):
            wrapped, *_ = self._deepspeed.initialize(model=network, config=options)
        wrapped.eval()
        return wrapped

    def frozen(self, network: nn.Module, dtype: torch.dtype, *, offload: bool) -> nn.Module:
        """A network that is never trained: a full copy on every rank, or sharded over them at stage 3.

        ``offload``: sharded at any stage, and kept in CPU memory; each layer is copied to the GPU when it is used.
        """
        if offload:
            return self._partition(network.to(dtype).eval(), offload=True)
        network = network.to(self._ranks.device, dtype).eval()
        return self._partition(network) if self.partitioned else network

    @property
    def partitioned(self) -> bool:
        """Whether no rank holds whole weights: then every rank must run equally many forwards."""
        return self._config.zero_stage == 3

    def snapshot(self, directory: Path, copies: Copies) -> list[Callable[[], Path]]:
        """A copy of weights and optimiser state, each rank its part, as calls that write its files into ``directory``.

        They raise OSError. A collective.
        """
        with captured(self.network, copies) as writes:
            self.network.save_checkpoint(str(directory), tag="engine", save_latest=False)
        return writes

    def load(self, directory: Path) -> None:
        """Loads what ``snapshot`` wrote on as many workers. Raises RunError if it is missing or something else."""
        self._load(directory)

    def load_universal(self, directory: Path, whole: dict[str, Tensor]) -> None:
        """Loads what ``to_universal`` wrote, on any number of workers; ``whole``: the weights by name."""
        with deepspeed_private.universal(self.network), data_only():
            self._load(directory)
        weights: Any = self.module.named_parameters()
        for name, weight in weights:
            if not weight.requires_grad:  # of these DeepSpeed keeps no state, and leaves them as they were built
                values = whole[name].flatten()
                if self.partitioned:
                    part = deepspeed_private.part(weight)
                    values = values[self._ranks.rank * part.numel() :][: part.numel()]
                    part.data.flatten()[: values.numel()] = values
                else:
                    weight.data.copy_(values.view_as(weight))
        self._finish_writes()

    def _load(self, directory: Path) -> None:
        try:
            loaded, _ = self.network.load_checkpoint(str(directory), tag="engine")
        except torch.OutOfMemoryError:
            raise
        except UNFIT as error:
            raise RunError(f"{directory}/engine cannot be loaded: {reason_in(error)}") from error
        if loaded is None:
            raise RunError(f"{directory} holds no weights that DeepSpeed can load")

    @property
    def divides_state(self) -> bool:
        """Whether what ``snapshot`` writes depends on the number of workers."""
        return self._config.zero_stage > 0


def _without_weights(network: nn.Module) -> nn.Module:
    """The network with its buffers, its weights on the meta device, where they take no memory."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad))
    return network
