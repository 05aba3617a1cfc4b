"""Folders that leanconv 0.1 has saved: its story keys `knobs` and `example_size`, read ever since.

0.1 wrote the folders from `saved_nets.py`; `expected.json` is what the networks answered then.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanconv.build import load
from leanconv.elastic import ElasticNet
from leanconv.story import story_of

SAVED = Path(__file__).parent / "saved_by_0_1"
INPUT = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def expected(name: str) -> torch.Tensor:
    return torch.tensor(json.loads((SAVED / "expected.json").read_text())[name])


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SAVED))


@pytest.mark.parametrize("name", ["octave", "elastic", "extract"])
def test_its_files_have_the_old_keys(name: str) -> None:
    text = (SAVED / name / "story.json").read_text()
    assert '"knobs"' in text
    assert '"example_size"' in text


def test_an_octave_network_answers_as_then() -> None:
    net = load(SAVED / "octave", trust_code=True)
    torch.testing.assert_close(net(INPUT), expected("octave"), rtol=0, atol=2e-6)
    story = story_of(net)
    assert story is not None
    assert story.options == {"width": 8}
    assert story.steps[0][1]["size"] == [3, 16, 16]


def test_an_elastic_network_answers_as_then() -> None:
    net = load(SAVED / "elastic", trust_code=True)
    assert isinstance(net, ElasticNet)
    assert len(net.calibrated) == 2
    with net.at(0.5, 12):
        torch.testing.assert_close(net(INPUT), expected("elastic"), rtol=0, atol=2e-6)


def test_an_extracted_network_answers_as_then() -> None:
    net = load(SAVED / "extract", trust_code=True)
    torch.testing.assert_close(net(INPUT[..., :12, :12]), expected("extract"), rtol=0, atol=2e-6)
