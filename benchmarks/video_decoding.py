"""How fast clips are read from video files, and how long training waits for them, on this machine.

    python benchmarks/video_decoding.py --out benchmarks/video_decoding.json > benchmarks/video_decoding.md

First: clips per second of one process with one thread, by the length of the clip and the distance of key frames, as in
training (a drawn start, a drawn short side of 128 to 160, a crop of 112) and with the file searched before; beside it
what the reader's choices are worth (frames that nothing refers to left out; one thread instead of two). All candidates
are interleaved, and every one reads the same clips. Then: the share of a training step that is spent waiting for data.
The videos are made here: ten seconds of a moving, noisy picture, 340 x 256, 30 frames a second, H.264 with B-frames.
`--spec` measures the waiting on other videos.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

LENGTHS = (8, 16, 32)
KEYS = (12, 60, 250)
SIZE = (256, 340)
FRAMES = 300


def write_video(path: Path, keys: int) -> None:
    import av
    import numpy as np

    noise = np.random.default_rng(0)
    scene = np.kron(noise.integers(0, 256, (60, 80, 3)), np.ones((8, 8, 1))).astype(np.int16)
    height, width = SIZE
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = keys, 3
        for number in range(FRAMES):
            top, left = int(60 + 50 * np.sin(number / 9)), int(80 + 70 * np.sin(number / 13))
            picture = scene[top : top + height, left : left + width] + noise.integers(-8, 8, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@contextmanager
def decoding_everything() -> Iterator[None]:
    """Without leaving out the frames that no other refers to."""
    from leanconv.data.video import reader

    before, reader._CAN_SKIP = reader._CAN_SKIP, frozenset()
    try:
        yield
    finally:
        reader._CAN_SKIP = before


@contextmanager
def two_threads(kind: str) -> Iterator[None]:
    """With two decoding threads, that share out frames (FRAME) or parts of one (SLICE)."""
    from leanconv.data.video import reader

    before = reader.open_file

    def threaded(path: str) -> tuple[Any, Any]:
        container, stream = before(path)
        stream.codec_context.thread_count = 2
        stream.codec_context.thread_type = kind
        return container, stream

    reader.open_file = threaded
    try:
        yield
    finally:
        reader.open_file = before


WAYS: dict[str, Callable[[], Any]] = {
    "as it is": nullcontext,
    "file not searched before": nullcontext,
    "every frame decoded": decoding_everything,
    "two threads, by frame": lambda: two_threads("FRAME"),
    "two threads, by slice": lambda: two_threads("SLICE"),
}


def decoding(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per clip of every way, clip length and key-frame distance."""
    from leanconv.data.video.augment import ClipShape, DrawnClip
    from leanconv.data.video.reader import Video
    from leanconv.seeds import generator

    paths = {keys: str(folder / f"{keys}.mp4") for keys in KEYS}
    indexes = {}
    for keys, path in paths.items():
        write_video(Path(path), keys)
        with Video(path) as video:
            indexes[keys] = video.index
    times: dict[tuple[int, int, str], list[float]] = {}
    for number in range(rounds + 2):
        for keys, path in paths.items():
            for length in LENGTHS:
                taken = DrawnClip(
                    ClipShape(frames=length, rate=2, resolution=112, fps=Fraction(30)), (128, 160), mirror=True
                )
                for way, setting in WAYS.items():
                    known = None if way == "file not searched before" else indexes[keys]
                    with setting():
                        start = time.perf_counter()
                        with Video(path, known) as video:
                            plan = taken.plan(video.index, generator("benchmark", number))
                            plan.arranged(video.read(plan.frames, plan.framing))
                        spent = time.perf_counter() - start
                    if number >= 2:  # the first two warm the caches
                        times.setdefault((length, keys, way), []).append(1000 * spent)
    rows = []
    for (length, keys, way), values in times.items():
        low, middle, high = (statistics.quantiles(values, n=10)[place] for place in (0, 4, 8))
        rows.append(
            {
                "frames": length,
                "key_distance": keys,
                "way": way,
                "clips_per_second": 1000 * len(values) / sum(values),
                "median_ms": middle,
                "low_ms": low,
                "high_ms": high,
            }
        )
    return rows


