"""Bad videos are named, counted and passed over; memory that runs out is told by the name of the file."""

from __future__ import annotations

import csv
import os
import re
import resource
import signal
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from tiny_videos import numbers_in, video_folders, write_sound, write_video

from leanconv.data import VideoData, open_videos, stream, workers
from leanconv.data.video.augment import DrawnClip
from leanconv.errors import DataError
from leanconv.machine import give_back_freed_memory, keep_freed_memory


def opened(root: Path, **how) -> VideoData:
    defaults = {"frames": 8, "rate": 2, "resolution": 80, "short_side": (80, 80), "batch_size": 4}
    return open_videos(f"video-folder:{root}", **{**defaults, **how})


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def truncated(path: Path) -> Path:
    return cut(write_video(path, 40, size=(80, 80)), 0.6)


def truncated_behind_its_header(path: Path) -> Path:
    return cut(write_video(path, 40, size=(80, 80), container={"movflags": "faststart"}), 0.6)


def truncated_matroska(path: Path) -> Path:
    return cut(write_video(path, 40, size=(80, 80), muxer="matroska"), 0.6)


def truncated_avi(path: Path) -> Path:
    return cut(write_video(path, 60, size=(80, 80), codec="mpeg4", muxer="avi"), 0.6)


def three_frames(path: Path) -> Path:
    return write_video(path, 3, size=(80, 80))


def sound_with_a_picture(path: Path) -> Path:
    return write_sound(path.with_suffix(".mp3"), cover=True).replace(path)


