"""The query table: measured right, never over budget, and the same after a round trip through a file."""

from __future__ import annotations

import csv

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from elastic_nets import NETS, elastic
from leanconv.elastic import Config, calibrate, make_elastic
from leanconv.elastic.inputs import resized
from leanconv.errors import BudgetError, DataError, LeanconvError, NotCalibrated, UnknownName
from leanconv.query import QueryTable, Row, TimingSetup
from leanconv.query.measure import machine
from leanconv.query.rows import Time
from leanconv.story import Story, remember

CONFIGS = [(1.0, 16), (0.5, 16), (0.25, 12)]

rows = st.builds(
    Row,
    width=st.sampled_from([0.25, 0.5, 1.0]),
    resolution=st.sampled_from([16, 12]),
    accuracy=st.floats(0, 1),
    macs=st.integers(1, 50),
    params=st.integers(1, 50),
    peak_bytes=st.none() | st.integers(1, 50),
    latency_ms=st.none() | st.floats(0.1, 10),
    times=st.dictionaries(
        st.sampled_from(["eager_t4_b1", "onnxruntime_t1_b8"]),
        st.builds(Time, st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0.1, 9)),
    ),
)
tables = st.lists(rows, min_size=1, max_size=12).map(lambda found: QueryTable(tuple(found)))
limits = st.none() | st.integers(1, 50)


@given(tables, limits, limits, limits, st.none() | st.floats(0.1, 10), st.none() | st.floats(0, 1), st.integers(0, 3))
def test_pick_is_the_best_within_the_budget_or_says_so(table, macs, params, memory, latency, accuracy, which):
    setting = None if which == 3 or which >= len(table.setups) else table.setups[which]

    chosen = setting or next(iter(table.setups), None)

    def time(row):
        if chosen == "eager_t1_b1":
            return row.latency_ms
        return row.times[chosen].median_ms if chosen in row.times else None

    def fits(row):
        return (
            (macs is None or row.macs <= macs)
            and (params is None or row.params <= params)
            and (memory is None or (row.peak_bytes is not None and row.peak_bytes <= memory))
            and (latency is None or (time(row) is not None and time(row) <= latency))
            and (accuracy is None or row.accuracy >= accuracy)
        )

    asked = {
        "max_macs": macs,
        "max_params": params,
        "max_peak_bytes": memory,
        "max_latency_ms": latency,
        "min_accuracy": accuracy,
        "setup": setting,
    }
    if latency is not None and all(time(row) is None for row in table.rows):
        with pytest.raises(LeanconvError, match="without latencies"):
            table.pick(**asked)
    elif memory is not None and all(row.peak_bytes is None for row in table.rows):
        with pytest.raises(LeanconvError, match="without memory"):
            table.pick(**asked)
    elif not any(map(fits, table.rows)):
        with pytest.raises(BudgetError, match="no configuration"):
            table.pick(**asked)
    else:
        row = table.pick(**asked)
        assert fits(row)
        others = [other for other in table.rows if fits(other)]
        if accuracy is not None and macs is params is memory is latency is None:
            assert row.macs == min(other.macs for other in others)
        else:
            assert row.accuracy == max(other.accuracy for other in others)
            assert row.macs == min(other.macs for other in others if other.accuracy == row.accuracy)


@given(tables)
def test_pareto(table):
    for row in table.rows:
        better = [
            o
            for o in table.rows
            if (o.macs < row.macs and o.accuracy >= row.accuracy) or (o.macs <= row.macs and o.accuracy > row.accuracy)
        ]
        assert row.pareto == (not better)
    assert set(map(id, table.front())) == {id(row) for row in table.rows if row.pareto}


@given(tables, st.sampled_from(["macs", "params", "peak_bytes", "latency_ms"]))
def test_every_row_is_beaten_by_the_front_or_on_it(table, by):
    front = table.front(by)
    costs = [getattr(row, by) for row in front]
    assert costs == sorted(costs)
    for row in table.rows:
        if getattr(row, by) is not None:
            assert any(best.accuracy >= row.accuracy and getattr(best, by) <= getattr(row, by) for best in front)
        else:
            assert not any(row is best for best in front)


@settings(deadline=None)  # files are flushed to the disk
@given(table=tables)
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_round_trip(tmp_path_factory, table, suffix):
    path = tmp_path_factory.mktemp("table") / f"table{suffix}"
    table = QueryTable(table.rows, {"model": 'a "b", c', "list": [1, 2.5, None]})
    assert QueryTable.load(table.save(path)) == table
    assert [p.name for p in path.parent.iterdir()] == [path.name]


SMALL = QueryTable(
    tuple(Row(width=w, resolution=32, accuracy=w, macs=int(100 * w), params=int(10 * w) + 1) for w in (0.25, 0.5, 1.0))
)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_macs": 20}, r"within macs <= 20: the cheapest is 0.25-32 with macs = 25; raise the limit"),
        ({"max_macs": 20, "max_params": 1}, r"0.25-32 with macs = 25; 0.25-32 with params = 3"),
        ({"min_accuracy": 1.5}, r"reaches an accuracy of 1.5: the best is 1-32 with 1; lower min_accuracy$"),
        ({"min_accuracy": 0.9, "max_macs": 60}, r"with macs <= 60 reaches .* best is 0.5-32 with 0.5; .* or raise"),
    ],
)
def test_nothing_within_budget(limits, message):
    with pytest.raises(BudgetError, match=message):
        SMALL.pick(**limits)


