"""CPU time of what a loader does to one image: PNG to pixels, and the C loops behind it.

    python bench/input/decode_times.py              into bench/results/cpu/decode_times.md

Frames are those of ``bench_input_pipeline.py``, 1042 x 1042 pixels, and two of 16 bits made of
them. Pillow and imagecodecs decode the same bytes by ``decode_image`` and ``decode_ids``, with all
checks, to equal pixels. The C loops are compiled for each instruction set that a wheel holds and
for this processor (``native``); each has the bits of NumPy. Times are CPU time of one thread, the
median over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.input.bench_input_pipeline import make_data  # noqa: E402
from bench.input.report import processor  # noqa: E402
from fastseg.pipelines.decode import fast_png  # noqa: E402
from fastseg.pipelines.decode.images import decode_ids, decode_image  # noqa: E402
from fastseg.pipelines.native import recipe  # noqa: E402
from fastseg.pipelines.transform import photometric, resample  # noqa: E402
from fastseg.pipelines.transform.geometry import GeometryDraws, train_geometry  # noqa: E402

FOLDERS = ("img", "depth", "event", "lidar", "semantic")
Jobs = dict[str, Callable[[], object]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="frames; default: data/bench-<side>")
    parser.add_argument("--side", type=int, default=1042, help="of the frames, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cpu")
    options = parser.parse_args(arguments)
    root = options.root or ROOT / "data" / f"bench-{options.side}"
    torch.set_num_threads(1)
    make_data(root, options.side)
    decoders = decoder_rows(root, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        loops = loop_rows(Path(folder), options.side, options.rounds)
    versions = [f"{name} {metadata.version(name)}" for name in ("Pillow", "imagecodecs", "numpy")]
    head = ["# Times of decoding", "", *(__doc__ or "").replace("``", "`").splitlines(), ""]
    head += [f"- processor: {processor()}", f"- versions: {', '.join(versions)}", ""]
    text = "\n".join([*head, *decoders, "", *loops, ""])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "decode_times.md").write_text(text, encoding="utf-8")


def decoder_rows(root: Path, rounds: int) -> list[str]:
    """A line per file, and their sum: a sample."""
    fast = fast_png.decoder()
    if fast is None:
        raise SystemExit("imagecodecs is not installed; pip install '.[fast-png]' in the clone")
    files = {name: min(root.glob(f"{name}/*/train/**/*.png")).read_bytes() for name in FOLDERS}
    sample = len(files)
    deep = decode_image(files["img"], Path("img")).astype(np.uint16) * 257 + 41
    files["16-bit grey"], files["16-bit RGB"] = _png(deep[:, :, 0]), _png(deep)
    rows, sums = [], [0.0, 0.0]
    for place, (name, data) in enumerate(files.items()):

        def decode(data: bytes = data, name: str = name) -> np.ndarray:
            if name == "semantic":
                return decode_ids(data, Path(name), red_alone=True)
            return decode_image(data, Path(name), bits=(16,) if "16" in name else (8,))

        def by_pillow(decode: Callable[[], np.ndarray] = decode) -> np.ndarray:
            with mock.patch.object(fast_png, "decoder", return_value=None):
                return decode()

        np.testing.assert_array_equal(decode(), by_pillow())
        times = measured({"Pillow": by_pillow, "imagecodecs": decode}, rounds)
        rows.append([f"{name}, {len(data) / 1e6:.2f} MB", *times])
        if place < sample:
            sums = [a + b for a, b in zip(sums, times, strict=True)]
    rows.insert(sample, ["the five above, a sample", *sums])
    return _table(["file", "Pillow, ms", "imagecodecs, ms"], rows)


def loop_rows(folder: Path, side: int, rounds: int) -> list[str]:
    """A line per loop, a column per instruction set."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("there is no C compiler; install gcc")
    sets = [*recipe.fitting(recipe.machine(), recipe.features())[::-1], "native"]
    columns: dict[str, Jobs] = {}
    for march in sets:
        recipe.compile_library([compiler], march, folder / march)
        columns[march] = _loops(ctypes.CDLL(str(folder / march)), side)
    columns["NumPy"] = _loops(None, side)
    rows = []
    for name, numpy_job in columns["NumPy"].items():
        wanted = numpy_job()
        for march, jobs in columns.items():
            np.testing.assert_array_equal(jobs[name](), wanted, err_msg=march)
        jobs = {march: column[name] for march, column in columns.items()}
        rows.append([name, *measured(jobs, rounds)])
    return _table(["loop", *(f"{march}, ms" for march in columns)], rows)


def _loops(library: ctypes.CDLL | None, side: int) -> Jobs:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = pixels.transpose(2, 0, 1)
    geometry = train_geometry(GeometryDraws(False, 1.31, 0.3, 0.8), side, side, side - 18)
    resize = resample.Resampler(geometry, resample._bound(library) if library else None)
    colours = photometric._bound(library) if library else None

    def resized(rule: resample.Interpolation) -> np.ndarray:
        target = np.empty((3, side - 18, side - 18), np.uint8)
        resize(image, rule, target)
        return target

    return {
        "bilinear": lambda: resized("bilinear"),
        "nearest": lambda: resized("nearest"),
        "colours": lambda: photometric.jitter(image, (1.31, 0.77, 1.42), colours),
        "blur": lambda: photometric.blur(image, 1.0, 7, colours),
    }


def measured(jobs: Jobs, rounds: int) -> list[float]:
    """Median milliseconds of CPU time of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name].append(1000 * (time.process_time() - start))
    return [statistics.median(found) for found in times.values()]


def _png(pixels: np.ndarray) -> bytes:
    from imagecodecs import png_encode

    return bytes(png_encode(np.ascontiguousarray(pixels), level=6))


def _table(head: list[str], rows: list[list[object]]) -> list[str]:
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


if __name__ == "__main__":
    main()
