"""Windows to a long-lived Ray Train run, results back.

Starting a worker group costs 14-25 s; a window through a running one costs milliseconds. So the workers stay: each asks
the desk for the next window, trains it and reports. After an idle time they are released and start again on demand.
Execution is at least once (a killed worker's window is asked for again), publication at most once (registry).

With `train.workers: [least, most]` Ray Train starts, and after a loss starts again, as many workers as the nodes have
room for. More are taken in between two windows only: a group that grows is a new group, and begins its window anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streamcl.cluster.memory import Shards
from streamcl.cluster.worker import OnStep, Worker
from streamcl.errors import NotFinite
from streamcl.events import TrainResult
from streamcl.sections import Config, Resources
from streamcl.train.loop import World
from streamcl.train.step import StepLog
from streamcl.types import Window

NEVER_S = 1e9
"""How often Ray Train may give a group that works another size."""
WORKER_FAILURES = 20
"""How often a worker group, or the controller of one, may die before the run gives up: kills are survived, a broken
installation is not hidden."""


@dataclass(frozen=True)
class Progress:
    """How far the window in training is."""

    window: int
    step: int
    steps: int
    loss: float


class Desk:
    """One window at a time: the driver puts it here, the workers take it, the result waits here."""

    def __init__(self, idle_s: float) -> None:
        self.idle_s = idle_s
        self.window: Window | None = None
        self.results: dict[int, TrainResult | str] = {}
        self.progress: Progress | None = None
        self.released = True
        self.group: Any = None
        self.size = 0
        self.changed = asyncio.Condition()

    async def open(self) -> bool:
        """Wants workers. Answers whether they are there or on their way; if not, start them."""
        there, self.released = not self.released, False
        return there

    async def submit(self, window: Window) -> bool:
        """Puts a window up. Answers what `open` does."""
        async with self.changed:
            self.window, self.progress = window, None
            self.results.pop(window.id, None)
            self.changed.notify_all()
            return await self.open()

    async def enter(self, group: Any, size: int) -> None:
        """So many workers are there, in this placement group."""
        self.group, self.size = group, size

    async def entered(self) -> tuple[Any, int]:
        """The placement group and the number of the workers who came last; None and 0 before the first."""
        return self.group, self.size

    async def next(self, done: int | None) -> Window | None:
        """The window to train after `done`, the same for every rank; None: stop, nothing came for `idle_s`."""

        def ready() -> bool:
            return self.released or (self.window is not None and self.window.id != done)

        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(ready), self.idle_s)
            except TimeoutError:
                self.released = True
                self.changed.notify_all()
            return None if self.released else self.window

    async def advance(self, progress: Progress) -> bool:
        """Hears how far the window is, and answers whether its worker is to leave it and go home."""
        self.progress = progress
        return self.released

    async def watch(self) -> Progress | None:
        return self.progress

    async def finish(self, window: int, result: TrainResult | str) -> None:
        """The result of a window; a string says why there is none. A repeated one changes nothing."""
        async with self.changed:
            self.results.setdefault(window, result)
            if self.window is not None and self.window.id == window:
                self.window = None
            self.changed.notify_all()

    async def result(self, window: int) -> TrainResult | str:
        """Waits for the window's result."""
        async with self.changed:
            await self.changed.wait_for(lambda: window in self.results)
        return self.results[window]

    async def release(self) -> None:
        """Sends the workers home; a window in training is left, and is trained again after the next start."""
        async with self.changed:
            self.released = True
            self.changed.notify_all()


DeskActor: Any = ray.remote(num_cpus=0)(Desk)