def test_other_bad_budgets():
    with pytest.raises(LeanconvError, match="measured without latencies"):
        SMALL.pick(max_latency_ms=3)
    with pytest.raises(LeanconvError, match="limit of macs must be a number"):
        SMALL.pick(max_macs="60")
    with pytest.raises(LeanconvError, match="limit of macs must be a number"):
        SMALL.pick(max_macs=float("nan"))
    with pytest.raises(BudgetError, match="no rows"):
        QueryTable(()).pick()


def test_bad_files(tmp_path):
    with pytest.raises(UnknownName, match=r"a .json or a .csv file, got the suffix '.txt'"):
        SMALL.save(tmp_path / "table.txt")
    with pytest.raises(DataError, match="no query table there"):
        QueryTable.load(tmp_path / "gone.json")
    for name, text in (("a.json", "{"), ("b.json", "{}"), ("c.csv", "x,y\n1,2\n"), ("d.csv", "# {\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="is not a query table, or is damaged"):
            QueryTable.load(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(LeanconvError, match="cannot be written"):
        SMALL.save(tmp_path / "file" / "table.json")


def test_csv_is_readable_by_others(tmp_path):
    lines = SMALL.save(tmp_path / "t.csv").read_text().splitlines()
    assert lines[0].startswith("# {")
    found = list(csv.DictReader(lines[1:]))
    assert [row["macs"] for row in found] == ["25", "50", "100"]
    (tmp_path / "t.csv").write_text("\n".join(lines[1:]) + "\n")
    assert QueryTable.load(tmp_path / "t.csv").rows == SMALL.rows


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    _, net = elastic("residual")
    remember(net, Story(model="residual"))
    loader = [(torch.randn(16, 3, 16, 16), torch.randint(5, (16,))) for _ in range(3)]
    calibrate(net, loader, CONFIGS)
    return net, loader, QueryTable.measure(net, loader, rounds=3)


def test_measured_rows(measured):
    net, loader, table = measured
    assert [row.config for row in table.rows] == CONFIGS
    for row in table.rows:
        static = net.extract(row.width, row.resolution).eval()
        with torch.no_grad():
            right = sum((static(resized(x, row.resolution)).argmax(1) == y).sum().item() for x, y in loader)
        assert row.accuracy == right / 48
        assert row.params == sum(p.numel() for p in static.parameters())
        with FlopCounterMode(display=False) as flops:
            static(torch.zeros(1, 3, row.resolution, row.resolution))
        assert row.macs == flops.get_total_flops() / 2
        assert 0 < row.latency_low_ms <= row.latency_ms <= row.latency_high_ms
        weights = sum(tensor.nbytes for tensor in static.state_dict().values())
        largest = 32 * row.resolution**2 * 4  # one map of the stem
        assert weights + 2 * 0.25 * largest < row.peak_bytes < weights + 6 * largest


def test_measured_about(measured, tmp_path):
    _, _, table = measured
    assert table.about["images"] == 48
    assert table.about["story"]["model"] == "residual"
    assert table.about["resolutions"] == [16, 12]
    assert set(table.about["machine"]) >= {"cpu", "torch", "device"}
    assert table.about["latency"]["threads"] == 1
    assert QueryTable.load(table.save(tmp_path / "t.json")) == table


def test_measure_without_latency(measured):
    net, loader, _ = measured
    table = QueryTable.measure(net, loader, configs=[(0.5, 16)], latency=False)
    assert len(table.rows) == 1
    assert table.rows[0].latency_ms is None
    assert "latency" not in table.about


def test_measure_refuses(measured):
    net, loader, _ = measured
    with pytest.raises(NotCalibrated, match=r"configuration 0\.75-16"):
        QueryTable.measure(net, loader, configs=[(0.75, 16)])
    with pytest.raises(NotCalibrated, match="no configuration of this network is calibrated"):
        QueryTable.measure(elastic("residual")[1], loader)
    with pytest.raises(DataError, match="yields no images"):
        QueryTable.measure(net, [])
    with pytest.raises(DataError, match="needs labels"):
        QueryTable.measure(net, [torch.zeros(2, 3, 16, 16)])


def test_networks_without_norms_are_measured_on_the_grid():
    net = make_elastic(
        torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Flatten(), torch.nn.Linear(32 * 36, 4)),
        (0.5, 1.0),
        (8,),
    )
    table = QueryTable.measure(net, [(torch.randn(4, 3, 8, 8), torch.zeros(4))], latency=False)
    assert [row.config for row in table.rows] == list(net.configurations())


# ----------------------------------------------------------------------------------------- many setups, many machines


def test_latencies_of_more_setups_are_columns(measured, tmp_path):
    net, _, table = measured
    table = QueryTable(table.rows[:2], table.about)
    more = table.timed(net, [TimingSetup("eager", 1, 4), TimingSetup("onnxruntime")], rounds=2)
    assert more.setups == ("eager_t1_b1", "eager_t1_b4", "onnxruntime_t1_b1")
    for row, before in zip(more.rows, table.rows, strict=True):
        assert (row.config, row.latency_ms) == (before.config, before.latency_ms)
        assert all(0 < time.low_ms <= time.median_ms <= time.high_ms for time in row.times.values())
    for suffix in (".json", ".csv"):
        assert QueryTable.load(more.save(tmp_path / f"t{suffix}")) == more
    header = (tmp_path / "t.csv").read_text().splitlines()[1].split(",")
    assert header[-3:] == ["onnxruntime_t1_b1_median_ms", "onnxruntime_t1_b1_low_ms", "onnxruntime_t1_b1_high_ms"]
    slowest = max(row.times["eager_t1_b4"].median_ms for row in more.rows)
    assert more.pick(max_latency_ms=slowest, setup="eager_t1_b4") in more.rows
    with pytest.raises(UnknownName, match="timing setup 'openvino_t1_b1'"):
        more.pick(max_latency_ms=1, setup="openvino_t1_b1")
    with pytest.raises(LeanconvError, match="latencies of eager_t1_b4 already"):
        more.timed(net, [TimingSetup("eager", 1, 4)], rounds=2)
    with pytest.raises(UnknownName, match="unknown backend 'tvm'"):
        table.timed(net, [TimingSetup("tvm")])


def test_a_table_that_was_first_measured_without_latency_takes_the_first_setup_as_its_own():
    table = SMALL.with_times(
        TimingSetup("openvino", 2, 1),
        {Config(0.5, 32): Time(5.0, 4.0, 6.0), Config(1.0, 32): Time(9.0, 8.0, 9.5)},
        rounds=7,
    )
    assert table.setups == ("openvino_t2_b1",)
    assert [row.latency_ms for row in table.rows] == [None, 5.0, 9.0]
    assert table.about["latency"] == {"backend": "openvino", "threads": 2, "batch": 1, "rounds": 7}
    assert table.pick(max_latency_ms=8).width == 0.5


def test_setups_have_names():
    assert TimingSetup.from_tag(TimingSetup("onnxruntime", 4, 8).tag) == ("onnxruntime", 4, 8)
    for tag in ("eager", "eager_t0_b1", "_t1_b1", "eager_t1_b1_ms"):
        with pytest.raises(UnknownName, match="is no timing setup"):
            TimingSetup.from_tag(tag)


OLD = """# {"model": "CifarResNet", "latency": {"threads": 2, "rounds": 20, "batch": 1, "backend": "torch eager"}}
width,resolution,accuracy,macs,params,latency_ms,latency_low_ms,latency_high_ms,pareto
0.5,16,0.75,100,10,1.5,1.25,2.0,True
"""


def test_files_of_the_first_version_load(tmp_path):
    (tmp_path / "old.csv").write_text(OLD)
    table = QueryTable.load(tmp_path / "old.csv")
    assert table.setups == ("eager_t2_b1",)
    assert table.rows[0].latency_ms == 1.5
    assert table.rows[0].peak_bytes is None
    assert QueryTable.load(table.save(tmp_path / "new.json")) == table
    with pytest.raises(LeanconvError, match="without memory, by an older leanconv"):
        table.pick(max_peak_bytes=10)


def test_latencies_of_another_machine_are_refused_unless_allowed(measured):
    _, _, table = measured
    assert table.pick(max_latency_ms=1e6) in table.rows
    for part, there in (("cpu", "Other CPU"), ("gpu", "Other GPU")):
        foreign = QueryTable(table.rows, {**table.about, "machine": {**table.about["machine"], part: there}})
        with pytest.raises(LeanconvError, match=rf"another machine \({there}, here is .*any_machine"):
            foreign.pick(max_latency_ms=1e6)
        assert foreign.pick(max_latency_ms=1e6, any_machine=True).config == table.pick(max_latency_ms=1e6).config
        assert foreign.pick(max_macs=1e12)
    assert table.about["machine"]["cpu"] == machine(torch.device("cpu"))["cpu"]


def test_a_table_of_another_model_is_refused(measured):
    net, _, table = measured
    table.check(net)
    other = elastic("residual")[1]
    table.check(other)  # the same weights
    with torch.no_grad():
        other.model.head.bias[0] += 1e-6
    with pytest.raises(LeanconvError, match=r"of another model: its weights are \w{16}, the network's are \w{16}"):
        table.check(other)
    with pytest.raises(LeanconvError, match=r"its resolutions are \[16, 12\], the network's are \[16\]"):
        table.check(make_elastic(NETS["residual"](), (0.25, 1.0), (16,)))
    SMALL.check(net)  # it does not tell of what it is


def test_a_front_is_by_a_cost():
    with pytest.raises(
        LeanconvError, match="a front is by one of macs, params, peak_bytes, latency_ms, got 'accuracy'"
    ):
        SMALL.front("accuracy")
