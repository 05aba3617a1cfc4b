"""The mutual learning step against the paper's equations written out, and its plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastic_nets import NETS, elastic
from elastic_nets import SIDES as SMALL
from leanconv.elastic import MutualObjective, make_elastic, plan_step
from leanconv.elastic.inputs import resized
from leanconv.errors import LeanconvError

WIDTHS, SIDES = (0.25, 1.0), (224, 192, 160, 128)


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 16, 16), torch.randint(5, (size,))


def test_plan_is_a_sandwich():
    for step in range(50):
        teacher, *students = plan_step(3, step, WIDTHS, SIDES, 2)
        assert teacher == (1.0, 224)
        assert len(students) == 3
        assert students[-1].width == 0.25
        assert [s.width for s in students] == sorted((s.width for s in students), reverse=True)
        assert all(0.25 <= s.width <= 1.0 and s.resolution in SIDES for s in students)


def test_plan_depends_on_seed_and_step_alone():
    torch.manual_seed(1)
    one = [plan_step(0, step, WIDTHS, SIDES) for step in range(20)]
    torch.manual_seed(2)
    assert one == [plan_step(0, step, WIDTHS, SIDES) for step in range(20)]
    assert len(set(one)) == 20
    assert one != [plan_step(1, step, WIDTHS, SIDES) for step in range(20)]


def test_resolutions_are_drawn_evenly_for_every_student():
    drawn = [c.resolution for step in range(2000) for c in plan_step(0, step, WIDTHS, SIDES)[1:]]
    assert all(abs(drawn.count(side) / len(drawn) - 0.25) < 0.03 for side in SIDES)


def test_the_full_networks_resolution_can_be_drawn_too():
    """Section 3.2's trial. The students of a step are those of the paper's step."""
    plans = [plan_step(0, step, WIDTHS, SIDES, draw_full=True) for step in range(400)]
    assert all(plan[1:] == plan_step(0, step, WIDTHS, SIDES)[1:] for step, plan in enumerate(plans))
    assert {plan[0].width for plan in plans} == {1.0}
    sides = [plan[0].resolution for plan in plans]
    assert all(abs(sides.count(side) / 400 - 0.25) < 0.07 for side in SIDES)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_are_those_of_the_equations(temperature):
    _, net = elastic("residual")
    net.train()
    objective = MutualObjective(net, seed=5, temperature=temperature)
    inputs, targets = batch()
    parts = objective(inputs, targets, step=11)
    parts["loss"].backward()
    mine = {name: p.grad.clone() for name, p in net.named_parameters()}

    net.zero_grad()
    full, *students = plan_step(5, 11, net.widths, net.resolutions)
    with net.at(full.width):
        logits = net(inputs)
    ce = F.cross_entropy(logits, targets)
    ce.backward()
    teacher = (logits.detach() / temperature).softmax(1)
    total = ce.detach()
    for width, resolution in students:
        with net.at(width):
            student = net(resized(inputs, resolution)) / temperature
        kl = (teacher * (teacher.log() - student.log_softmax(1))).sum(1).mean() * temperature**2
        kl.backward()
        total += kl.detach()
    torch.testing.assert_close(parts["loss"].detach(), total)
    torch.testing.assert_close(parts["ce"] + parts["kl"], total)
    for name, p in net.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-4, atol=1e-6)
    assert all(not part.requires_grad for name, part in parts.items() if name != "loss")


def test_every_parameter_takes_part():
    _, net = elastic("concat")
    MutualObjective(net.train())(*batch(), step=0)["loss"].backward()
    assert all(p.grad is not None for p in net.parameters())


def test_running_statistics_are_those_of_the_teacher_alone():
    model, net = elastic("residual")
    inputs, targets = batch()
    model.train()(inputs)
    MutualObjective(net.train())(inputs, targets, step=0)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, net.model.get_buffer(name))


def test_predict_validates_without_calibration():
    _, net = elastic("residual")
    objective = MutualObjective(net)
    inputs, targets = batch()
    objective.train()(inputs, targets, step=0)
    objective.eval()
    reference = net.extract().eval()
    assert torch.allclose(objective.predict(inputs), reference(inputs), atol=1e-6)
    assert objective.predict(torch.randn(2, 3, 20, 20)).shape == (2, 5)
    assert objective.net is net


def test_a_few_steps_learn():
    net = make_elastic(NETS["residual"](), (0.25, 1.0), SMALL)
    objective = MutualObjective(net.train())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = batch(16)
    inputs = inputs + 3 * torch.randn(5, 3)[targets, :, None, None]  # every class has a colour
    losses = []
    for step in range(12):
        parts = objective(inputs, targets, step)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["ce"].item())
    assert losses[-1] < 0.5 * losses[0]
    with net.at(0.25), torch.no_grad():
        assert F.cross_entropy(net(inputs), targets) < losses[0]


def test_copies_train_alike():
    _, net = elastic("gated")
    objective = MutualObjective(net.train())
    twin = copy.deepcopy(objective)
    inputs = torch.randn(4, 3, 1, 1).expand(4, 3, 16, 16) * torch.rand(4, 1, 16, 16)
    targets = torch.randint(6, (4, 16, 16))
    with pytest.raises(LeanconvError, match="a network whose outputs follow the size of its input a single resolution"):
        objective(inputs, targets, 1)
    objective.net.resolutions = twin.net.resolutions = (16,)
    assert torch.equal(objective(inputs, targets, 1)["loss"], twin(inputs, targets, 1)["loss"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: MutualObjective(nn.Linear(2, 2)), "trains an elastic network, got Linear"),
        (lambda net: MutualObjective(net, num_random=-1), "num_random must be"),
        (lambda net: MutualObjective(net, temperature=0), "temperature must be above 0"),
        (lambda net: MutualObjective(net, hard_labels=1.5), "hard_labels is a share from 0 to 1, got 1.5"),
        (lambda net: MutualObjective(net, resolutions=(12,)), r"must include 16, .* got \[12\]"),
        (lambda net: MutualObjective(net, resolutions=(16, 14)), "resolution must be one of 16, 12"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(LeanconvError, match=message):
        make(elastic("residual")[1])


# ---------------------------------------------------------------------------------------------------------- the options


def by_the_equations(net, inputs, targets, plan, *, temperature=1.0, hard_labels=0.0, teacher=None):
    """The loss of a step written out once more, with plain softmax and logarithm."""

    def distance(target, logits):
        return (target * (target.log() - (logits / temperature).log_softmax(1))).sum(1).mean() * temperature**2

    full, *students = plan
    with net.at(full.width):
        logits = net(inputs)
    target = ((logits if teacher is None else teacher(inputs)).detach() / temperature).softmax(1)
    loss = F.cross_entropy(logits, targets)
    if teacher is not None:
        loss = loss + distance(target, logits)
    for width, resolution in students:
        with net.at(width):
            logits = net(resized(inputs, resolution))
        loss = loss + (1 - hard_labels) * distance(target, logits) + hard_labels * F.cross_entropy(logits, targets)
    return loss


def gradients(net, loss):
    net.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def frozen() -> nn.Module:
    return NETS["concat"]().eval()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_random": 0}, {"hard_labels": 0.3}, {"hard_labels": 1.0}, {"resolutions": (16,)}, {"teacher": True}],
    ids=str,
)
def test_every_option_in_both_modes_is_its_equation(options, low_memory):
    _, net = elastic("residual")
    net = net.double().train()
    options = {**options, **({"teacher": frozen().double()} if "teacher" in options else {})}
    objective = MutualObjective(net, seed=5, temperature=2.0, low_memory=low_memory, **options)
    inputs, targets = batch()
    parts = objective(inputs.double(), targets, step=3)
    mine = gradients(net, parts["loss"])
    plan = plan_step(5, 3, net.widths, options.get("resolutions", net.resolutions), options.get("num_random", 2))
    assert objective.plan(3) == plan
    told = {name: options[name] for name in ("hard_labels", "teacher") if name in options}
    loss = by_the_equations(net, inputs.double(), targets, plan, temperature=2.0, **told)
    reference = gradients(net, loss)
    torch.testing.assert_close(parts["loss"].detach(), loss.detach())
    torch.testing.assert_close(sum(value for name, value in parts.items() if name != "loss"), loss.detach())
    for name, gradient in reference.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-12)


def test_us_net_trains_at_one_resolution():
    objective = MutualObjective(elastic("residual")[1], resolutions=(16,))
    assert {config.resolution for step in range(20) for config in objective.plan(step)} == {16}


def test_a_teacher_is_no_part_of_what_is_trained():
    _, net = elastic("residual")
    teacher = frozen().train()
    objective = MutualObjective(net, teacher=teacher)
    plain = MutualObjective(net)
    assert not teacher.training
    assert list(objective.state_dict()) == list(plain.state_dict())
    assert list(map(id, objective.parameters())) == list(map(id, plain.parameters()))
    objective.train()(*batch(), step=0)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    objective.double()
    assert all(p.dtype == torch.float64 for p in teacher.parameters())
    with pytest.raises(LeanconvError, match=r"the teacher's answer has shape \(8, 7\), a student's \(8, 5\)"):
        MutualObjective(net, teacher=nn.Sequential(nn.Flatten(), nn.Linear(768, 7)).double())(
            torch.randn(8, 3, 16, 16).double(), torch.zeros(8, dtype=torch.int64), 0
        )


# ----------------------------------------------------------------------------------------------------------- low memory


@contextmanager
def saved_for_backward(net: nn.Module) -> Iterator[list[int]]:
    """[bytes alive now, their maximum] of what autograd keeps for a backward, weights apart."""
    count = [0, 0]
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            self.size = 0 if tensor.untyped_storage().data_ptr() in weights else tensor.nbytes
            count[0] += self.size
            count[1] = max(count)

        def __del__(self) -> None:
            count[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield count


def test_low_memory_holds_one_sub_network_at_a_time():
    _, net = elastic("concat")
    net.train()
    inputs, targets = batch(32)
    peaks = {}
    for low_memory in (False, True):
        objective = MutualObjective(net, resolutions=(16,), low_memory=low_memory)
        with saved_for_backward(net) as count:
            loss = objective(inputs, targets, 0)["loss"]
            loss.backward()
        del loss
        peaks[low_memory] = count[1]
        assert count[0] == 0
    with saved_for_backward(net) as count:
        F.cross_entropy(net(inputs), targets).backward()
    full = count[1]
    assert peaks[False] > 1.8 * full  # the full network and three narrower ones
    assert full <= peaks[True] < 1.05 * full


def test_low_memory_behaves_like_one_backward():
    _, net = elastic("concat")
    net.train()
    inputs, targets = batch()
    both = [MutualObjective(net, low_memory=low_memory) for low_memory in (False, True)]
    once = [gradients(net, objective(inputs, targets, 0)["loss"]) for objective in both]
    for name, gradient in once[0].items():
        torch.testing.assert_close(once[1][name], gradient, rtol=1e-5, atol=1e-6)
    halves = [gradients(net, both[1](inputs, targets, step)["loss"]) for step in (0, 1)]
    net.zero_grad()
    for step in (0, 1):  # accumulated over two batches, scaled as an engine does
        (both[1](inputs, targets, step)["loss"] / 2).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        parts = both[1](inputs, targets, 0)
    assert not parts["loss"].requires_grad
    loss = both[1](inputs, targets, 0)["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="no second one"):
        loss.backward()


def test_low_memory_leaves_frozen_and_unused_parameters_alone():
    _, net = elastic("residual")
    net.train().model.stem.requires_grad_(False)
    net.model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    MutualObjective(net, low_memory=True)(*batch(), step=0)["loss"].backward()
    assert net.model.unused.grad is None
    assert all(p.grad is None for p in net.model.stem.parameters())
    assert net.model.head.weight.grad is not None


def test_low_memory_refuses_float16():
    _, net = elastic("residual")
    with torch.autocast("cpu", torch.float16), pytest.raises(LeanconvError, match="in float16 small ones would vanish"):
        MutualObjective(net.train(), low_memory=True)(*batch(), step=0)
    with torch.autocast("cpu", torch.bfloat16):
        MutualObjective(net.train(), low_memory=True)(*batch(), step=0)["loss"].backward()