def waiting(spec: str, models: list[str], workers: list[int], steps: int, size: int) -> list[dict[str, Any]]:
    """Seconds of a training step and how many of them were spent in asking for the next batch."""
    import torch
    from torch.nn.functional import cross_entropy

    from leanconv.build import create_model
    from leanconv.data import open_videos

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in models:
        for count in workers:
            data = open_videos(spec, frames=8, rate=2, resolution=size, batch_size=8, workers=count, clips_per_video=10)
            net = create_model(name, num_classes=data.num_classes).to(device).train()
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            waited = worked = 0.0
            done = epoch = 0
            while done < steps + 2:
                data.set_epoch(epoch)
                batches = iter(data.train_loader())
                epoch += 1
                while done < steps + 2:
                    start = time.perf_counter()
                    batch = next(batches, None)
                    arrived = time.perf_counter()
                    if batch is None:
                        break
                    loss = cross_entropy(net(batch[0].to(device)), batch[1].to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    float(loss.detach())  # a GPU has finished when this is known
                    done += 1
                    if done > 2:
                        waited += arrived - start
                        worked += time.perf_counter() - arrived
            rows.append(
                {
                    "model": name,
                    "workers": count,
                    "device": str(device),
                    "step_ms": 1000 * (waited + worked) / steps,
                    "waiting_ms": 1000 * waited / steps,
                    "share": waited / (waited + worked),
                }
            )
    return rows


def own_set(folder: Path) -> str:
    """A set of the videos made here, two classes."""
    for half in ("train", "val"):
        for name, keys in (("a", 60), ("b", 250)):
            place = folder / "set" / half / name
            place.mkdir(parents=True)
            for number in range(4):
                os.link(folder / f"{keys}.mp4", place / f"{number}.mp4")
    return f"video-folder:{folder / 'set'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    parser.add_argument("--rounds", type=int, default=40, help="clips of every kind")
    parser.add_argument("--spec", default="", help="the videos of the second part, as `open_videos` names them")
    parser.add_argument("--models", nargs="*", default=["ip_csn_26", "resnet3d_18"], help="none: no second part")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=112)
    options = parser.parse_args()

    import av
    import torch

    from leanconv.machine import this_machine

    torch.set_num_threads(1)
    print(f"{this_machine()}, PyAV {av.__version__}, torch {torch.__version__}\n\n## One process, one thread\n")
    print("| frames | key frame every | way | clips/s | median ms | 10 % | 90 % |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = decoding(folder, options.rounds)
        for row in rows:
            cells = [f"{row[key]:.1f}" for key in ("clips_per_second", "median_ms", "low_ms", "high_ms")]
            print(f"| {row['frames']} | {row['key_distance']} | {row['way']} | {' | '.join(cells)} |", flush=True)
        torch.set_num_threads(os.cpu_count() or 1)
        spec = options.spec or own_set(folder)
        waits = waiting(spec, options.models, options.workers, options.steps, options.size)
    print(f"\n## Waiting for data: batches of 8 clips of 8 x {options.size} x {options.size}\n")
    print("| network | on | workers | step ms | of these waiting | share |")
    print("|---|---|---:|---:|---:|---:|")
    for row in waits:
        cells = f"{row['step_ms']:.0f} | {row['waiting_ms']:.1f} | {100 * row['share']:.1f} %"
        print(f"| {row['model']} | {row['device']} | {row['workers']} | {cells} |")
    if options.out is not None:
        draft = options.out.with_suffix(".tmp")
        draft.write_text(json.dumps({"decoding": rows, "waiting": waits}, indent=2) + "\n")
        os.replace(draft, options.out)


if __name__ == "__main__":
    main()
