"""Many replicas of a network, seeds x hyper-parameters x data, trained at once with a leading replica axis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise, zip_longest
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from theorylab.core.arguments import kind_of
from theorylab.core.checkpoints import Checkpoint, next_checkpoint, suspended
from theorylab.core.ranges import whole
from theorylab.learning.fastest import RECORD_FROM, fastest_chunk
from theorylab.learning.group import Group, tree_cat
from theorylab.learning.groups import Groups
from theorylab.learning.identity import identity_of
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params
from theorylab.learning.replicas import check_arguments, check_batch, initialize, make_rows
from theorylab.learning.risk import Loss, row_risk
from theorylab.learning.traced import TracedGradient
from theorylab.learning.trajectory import Measured, Recorder, Trajectory

if TYPE_CHECKING:
    from theorylab.core.problem import Problem

log = logging.getLogger(__name__)
CHECK_EVERY = 1000
"""Steps between looks for a loss that is no longer finite."""


class Population:
    r"""K replicas of one network, trained together; replica k ends where a lone run with its seed ends, up to rounding.

    Every replica has its own initial parameters (``torch.manual_seed(seed); make_model()``, Python's and NumPy's generators seeded too,
    and all put back), its own data order (`minibatches` of its seed), its own hyper-parameters (the optimizer's tensors (replica,)), and
    where asked its own row weights or data. A step runs the forward pass of all replicas under one vmap, sums their losses, and takes one
    backward pass.

    Args:
        make_model: Builds one network; called once a replica. Its training flag is kept.
        loss: ``loss(outputs, targets)``, the mean over rows or one number a row.
        data: Inputs and targets (n, ...), or (replica, n, ...) each where ``data_per_replica``.
        optimizer: From `theorylab.learning.optimizers`.
        seeds: One a replica. Repeat a seed to pair replicas that differ in hyper-parameters only.
        batch_size: Rows of a minibatch, in 1..n (or the fewest rows of positive weight); None for full batches. An epoch's remainder is
            dropped.
        row_weights: (replica, n), at least 0. The risk of a replica is Σ wᵢℓᵢ / Σ wᵢ. Minibatches are drawn evenly from the m rows of
            positive weight, and a drawn row counts wᵢ·m/Σw in the batch mean, so that the batch gradient is unbiased; weights of 0 and 1
            train on a subset, exactly.
        data_per_replica: Whether ``data`` has a leading replica axis.
        label_noise: Standard deviation of normal noise added to the targets of every step, drawn afresh each time from a generator of the
            replica's seed; a number or one a replica. `losses`, `gradients` and `problem` know the clean targets only.
        dtype: Of parameters and of floating-point data.
        device: Where to train; `shard` spreads over several.
        mode: ``"vmap"``, ``"loop"`` (one replica after another), or ``"auto"``, which times both for a few steps at the first `train`,
            takes the faster and says so in `mode` and by `logging`. The two differ by rounding. In long runs the step under vmap is
            recorded and repeated without vmap: forward pass and loss must stay the same functions while the population lives.
        trainable: Which parameters are trained, by name; by default those that require a gradient.

    Raises:
        ValueError: an argument out of range, with what to do; a model that vmap cannot run, under ``mode="vmap"``. Among these are layers
            that draw random numbers (dropout): one draw for all would tie a replica's noise to the number of replicas, so such models
            train in a loop, each replica on its own stream, which continues that of its seed after ``make_model()``. Networks that
            keep in a plain attribute what their seed decides, or make a buffer in the forward pass: replicas would share it.
        TypeError: an argument of the wrong kind: a network in place of a function that makes one, an optimizer of torch, arrays.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> lrs = torch.tensor([0.0, 0.1, 0.5])
        >>> population = Population(lambda: nn.Linear(1, 1), nn.functional.mse_loss, (x, 2 * x), optimizer=sgd(lrs), seeds=[0, 0, 0])
        >>> start = population.losses()
        >>> _ = population.train(20)
        >>> (population.losses() / start).round(decimals=1).tolist()[0]  # a step size of zero
        1.0
        >>> bool(population.losses()[2] < population.losses()[1] < start[1])
        True
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        loss: Loss,
        data: tuple[Tensor, Tensor],
        *,
        optimizer: Optimizer,
        seeds: Sequence[int],
        batch_size: int | None = None,
        row_weights: Tensor | None = None,
        data_per_replica: bool = False,
        label_noise: Hyper = 0.0,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        mode: Literal["auto", "vmap", "loop"] = "auto",
        trainable: Callable[[str], bool] | None = None,
    ):
        if mode not in ("auto", "vmap", "loop"):
            raise ValueError(f"mode must be 'auto', 'vmap' or 'loop', got {mode!r}.")
        self.seeds = check_arguments(make_model, loss, data, optimizer, seeds, dtype)
        if trainable is not None and not callable(trainable):
            raise TypeError(f"trainable must be a function of a name, as lambda name: 'bias' in name, got {kind_of(trainable)}.")
        self.loss, self.optimizer, self.batch_size, self.row_weights = loss, optimizer, batch_size, row_weights
        self.mode: str = mode
        self.device = torch.empty(0, device=device).device  # with its index
        self.step_count = 0
        rows = make_rows(data, self.seeds, batch_size, row_weights, data_per_replica, label_noise, dtype, self.device)
        template, params, buffers, noise = initialize(make_model, self.seeds, dtype, self.device)
        module = template.module
        trained = {k: params[k] for k, p in module.named_parameters() if (p.requires_grad if trainable is None else trainable(k))}
        if not trained:
            raise ValueError(f"trainable must accept at least one parameter of {sorted(params)}.")
        frozen = {k: p for k, p in params.items() if k not in trained}
        for name, p in module.named_parameters():
            p.requires_grad_(name in trained)
        group = Group(module, row_risk(loss), optimizer, trained, frozen, buffers, {}, rows, noise, stacked=mode != "loop")
        draws, obstacle = check_batch(template, group, loss, row_weights)
        if not draws:
            group.noise = None
        if obstacle and mode == "vmap":
            raise ValueError(f"the model cannot run under vmap: {obstacle} Use mode='loop' or 'auto'.")
        if obstacle and mode == "auto":
            log.info("population: the model cannot run under vmap, so replicas are trained one after another: %s", obstacle)
            self.mode, group.stacked = "loop", False
        try:
            group.state = optimizer.init(trained)
            optimizer.update({k: torch.zeros_like(p) for k, p in trained.items()}, group.state, trained)
        except ValueError as error:
            raise ValueError(f"optimizer {optimizer.name} does not fit {self.size} replicas: {error}") from error
        self._groups = Groups(group, optimizer)
        self._recorded: dict[tuple[int, torch.device], TracedGradient | None] = {}
        self._identity: str | None = None  # what checkpoints know it by; None until they ask, and after what was trained is replaced
        if self.mode == "loop":
            self._groups.cut([self.device], chunk=0)

    @property
    def size(self) -> int:
        """Number of replicas."""
        return len(self.seeds)

    def __len__(self) -> int:
        return self.size

    @property
    def params(self) -> Params:
        """Trained parameters by name, each (replica, ...). Assign a dictionary of the same shapes to replace them."""
        return self._groups.whole("params")

    @params.setter
    def params(self, new: Params) -> None:
        self._assign("params", new)

    @property
    def frozen(self) -> Params:
        """Parameters that are not trained, each (replica, ...); assignable like `params`."""
        return self._groups.whole("frozen")

    @frozen.setter
    def frozen(self, new: Params) -> None:
        self._assign("frozen", new)

    @property
    def buffers(self) -> Params:
        """Buffers by name, each (replica, ...); assignable like `params`."""
        return self._groups.whole("buffers")

    @buffers.setter
    def buffers(self, new: Params) -> None:
        self._assign("buffers", new)

    def _assign(self, attribute: str, new: Params) -> None:
        self._groups.assign(attribute, new)
        self._identity = None

    @property
    def state(self) -> Any:
        """The optimizer's state."""
        return self._groups.whole("state")

    def shard(self, devices: Iterable[str | torch.device]) -> Population:
        """Spread the replicas over devices in equal parts, in order; returns the population itself.

        Steps of different devices are launched in turn, so that devices that queue their work run side by side.

        Raises:
            ValueError: no device, or more devices than replicas.
        """
        places = [torch.empty(0, device=d).device for d in devices]
        if not 1 <= len(places) <= self.size:
            raise ValueError(f"devices must name between 1 and {self.size} (the number of replicas) devices, got {len(places)}.")
        if self.optimizer.select is None and len(places) > 1:
            raise ValueError(f"optimizer {self.optimizer.name} cannot be split over replicas; decorate its factory with @selectable.")
        self._groups.cut(places, chunk=0 if self.mode == "loop" else self.size)
        return self

    def _settle(self, record: bool) -> None:
        """Choose the way of training, once."""
        if self.mode != "auto":
            return
        whole, select = self._groups[0], self.optimizer.select

        def make(chunk: int) -> Group:
            part = slice(0, whole.size) if select is None else slice(0, max(chunk, 1))
            return whole.part(part, whole.optimizer if select is None else select(part), chunk > 0, whole.device)

        shapes = tuple((k, tuple(p.shape)) for k, p in {**whole.params, **whole.frozen}.items())
        rows = self.batch_size or whole.rows.x.shape[0 if whole.rows.shared else 1]
        name = getattr(self.loss, "__qualname__", repr(self.loss))
        kind = (repr(whole.module), name, self.optimizer.name, str(whole.device), whole.rows.shared, whole.rows.weights is None)
        kind = (*kind, whole.rows.label_noise is None)
        key = (*kind, shapes, rows, tuple(whole.rows.x.shape), next(iter(whole.params.values())).dtype, torch.get_num_threads())
        chunk = fastest_chunk(key, whole.size, make, record)
        self.mode = "vmap" if chunk else "loop"
        if len(self._groups) == 1:
            self._groups.cut([whole.device], chunk)

    def train(
        self,
        steps: int,
        *,
        every: int | None = None,
        measure: Callable[[Population], Measured] | None = None,
        check: bool = True,
    ) -> Trajectory:
        """Take ``steps`` optimizer steps with every replica.

        Args:
            steps: At least 0.
            every: Measure after every so many steps, at least 1; without it at the beginning and the end only.
            measure: ``measure(population)`` returns one number a replica (replica,), or a dictionary of such. By default `losses`, where
                ``every`` is given, and otherwise nothing.
            check: Whether to stop at a loss that is not finite.

        Returns:
            The measurements at the current step, every ``every`` steps from it, and the last step.

        Raises:
            ValueError: ``steps`` or ``every`` out of range or not whole, or a measurement that is not (replica,).
            FloatingPointError: a loss or parameter is not finite; names the replica and the step. Looked for at measurements, every
                thousand steps and at the end, so the population may have trained on.

        Inside `theorylab.core.checkpoints.checkpoints` a long call leaves its state on disk, and goes on from there in a later process.
        """
        whole(0, steps=steps)
        whole(1, every=1 if every is None else every)
        steps, every = int(steps), None if every is None else int(every)
        if measure is not None and not callable(measure):
            raise TypeError(f"measure must be a function of the population, got {kind_of(measure)}.")
        if every is not None and measure is None:
            measure = Population._loss_row
        record = (self.step_count + steps) * self.size >= RECORD_FROM
        recorder = Recorder(self.size)
        checkpoint = next_checkpoint(partial(self._call, steps, every))
        done = self._resume(checkpoint, recorder, steps)
        if done < steps:
            self._settle(record)
        if done < steps and record:
            self._record()
        if measure is not None and not recorder.steps:
            self._look(measure, recorder)
        at_once = 1 if checkpoint else CHECK_EVERY
        while done < steps:
            count = min(at_once, CHECK_EVERY, steps - done, steps if every is None else every - done % every)
            self._advance(count, check)
            done += count
            if measure is not None and (done == steps or (every is not None and done % every == 0)):
                self._look(measure, recorder)
            if checkpoint:  # about as many steps at once as fit between two states
                saved = checkpoint.offer(partial(self._state, done, recorder), done, steps)
                at_once = max(1, at_once // 2) if saved else 2 * at_once
        if check and steps:
            for name, p in self.params.items():
                if not bool(p.isfinite().all()):
                    k = int((~p.isfinite().reshape(self.size, -1).all(1)).nonzero()[0])
                    raise FloatingPointError(self._diverged(k, self.step_count, f"parameter {name} is not finite"))
        return recorder.trajectory()

    def _look(self, measure: Callable[[Population], Measured], recorder: Recorder) -> None:
        with suspended():  # a process that goes on does not measure again what it finds measured
            recorder.add(self.step_count, measure(self))

    def _call(self, steps: int, every: int | None) -> dict[str, Any] | None:
        """What tells one training from another, or None where something in it cannot be told from others."""
        if self._identity is None:  # of where the first call begins: a short one that is repeated may end elsewhere by rounding
            self._identity = identity_of(self._groups, self.loss, self.batch_size)
        asked = {"steps": steps, "every": every, "first": self.step_count, "seeds": list(self.seeds), "of": self._identity}
        return asked | {"devices": [str(device) for device in self._groups.devices]} if self._identity else None

    def _state(self, done: int, recorder: Recorder) -> dict[str, Any]:
        """All that a training has changed and seen."""
        chunk = max(group.size for group in self._groups) if self.mode == "vmap" else 0
        groups = [group.snapshot() for group in self._groups]
        seen = vars(recorder.trajectory())
        return {"done": done, "step_count": self.step_count, "mode": self.mode, "chunk": chunk, "groups": groups, "seen": seen}

    def _resume(self, checkpoint: Checkpoint | None, recorder: Recorder, steps: int) -> int:
        """Go on from a checkpoint, where there is one of this training; returns the steps that it had taken."""
        state = checkpoint.load() if checkpoint else None
        if checkpoint is None or state is None:
            return 0
        if len(self._groups.devices) == 1:  # what `_settle` finds now may differ from what it found then
            self.mode = state["mode"]
            self._recorded.clear()
            self._groups.cut(self._groups.devices, state["chunk"])
        for group, snapshot in zip(self._groups, state["groups"], strict=True):
            group.restore(snapshot)
        self.step_count = state["step_count"]
        recorder.resume(Trajectory(**state["seen"]))
        checkpoint.say(state["done"], steps)
        return state["done"]

    def _loss_row(self) -> dict[str, Tensor]:
        return {"loss": self.losses()}

    def _record(self) -> None:
        """Record the step of groups of each size on each device, once."""
        for group in self._groups:
            if group.stacked and (group.size, group.device) not in self._recorded:
                self._recorded[group.size, group.device] = group.recorded()

    def _advance(self, count: int, check: bool) -> None:
        lanes: dict[torch.device, list[Group]] = {}
        for group in self._groups:
            lanes.setdefault(group.device, []).append(group)
        seen: dict[int, Tensor] = {}  # (step, replica) of each group: a tensor a step, kept, would split what large ones leave free
        for together in zip_longest(*lanes.values()):  # one group of each device at a time, their steps in turn
            running = [(id(g), g.steps(count, self._recorded.get((g.size, g.device)))) for g in together if g is not None]
            for t in range(count):
                for name, steps in running:
                    losses = next(steps)
                    if name not in seen:
                        seen[name] = losses.new_empty(count, len(losses))
                    seen[name][t] = losses
        first = self.step_count
        self.step_count += count
        if not check:
            return
        losses = torch.cat([seen[id(g)].to(self.device) for g in self._groups], 1)  # (step, replica)
        bad = ~losses.isfinite()
        if bool(bad.any()):
            t, k = (int(i) for i in bad.nonzero()[0])
            raise FloatingPointError(self._diverged(k, first + t, f"the loss is {float(losses[t, k])}"))

    def _diverged(self, k: int, step: int, what: str) -> str:
        return (
            f"replica {k} (seed {self.seeds[k]}) diverged: {what} at step {step}. "
            "Lower its step size, or pass check=False to train on regardless."
        )

    def losses(self) -> Tensor:
        """Risk of each replica over all its rows, (replica,), in the model's own train/eval mode but with dropout off.

        Buffers stay as they are: batch norm in training uses the statistics of all rows and does not record them.
        """
        return torch.cat([group.losses().to(self.device) for group in self._groups])

    def outputs(self, x: Tensor, *, per_replica: bool = False) -> Tensor:
        """Outputs (replica, m, ...) of each replica at rows of any data; mode, dropout and buffers as in `losses`.

        Args:
            x: Rows (m, ...), the same for all replicas.
            per_replica: Each replica has rows of its own: ``x`` is (replica, m, ...).

        Raises:
            ValueError: rows of another number of replicas.
        """
        if per_replica and len(x) != self.size:
            raise ValueError(f"x must hold the rows of each of the {self.size} replicas, (replica, m, ...), got {tuple(x.shape)}.")
        x = x.to(self.device, next(iter(self._groups[0].params.values())).dtype if x.is_floating_point() else None)
        ends = list(accumulate((group.size for group in self._groups), initial=0))
        own = [x[a:b] if per_replica else x for a, b in pairwise(ends)]
        each = [group.outputs(rows, not per_replica).to(self.device) for group, rows in zip(self._groups, own, strict=True)]
        return torch.cat(each)

    def gradients(self) -> tuple[Tensor, Params]:
        """Risks (replica,) as in `losses`, and their gradients with respect to `params`, by name (replica, ...)."""
        each = [group.gradients() for group in self._groups]
        return torch.cat([losses.to(self.device) for losses, _ in each]), tree_cat([grads for _, grads in each])

    def problem(self, k: int) -> Problem:
        """Replica ``k`` as a `Problem` of its own, on the rows it trains on; a copy, so that later training does not change it.

        Its loss and gradient are those of `losses` and `gradients`: in training mode where the model is, with dropout off.

        Raises:
            IndexError: there is no such replica.
            ValueError: its row weights are not all equal where positive, or it has batch norm and dropout, both in training.
        """
        from theorylab.core.problem import Problem

        model, x, y = self.replica(k)
        # a problem sets one mode for all layers: training for batch norm's sake, evaluation for that of dropout
        live = [m for m in model.modules() if m.training]
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in live)
        if norms and any(isinstance(m, nn.modules.dropout._DropoutNd) for m in live):
            raise ValueError(
                "a problem is in training or evaluation mode as a whole, and this model has batch norm and dropout in training."
            )
        drops = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in live)
        return Problem(model, self.loss, (x, y), params=list(self._groups[0].params), train=model.training and not drops)

    def problems(self, on: Problem | None = None) -> Iterator[Problem]:
        """Every replica as a `Problem`, in order: that of `problem`, or ``on`` with the parameters and buffers of each.

        Where all train on the same rows, one network is copied and tried, and not one a replica.

        Args:
            on: The risk to look at, of the same network, on rows and in a mode of its own.

        Raises:
            ValueError: as `problem`, or parameters or buffers that do not fit ``on``.
        """
        rows = self._groups[0].rows
        if on is None and not (rows.shared and rows.weights is None):
            yield from map(self.problem, range(self.size))
            return
        on = self.problem(0) if on is None else on
        held = {**self.params, **self.frozen, **self.buffers}
        for k in range(self.size):
            yield on.holding({name: t[k] for name, t in held.items()})

    def replica(self, k: int) -> tuple[nn.Module, Tensor, Tensor]:
        """A copy of replica ``k``'s network with its parameters and buffers, and the rows (m, ...) it trains on.

        Raises:
            IndexError: there is no such replica.
            ValueError: its row weights are not all equal where positive.
        """
        if not 0 <= k < self.size:
            raise IndexError(f"there are replicas 0..{self.size - 1}, got {k}.")
        for group in self._groups:
            if k < group.size:
                return group.replica(k)
            k -= group.size
        raise AssertionError

    def measure(self, instrument: Callable[..., Any], **kwargs: Any) -> list[Any]:
        """``instrument(problem, **kwargs)`` of every replica, in order."""
        return [instrument(self.problem(k), **kwargs) for k in range(self.size)]