def nothing(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def noise(path: Path) -> Path:
    path.write_bytes(torch.randint(0, 256, (20_000,), dtype=torch.uint8).numpy().tobytes())
    return path


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/film.ts\n#EXT-X-ENDLIST\n")
    return path


BAD = {
    write_sound: r"no video in it, only audio",
    sound_with_a_picture: r"no video in it, only audio and video",
    truncated: r"broken video: Invalid data",
    truncated_behind_its_header: r"truncated",
    truncated_matroska: r"truncated",
    truncated_avi: r"truncated",
    three_frames: r"too short, 3 frames at 30 per second, and a clip of 8 frames at rate 2 spans 15",
    nothing: r"broken video: Invalid data",
    noise: r"broken video: ",
    playlist: r"broken video: ",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_bad_video_is_named_and_passed_over(tmp_path: Path, make) -> None:
    video_folders(tmp_path, per_class=2)
    bad = [tmp_path / half / "left" / "bad.mp4" for half in ("train", "val")]
    for path in bad:
        make(path)
    data = opened(tmp_path, batch_size=5, augment="none")
    assert (data.train_size, data.test_size) == (5, 5)
    [(clips, labels)] = list(data.train_loader())
    assert len(labels) == 5  # the step is whole: a good video takes its place
    assert [numbers_in(clip, data) for clip in clips] == [list(range(12, 27, 2))] * 5
    tested = torch.cat([labels for _, labels in data.eval_loader()])
    assert tested.tolist() == [0, 0, 1, 1]  # left out
    assert [Path(sample.name).name for sample in data.test_loader(clips=2)] == ["0.mp4", "1.mp4"] * 2
    assert sorted(problem.name for problem in data.problems) == sorted(map(str, bad))
    for problem in data.problems:
        assert re.match(BAD[make], problem.reason), problem.reason
        assert problem.name not in problem.reason


def test_problems_are_reported_in_a_file(tmp_path: Path) -> None:
    video_folders(tmp_path / "set", per_class=2)
    three_frames(tmp_path / "set" / "train" / "left" / "short.mp4")
    data = opened(tmp_path / "set", batch_size=5)
    list(data.train_loader())
    path = data.write_problems(tmp_path / "problems.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [Path(row["video"]).name for row in rows] == ["short.mp4"]
    assert rows[0]["reason"].startswith("too short, 3 frames")
    assert sorted(os.listdir(tmp_path)) == ["problems.csv", "set"]
    with pytest.raises(DataError, match=r"cannot be written"):
        data.write_problems(path / "problems.csv")


@pytest.mark.parametrize("workers", [0, 2])
def test_replacements_are_the_same_every_time(tmp_path: Path, workers: int) -> None:
    video_folders(tmp_path, per_class=4)
    for index in range(3):
        three_frames(tmp_path / "train" / "right" / f"{index}.mp4")

    def epoch(number: int, workers: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = opened(tmp_path, workers=workers)
        data.set_epoch(number)
        found = list(data.train_loader())
        assert len(data.problems) == 3
        return found

    for number in range(2):
        for one, other in zip(epoch(number), epoch(number, workers), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    assert not torch.equal(epoch(0)[0][0], epoch(1)[0][0])


def test_a_batch_of_which_nothing_is_left_is_passed_over(tmp_path: Path) -> None:
    video_folders(tmp_path, per_class=2)
    for index in range(2):
        three_frames(tmp_path / "val" / "left" / f"{index}.mp4")
    data = opened(tmp_path, batch_size=2)
    assert [labels.tolist() for _, labels in data.eval_loader()] == [[1, 1]]


def test_a_set_without_a_single_good_video_is_refused(tmp_path: Path) -> None:
    video_folders(tmp_path, per_class=2, frames=10)
    data = opened(tmp_path)
    with pytest.raises(DataError, match=r"4 videos in a row cannot be used for training, the last is .*too short"):
        list(data.train_loader())
    with pytest.raises(DataError, match=r"none of the videos could be read, for example .*mp4: too short, 10 frames"):
        list(data.eval_loader())
    with pytest.raises(DataError, match=r"none of the videos could be read"):
        list(data.test_loader(2))


def test_a_varying_rate_is_no_problem(tmp_path: Path) -> None:
    stamps = [0, 20, 40, 140, 160, 300, 310, 330, 500, 533, 566, 600]
    for half in ("train", "val"):
        for name in ("a", "b"):
            write_video(tmp_path / half / name / "x.mp4", len(stamps), size=(80, 80), stamps=stamps)
    data = opened(tmp_path)
    clips, _ = next(iter(data.eval_loader()))
    due = [(2 * stamp * 30 + 1000) // 2000 for stamp in stamps]
    first = numbers_in(clips[0], data)
    starts = [[max(n for n, at in enumerate(due) if at <= slot) for slot in range(s, s + 15, 2)] for s in range(3)]
    assert first in starts  # of 18 to 20 slots (the last frame's own length is the container's), 15 are needed
    assert data.problems == ()


def test_a_missing_path_and_a_label_out_of_range_in_a_list(tmp_path: Path) -> None:
    video_folders(tmp_path, per_class=2)
    rows = ["train/left/0.mp4,0", "train/right/0.mp4,1", "train/right/gone.mp4,1"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "test.csv").write_text("val/left/0.mp4,0\n")
    data = open_videos(f"video-csv:{tmp_path}/train.csv,{tmp_path}/test.csv", resolution=64, batch_size=2)
    assert data.train_size == 2
    assert [Path(problem.name).name for problem in data.problems] == ["gone.mp4"]
    assert len(next(iter(data.train_loader()))[1]) == 2
    (tmp_path / "test.csv").write_text("val/left/0.mp4,2\n")
    with pytest.raises(DataError, match=r"test\.csv: line 1 has label 2, expected 0 to 1"):
        open_videos(f"video-csv:{tmp_path}/train.csv,{tmp_path}/test.csv")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one 4K video each."""
    root = tmp_path_factory.mktemp("large")
    how = {"size": (2160, 3840), "options": {"preset": "ultrafast"}, "b_frames": 0}
    first = write_video(root / "train" / "a" / "x.mp4", 15, **how)
    for place in ("train/b", "val/a", "val/b"):
        (root / place).mkdir(parents=True)
        os.link(first, root / place / "x.mp4")
    return root


def short_of_memory(monkeypatch: pytest.MonkeyPatch, mebibytes: int) -> None:
    """Leave every worker so much free memory, what its heap still has from before included."""
    begin = workers._begin
    hoard: list[bytearray] = []

    def starve(worker: int) -> None:
        begin(worker)
        have = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (have + 200 * 2**20, resource.RLIM_INFINITY))
        try:
            while True:
                hoard.append(bytearray(2**20))
        except MemoryError:
            del hoard[-mebibytes:]

    monkeypatch.setattr(workers, "_begin", starve)


@pytest.fixture(params=[False, True], ids=["", "process keeps what it frees"])
def memory_of_training(request: pytest.FixtureRequest) -> Iterator[None]:
    """As `leanconv train` sets it for its process, from which the workers are forked."""
    if request.param and not keep_freed_memory():
        pytest.skip("not with glibc's malloc, or by choice of the environment")
    yield
    give_back_freed_memory()


@pytest.mark.usefixtures("memory_of_training")
def test_4k_frames_fit_where_those_of_a_whole_clip_would_not(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 120)  # the eight frames of a clip are 199 MB
    data = opened(large, workers=2, batch_size=2)
    [(clips, labels)] = list(data.train_loader())
    assert (clips.shape, sorted(labels.tolist())) == ((2, 3, 8, 80, 80), [0, 1])
    assert data.problems == ()


@pytest.mark.usefixtures("memory_of_training")
def test_workers_short_of_memory_name_the_file(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 6)  # less than one frame
    data = opened(large, workers=2, batch_size=2)
    with pytest.raises(
        DataError,
        match=r"train/\w/x\.mp4: memory ran out on its frames of 3840 x 2160 pixels: use fewer workers \(now 2",
    ):
        list(data.train_loader())
    assert data.problems == ()  # the file is not at fault


def test_a_worker_that_is_killed_is_reported_with_what_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video_folders(tmp_path, per_class=2)
    monkeypatch.setattr(DrawnClip, "plan", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    data = opened(tmp_path, workers=1)
    with pytest.raises(DataError, match=r"while the workers read .*train/\w+/\d\.mp4: it probably ran out of memory"):
        list(data.train_loader())


def test_queues_are_closed_before_their_error_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector closed their ends a second time, perhaps as files that others had opened since."""
    video_folders(tmp_path, per_class=4)
    data = opened(tmp_path, workers=2)
    monkeypatch.setattr(stream, "_gather", lambda _: Unsendable())
    with pytest.raises(DataError) as held:
        list(data.train_loader())
    [queues] = [
        iterator._index_queues
        for step in held.traceback
        if step.name == "collated" and (iterator := step.locals["batches"])
    ]
    assert len(queues) == 2
    assert all(queue._closed for queue in queues)


def test_a_loop_that_is_left_early_ends_its_workers(tmp_path: Path) -> None:
    video_folders(tmp_path, per_class=4)
    before = set(active_children())
    batches = iter(opened(tmp_path, workers=2, batch_size=2).train_loader())
    next(batches)
    assert set(active_children()) - before
    batches.close()
    assert not set(active_children()) - before


def test_a_worker_whose_answer_cannot_be_fetched_ends_the_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are fetched from a thread of the worker; what fails there was printed, and the fetching hung for ever."""
    video_folders(tmp_path, per_class=2)
    here, mask = os.getpid(), signal.pthread_sigmask  # the first that the thread does

    def fail(*given: object) -> object:
        if os.getpid() != here:
            raise MemoryError("no room to serve what is asked for")
        return mask(*given)

    monkeypatch.setattr(signal, "pthread_sigmask", fail)
    with pytest.raises(DataError, match="it probably ran out of memory"):
        list(opened(tmp_path, workers=1).train_loader())


class Unsendable:
    def __reduce__(self) -> str:
        raise MemoryError("no room to send this")


def test_an_answer_that_cannot_be_sent_ends_the_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video_folders(tmp_path, per_class=2)
    monkeypatch.setattr(stream, "_gather", lambda _: Unsendable())
    with pytest.raises(DataError, match=r"exited unexpectedly: it probably ran out of memory"):
        list(opened(tmp_path, workers=1).train_loader())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_does_not_fit_in_memory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    video_folders(tmp_path, per_class=2)
    monkeypatch.setattr(stream, "_gather", lambda _: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(
        DataError, match=r"can't allocate memory.*: use fewer workers \(now \d\) or a smaller batch"
    ) as said:
        list(opened(tmp_path, workers=workers).train_loader())
    assert "\n" not in str(said.value)