class Trainer:
    """The driver's side: keeps a Ray Train run going in a thread of its own. Mutable."""

    def __init__(self, config: Config, memory: Shards, name: str) -> None:
        """`name`: unique for this start of the learner; Ray Train resumes a run whose name it has met."""
        self.config, self.memory, self.name = config, memory, name
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = DeskActor.options(scheduling_strategy=here).remote(config.train.idle_s)  # it dies with us alone
        self.runs = 0
        self.most = config.train.workers if isinstance(config.train.workers, int) else config.train.workers[1]
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def submit(self, window: Window) -> Any:
        """Has the window trained; a reference to its TrainResult, or to the reason why there is none."""
        if self._outgrown():
            self.close()
        if not ray.get(self.desk.submit.remote(window)):
            self._start()
        return self.desk.result.remote(window.id)

    def warm(self) -> None:
        """Has the first workers started, before there is a window for them; later ones start on demand."""
        if not self.runs and not ray.get(self.desk.open.remote()):
            self._start()

    def _start(self) -> None:
        if self.thread is not None:
            self.thread.join()
        self.runs += 1
        self.thread = threading.Thread(target=self._fit, args=(f"{self.name}-{self.runs}",), daemon=True)
        self.thread.start()

    def _outgrown(self) -> bool:
        """Whether there would be more workers if they started now."""
        size: int = ray.get(self.desk.entered.remote())[1]
        return 0 < size < self.most and size < min(self.most, room(self.config.trainer))

    def progress(self) -> Any:
        """A reference to the Progress of the window in training."""
        return self.desk.watch.remote()

    def check(self) -> None:
        """Raises what ended the Ray Train run, if something did."""
        if self.error is not None:
            raise self.error

    def close(self, timeout_s: float = 60.0) -> None:
        ray.get(self.desk.release.remote())
        if self.thread is not None:
            self.thread.join(timeout_s)

    def _fit(self, name: str) -> None:
        """Runs workers until they go home. When a run's controller dies, another run takes the window up."""
        for attempt in range(WORKER_FAILURES):
            try:
                self._run(f"{name}-{attempt}").fit()
            except ray.train.TrainingFailedError as error:
                self.error = error
            except ray.exceptions.RayActorError as error:
                self.error = error if attempt == WORKER_FAILURES - 1 else None
                self._free()
                continue
            return

    def _free(self) -> None:
        """Takes back what a dead controller held: without its dashboard Ray would keep it reserved."""
        group, _ = ray.get(self.desk.entered.remote())
        if group is not None:
            ray.util.remove_placement_group(group)

    def _run(self, name: str) -> Any:
        train, each = self.config.train, self.config.trainer
        return ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"config": self.config, "desk": self.desk, "memory": self.memory},
            scaling_config=ray.train.ScalingConfig(
                num_workers=train.workers,
                use_gpu=each.gpus > 0,
                resources_per_worker=demand(each),
                placement_strategy="SPREAD" if each.spread else "PACK",
                elastic_resize_monitor_interval_s=NEVER_S,
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=self.config.scratch,
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            ),
        )


def work(settings: dict[str, Any]) -> None:
    """A Ray Train worker's life: window after window, until the desk says stop."""
    config, desk = settings["config"], settings["desk"]
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    if not config.trainer.gpus:
        torch.set_num_threads(1)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    worker = Worker(config, settings["memory"], world, device=str(device))
    ray.get(desk.enter.remote(ray.util.get_current_placement_group(), world.size))
    done: int | None = None
    while (window := ray.get(desk.next.remote(done))) is not None:
        result: TrainResult | str | None
        try:
            result = worker.run(window, _reporter(desk, window.id, world))
        except NotFinite as error:  # the same on every rank: the loss and the gradient are reduced
            result = str(error)
        except Released:
            return
        if world.size > 1:
            torch.distributed.barrier()  # every rank is through
        if world.rank == 0:
            ray.get(desk.finish.remote(window.id, result))
        done = window.id


def demand(each: Resources) -> dict[str, float]:
    """What a worker takes, under the names that Ray Train has for it."""
    return {**({"GPU": each.gpus} if each.gpus else {}), "CPU": each.cpus, **each.custom}


def room(each: Resources) -> int:
    """How many workers the nodes could hold, counted as Ray Train counts: whatever else runs on them is not seen."""
    wanted = {name: amount for name, amount in demand(each).items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(sum(min(has.get(name, 0.0) // amount for name, amount in wanted.items()) for has in nodes))


class Released(Exception):
    """The workers are sent home in the middle of a window."""


def _reporter(desk: Any, window: int, world: World) -> OnStep:
    """Tells the desk about steps, at most twice a second, from rank 0. What it answers, every rank hears.

    An answer is read when the desk is told again: no step waits for it. Raises Released, on all ranks after the same
    step: otherwise some would wait for the others' gradients.
    """
    told, answer = 0.0, ray.put(False)

    def report(step: int, steps: int, log: StepLog) -> None:
        nonlocal told, answer
        leave = torch.zeros(1, dtype=torch.int32)
        if world.rank == 0 and time.monotonic() - told > 0.5:
            told = time.monotonic()
            leave += int(ray.get(answer))
            answer = desk.advance.remote(Progress(window, step, steps, log.loss))
        if world.size > 1:
            leave = leave.to(ray.train.torch.get_device())
            torch.distributed.broadcast(leave, 0)
        if leave.item():
            raise Released

    return report
