"""Clip and video accuracy: the averages in the paper's order, one video in memory at a time, figures by hand."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leanconv.errors import DataError
from leanconv.train import evaluate_videos, save_predictions


@dataclass(frozen=True)
class Sample:
    name: str
    label: int
    clips: Tensor


class Told(nn.Module):
    """Gives the logits that the first pixels of a clip spell out, and keeps the batch sizes it saw."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.BatchNorm1d(classes)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        assert not self.training
        assert not torch.is_grad_enabled()
        return x.flatten(1)[:, : self.classes]


class ToldByPosition(Told):
    """The same with two positions, the second from the following pixels."""

    def positions(self, x: Tensor, *, crop: int) -> Tensor:
        assert crop == 4
        return x.flatten(1)[:, : 2 * self.classes].reshape(len(x), 2, self.classes).transpose(1, 2)


def clips(*probabilities: tuple[float, ...]) -> Tensor:
    """Clips (n, 3, 2, 4, 4) whose first pixels are the logarithms of the given probabilities."""
    made = torch.zeros(len(probabilities), 3 * 2 * 4 * 4)
    for clip, row in zip(made, probabilities, strict=True):
        clip[: len(row)] = torch.tensor([log(value) for value in row])
    return made.reshape(-1, 3, 2, 4, 4)


def test_probabilities_are_averaged_over_clips() -> None:
    # Clip by clip the classes are 0, 1, 1; the mean of the probabilities is (.49, .46, .05), so the video is class 0.
    rows = ((0.97, 0.02, 0.01), (0.25, 0.68, 0.07), (0.25, 0.68, 0.07))
    result = evaluate_videos(Told(3), [Sample("a", 0, clips(*rows))], crop=4)
    (said,) = result.predictions
    assert said.classes == (0, 1, 2)
    assert said.probabilities == pytest.approx((0.49, 0.46, 0.05), abs=1e-6)
    assert (said.clips, said.right_clips) == (3, 1)
    assert (result.clip1, result.video1, result.video5) == (1 / 3, 1.0, None)


def test_the_rule_differs_from_averaging_logits() -> None:
    rows = ((0.9, 0.09, 0.01), (0.0001, 0.4, 0.5999))
    logits = clips(*rows).flatten(1)[:, :3]
    assert int(logits.mean(0).argmax()) == 1
    result = evaluate_videos(Told(3), [Sample("a", 0, clips(*rows))], crop=4)
    assert result.predictions[0].classes[0] == 0


def test_softmax_is_taken_at_each_position_before_the_mean() -> None:
    here, there = (0.9, 0.09, 0.01), (0.0001, 0.4, 0.5999)
    result = evaluate_videos(ToldByPosition(3), [Sample("a", 0, clips((*here, *there)))], crop=4)
    assert result.predictions[0].classes[0] == 0
    assert result.predictions[0].probabilities[0] == pytest.approx((0.9 + 0.0001) / 2, abs=1e-6)
    assert result.clip1 == 1.0


def test_shares_over_videos_and_clips() -> None:
    def sharp(best: int) -> tuple[float, ...]:
        return tuple(0.5 if k == best else 0.1 - 0.01 * k for k in range(7))

    samples = [
        Sample("right", 2, clips(sharp(2), sharp(2))),
        Sample("half", 3, clips(sharp(3), sharp(0), sharp(0))),  # wrong as a video, among the best five
        Sample("never", 6, clips(sharp(0))),  # class 6 is the least probable of seven
    ]
    result = evaluate_videos(Told(7), samples, crop=4)
    assert (result.videos, result.clips, result.classes) == (3, 6, 7)
    assert result.clip1 == 3 / 6
    assert result.video1 == 1 / 3
    assert result.video5 == 2 / 3
    assert [len(said.classes) for said in result.predictions] == [5, 5, 5]


def test_a_video_goes_through_in_parts_with_the_same_result() -> None:
    torch.manual_seed(1)
    sample = Sample("a", 1, torch.randn(11, 3, 2, 4, 4))
    whole, parts = Told(5), Told(5)
    one = evaluate_videos(whole, [sample], crop=4, clips_at_once=100)
    other = evaluate_videos(parts, [sample], crop=4, clips_at_once=4)
    assert (whole.batches, parts.batches) == ([11], [4, 4, 3])
    assert one.predictions == other.predictions


def test_one_video_is_in_memory_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def videos() -> Iterator[Sample]:
        for number in range(3):
            assert [ref() for ref in alive] == [None] * number
            made = torch.randn(4, 3, 2, 4, 4)
            alive.append(weakref.ref(made))
            sample = Sample(str(number), 0, made)
            del made
            yield sample
            del sample

    assert evaluate_videos(Told(3), videos(), crop=4).videos == 3


def test_every_video_is_watched_and_modes_stay() -> None:
    net = Told(3).train()
    net.norm.eval()
    seen = []
    samples = [Sample("a", 0, clips((0.5, 0.3, 0.2))), Sample("b", 2, clips((0.5, 0.3, 0.2)))]
    evaluate_videos(net, samples, crop=4, watch=lambda sample, said: seen.append((sample.name, said.classes[0])))
    assert seen == [("a", 0), ("b", 0)]
    assert net.training
    assert not net.norm.training


def test_nothing_to_test_on_and_foreign_labels() -> None:
    with pytest.raises(DataError, match="there is no video to test on"):
        evaluate_videos(Told(3), [], crop=4)
    with pytest.raises(DataError, match="a label is 3, but the network has 3 outputs"):
        evaluate_videos(Told(3), [Sample("a", 3, clips((0.5, 0.3, 0.2)))], crop=4)


def test_predictions_in_a_file(tmp_path: Path) -> None:
    samples = [
        Sample("x/a, b.avi", 0, clips((0.6, 0.2, 0.1, 0.05, 0.03, 0.02))),
        Sample("y.avi", 4, clips((0.1, 0.1, 0.6, 0.09, 0.08, 0.03))),
    ]
    result = evaluate_videos(Told(6), samples, crop=4)
    save_predictions(tmp_path / "said.csv", result.predictions, ["hug", "kick", "shake hands", "point", "punch"])
    with open(tmp_path / "said.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "label", "prediction", "probability", "top5"]
    assert (rows[0]["name"], rows[0]["label"], rows[0]["prediction"]) == ("x/a, b.avi", "hug", "hug")
    assert float(rows[0]["probability"]) == pytest.approx(0.6, abs=1e-6)
    assert (rows[1]["label"], rows[1]["prediction"]) == ("punch", "shake hands")
    assert rows[0]["top5"] == "hug|kick|shake hands|point|punch"
    unnamed = evaluate_videos(Told(6), [Sample("z", 5, clips((0.1, 0.1, 0.1, 0.1, 0.1, 0.5)))], crop=4)
    save_predictions(tmp_path / "more.csv", unnamed.predictions, ["hug"])
    assert (tmp_path / "more.csv").read_text().splitlines()[1].startswith("z,5,5,0.5,5|")
