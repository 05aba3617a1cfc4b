"""The configuration in force belongs to the thread and the task: others, copies and replicas are never mixed up."""

from __future__ import annotations

import asyncio
import copy
import itertools
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanconv.elastic import ElasticNet, calibrate, make_elastic
from leanconv.elastic.width import Config
from leanconv.serve import Runtime

CONFIGS = [Config(width, side) for width in (1.0, 0.75, 0.5, 0.25) for side in (16, 12, 8)]


class Net(nn.Module):
    """A concatenation (channels are gathered), a flattening (numbers in code), norms with statistics of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 24, 1)
        self.norm, self.three = nn.BatchNorm2d(40), nn.Conv2d(40, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)
        self.saving = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.one(x), self.two(x)], 1)).relu()
        x = checkpoint(self.three, x, use_reentrant=False) if self.saving else self.three(x)
        return self.head(x.mean((2, 3)).reshape(-1, x.shape[1]))


@pytest.fixture(scope="module")
def net() -> ElasticNet:
    torch.manual_seed(0)
    made = make_elastic(Net(), resolutions=(16, 12, 8))
    calibrate(made, [torch.randn(32, 3, 16, 16)], CONFIGS)
    return made.eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def answers(net: ElasticNet, x: Tensor) -> dict[Config | None, Tensor]:
    """What one thread gets, one configuration after the other; None: outside of any scope."""
    with torch.no_grad():
        found: dict[Config | None, Tensor] = {None: net(x)}
        for config in CONFIGS:
            with net.at(*config):
                found[config] = net(x)
    for one, other in itertools.combinations(CONFIGS, 2):
        assert not torch.equal(found[one], found[other])  # so that a mistake would show
    return found


Calls = Callable[[int, int], Iterator[bool]]


@pytest.fixture(scope="module")
def calls(net: ElasticNet, x: Tensor, answers: dict[Config | None, Tensor]) -> Calls:
    def made(seed: int, count: int) -> Iterator[bool]:
        """`count` calls in drawn configurations, nested now and then; whether each gave what one thread gets."""
        draw = random.Random(seed)
        while count > 0:
            outer, inner = draw.choice(CONFIGS), draw.choice(CONFIGS)
            with net.at(*outer):
                yield torch.equal(net(x), answers[outer])
                if draw.random() < 0.3:
                    with net.at(*inner):
                        yield torch.equal(net(x), answers[inner])
                    yield torch.equal(net(x), answers[outer])
                    count -= 2
                yield torch.equal(net(x), answers[outer])
            yield torch.equal(net(x), answers[None])
            count -= 3

    return made


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_eight_threads(calls: Calls, count: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: list(calls(seed, count // 8)), range(8)))
    right = [one for each in found for one in each]
    assert len(right) >= count
    assert all(right)


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_sixty_four_tasks(calls: Calls, net: ElasticNet, count: int) -> None:
    async def task(seed: int) -> list[bool]:
        found = []
        for right in calls(seed, count // 64):
            found.append(right)
            await asyncio.sleep(0)  # the others run, also within a scope
        return found

    async def tasks() -> list[list[bool]]:
        return await asyncio.gather(*(task(seed) for seed in range(64)))

    right = [one for each in asyncio.run(tasks()) for one in each]
    assert len(right) >= count // 64 * 64
    assert all(right)
    assert net.active.scope is net.active.full


def test_what_begins_within_a_scope(net: ElasticNet) -> None:
    """A thread begins without, a task begins in it and keeps it."""
    seen: dict[str, Config] = {}

    def see(name: str) -> None:
        seen[name] = net.active.config

    async def late(name: str) -> None:
        await asyncio.sleep(0.01)
        see(name)

    async def tasks() -> None:
        with net.at(0.5, 12):
            one = asyncio.create_task(late("task"))
            await asyncio.to_thread(see, "to_thread")
        see("after")
        await one

    with net.at(0.25, 8):
        thread = threading.Thread(target=see, args=("thread",))
        thread.start()
        thread.join()
        asyncio.run(tasks())
        see("scope")
    assert seen == {
        "thread": (1.0, 16), "task": (0.5, 12), "to_thread": (0.5, 12), "after": (0.25, 8), "scope": (0.25, 8)
    }  # fmt: skip
    assert net.active.config == (1.0, 16)


def test_scopes_that_end_out_of_order_leave_nothing(net: ElasticNet) -> None:
    """Those of generators, which share the scope of whoever advances them."""

    def scope(width: float) -> Iterator[Config]:
        with net.at(width, 8):
            yield net.active.config

    one, two, three = scope(0.25), scope(0.5), scope(0.75)
    assert [next(each) for each in (one, two, three)] == [(0.25, 8), (0.5, 8), (0.75, 8)]
    two.close()  # type: ignore[attr-defined]
    assert net.active.config == (0.75, 8)
    three.close()  # type: ignore[attr-defined]
    assert net.active.config == (0.25, 8)
    one.close()  # type: ignore[attr-defined]
    assert net.active.scope is net.active.full


def test_an_error_ends_the_scope(net: ElasticNet, x: Tensor) -> None:
    with pytest.raises(RuntimeError), net.at(0.5, 8):
        net(x[:, :2])
    assert net.active.scope is net.active.full


@torch.no_grad()
def test_copies_and_pickles(net: ElasticNet, x: Tensor, answers: dict[Config | None, Tensor]) -> None:
    """A copy made within a scope runs in it as long as it is open; a pickle holds no scope."""
    config, other = Config(0.5, 12), Config(0.25, 8)
    with net.at(*config):
        made, kept = copy.deepcopy(net), pickle.dumps(net)
        assert torch.equal(made(x), answers[config])
        assert torch.equal(pickle.loads(kept)(x), answers[None])
        with net.at(*other):
            assert torch.equal(made(x), answers[config])
        with made.at(*other):
            assert torch.equal(made(x), answers[other])
            assert torch.equal(net(x), answers[config])
    assert torch.equal(made(x), answers[None])
    with net.at(*config):
        assert torch.equal(made(x), answers[None])
    assert all(module.elastic_config is made.active for module in made.modules() if hasattr(module, "elastic_config"))


def replica_of(net: nn.Module) -> nn.Module:
    """What `torch.nn.parallel.replicate` makes, on the same device."""
    made = {module: module._replicate_for_data_parallel() for module in net.modules()}
    for module, replica in made.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else made[child]
        for held in ("_parameters", "_buffers"):
            vars(replica)[held] = dict(vars(module)[held])
    return made[net]


@torch.no_grad()
def test_data_parallel_runs_in_the_scope_of_its_caller(
    net: ElasticNet, x: Tensor, answers: dict[Config | None, Tensor]
) -> None:
    found: dict[object, Tensor] = {}

    def run(name: object, replica: nn.Module, config: Config | None = None) -> None:
        with torch.no_grad():
            if config is None:
                found[name] = replica(x)
            else:
                with replica.at(*config):  # type: ignore[operator]
                    found[name] = replica(x)

    def in_a_thread(*arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments)
        thread.start()
        thread.join()

    config, other = Config(0.5, 12), Config(0.25, 8)
    with net.at(*config):
        replica = replica_of(net)
        in_a_thread("scope", replica)
        in_a_thread("own", replica, other)  # as a mutual learning step does
    in_a_thread("none", replica_of(net))
    assert torch.equal(found["scope"], answers[config])
    assert torch.equal(found["own"], answers[other])
    assert torch.equal(found["none"], answers[None])
    assert torch.equal(nn.DataParallel(net)(x), answers[None])
    with net.at(*config):
        assert torch.equal(nn.DataParallel(net)(x), answers[config])


def test_distributed_data_parallel_runs_in_the_scope(x: Tensor, tmp_path) -> None:
    torch.manual_seed(0)
    net = make_elastic(Net(), resolutions=(16, 12, 8)).train()
    with net.at(0.5, 12):
        net(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        with net.at(0.5, 12):
            loss = wrapped(x).square().sum()
        loss.backward()  # outside of the scope
    finally:
        dist.destroy_process_group()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-6)


def test_backwards_beside_each_other_compute_again_in_their_own_configurations(x: Tensor) -> None:
    """Gradient checkpointing, in threads that each have a network's copy of the weights' gradients."""
    torch.manual_seed(0)
    model = Net()
    model.saving = True
    net = make_elastic(model, resolutions=(16, 12, 8)).train()
    weights = [p for name, p in net.named_parameters() if "three" in name]

    def gradients(config: Config) -> list[Tensor]:
        with net.at(*config):
            loss = net(x).square().sum()
        with net.at(0.75, 16):  # what is in force while gradients pass is another one
            return list(torch.autograd.grad(loss, weights))

    wanted = {config: gradients(config) for config in CONFIGS}
    with ThreadPoolExecutor(4) as pool:
        drawn = [random.Random(0).choice(CONFIGS) for _ in range(60)]
        for config, found in zip(drawn, pool.map(gradients, drawn), strict=True):
            for one, other in zip(found, wanted[config], strict=True):
                assert torch.equal(one, other)
    assert net.active.recalled == {}


def test_a_runtime_answers_wholly_in_one_configuration(net: ElasticNet, x: Tensor) -> None:
    """Also where another thread changes it while an input is made to fit."""
    runtime = Runtime(net, [(1.0, 16), (0.25, 8)])
    wanted = runtime(x)
    fitted = runtime._fitted

    def meanwhile(*arguments: Any) -> Any:
        thread = threading.Thread(target=runtime.use, args=(0.25, 8))
        thread.start()
        thread.join()
        return fitted(*arguments)

    runtime._fitted = meanwhile  # type: ignore[method-assign]
    assert torch.equal(runtime(x), wanted)
    assert runtime.config == (0.25, 8)
    assert not torch.equal(runtime(x), wanted)


@pytest.mark.slow
def test_compiled_once_for_each_configuration(net: ElasticNet, x: Tensor) -> None:
    """In one graph each, in whatever thread and order, and no graph for a scope that is entered again."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = copy.deepcopy(net)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    configs = CONFIGS[:5]

    def call(config: Config) -> bool:
        with torch.no_grad(), model.at(*config):
            return bool(torch.allclose(compiled(x), model(x), atol=1e-6))

    assert all(call(config) for config in configs)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= len(configs) + 1
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(call, configs * 5))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_scope_entered_in_what_is_compiled_is_right(net: ElasticNet, x: Tensor) -> None:
    torch._dynamo.reset()

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        with net.at(*CONFIGS[4]):
            inside = net(x)
        return inside, net(x)

    with torch.no_grad():
        for one, other in zip(torch.compile(call, backend="eager")(x), call(x), strict=True):
            assert torch.equal(one, other)
    assert net.active.scope is net.active.full
