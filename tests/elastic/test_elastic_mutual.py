"""The mutual learning step against the paper's equations written out, and its plan."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from elastic_nets import NETS, elastic
from elastic_nets import SIDES as SMALL
from torch import nn

from leanconv.elastic import MutualObjective, make_elastic, plan_step
from leanconv.elastic.net import resized
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
    with pytest.raises(RuntimeError):  # maps of other sizes have no distillation
        objective(inputs, targets, 1)
    objective.net.resolutions = twin.net.resolutions = (16,)
    assert torch.equal(objective(inputs, targets, 1)["loss"], twin(inputs, targets, 1)["loss"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: MutualObjective(nn.Linear(2, 2)), "trains an elastic network, got Linear"),
        (lambda net: MutualObjective(net, num_random=-1), "num_random must be"),
        (lambda net: MutualObjective(net, temperature=0), "temperature must be above 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(LeanconvError, match=message):
        make(elastic("residual")[1])
