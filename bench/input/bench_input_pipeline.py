"""Samples per second from files to batches, beside the published loader.

    python bench/input/bench_input_pipeline.py              into bench/results/<device>/
    python bench/input/bench_input_pipeline.py --quick      one size, to see that it runs

DELIVER's four modalities at 1042 x 1042 with the published augmentation, cut to crops of 256, 512
and 1024. Providers: the published loader (``published_loader.py``), fastseg's torch loader and DALI
loader, each from PNG files and from the packed cache. DALI runs wholly on the CPU where there is no
GPU (``dali cpu``), else everything behind the decoder runs there (``dali mixed``). Every provider
follows the same draws, and is timed only after its first batch was compared with the published
loader's. Packed frames have all been read once before: their checksums are compared when a process
first reads them, which is not timed. Files are in the page cache.

``codes`` are what fastseg's loaders hand out, stored integers, which the device normalises;
``floats`` includes normalising on the host, as the published loader does; ``device`` are normalised
batches on the GPU. CPU time is that of the process and its workers together, and its inverse the
rate per core; it depends less than the clock on what else the machine does. Rounds take turns
between providers, and a ratio to the published loader is the median over rounds. The reading
``deliver-cmnext`` is the published one; ``deliver``, fastseg's default, resizes events and LiDAR by
nearest. Needs Linux, and Pillow; DALI is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402

from bench.input.providers import BATCH, Provider, left_out, open_providers  # noqa: E402
from bench.input.report import Result, processor, table, targets, versions, write_csv  # noqa: E402

FRAMES = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="frames; default: data/bench-<side>")
    parser.add_argument("--side", type=int, default=1042, help="of the frames, in pixels")
    parser.add_argument("--samples", type=int, default=FRAMES, help="per provider and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--cores", type=int, nargs="+", help="default: 1, 2, 4, ... and all")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>")
    parser.add_argument("--quick", action="store_true", help="one size, two rounds, no files")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.rounds, options.sizes = 4, 2, options.sizes[:1]
    root = options.root or ROOT / "data" / f"bench-{options.side}"
    from bench.harness import report
    from fastseg.engine.speed.host_memory import keep_freed_memory
    from fastseg.pipelines.tools.process_pool import usable_cpus

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_data(root, options.side)
    most = usable_cpus()
    counts = options.cores or sorted({*(2**i for i in range(most.bit_length())), most})
    results: list[Result] = []
    for size in options.sizes:
        for cores in (count for count in counts if count <= most):
            results += measure(root, size, cores, options.samples, options.rounds)
            print(f"{size} on {cores} of {most} cores: done", flush=True)
    torch.set_num_threads(threads)
    text = [*table(results), "", *targets(results), *left_out()]
    print("\n".join(text))
    if options.quick:
        return
    about = {**report.machine(), "processor": processor(), "usable cores": str(most), **versions()}
    about |= {"rounds": str(options.rounds), "samples per round": str(options.samples)}
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    out = options.out or ROOT / "bench" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "input_pipeline.csv", results, about)
    head = ["# Input pipeline", "", *(__doc__ or "").replace("``", "`").splitlines(), ""]
    head += [f"- {name}: {value}" for name, value in about.items()]
    (out / "input_pipeline.md").write_text("\n".join([*head, "", *text]) + "\n")


def make_data(root: Path, side: int) -> None:
    """Synthetic frames in DELIVER's formats, as files and packed."""
    from PIL import Image

    from fastseg.pipelines import get_dataset
    from fastseg.pipelines.cache.read import packed_folder
    from fastseg.pipelines.cache.write import pack_split
    from fastseg.pipelines.datasets.split_files import list_split
    from fastseg.pipelines.synthetic import SyntheticConfig, generate

    spec, done = get_dataset("deliver"), root / "labels-rewritten"
    if not done.exists():
        generate(SyntheticConfig(out=root, size=side, train=FRAMES, val=1, lidar="grey"))
        # the synthetic set fills the unused channels with noise, which no real label file has
        for path in root.glob("semantic/*/train/*/*.png"):
            pixels = Image.open(path).convert("RGBA")
            red, _, _, alpha = pixels.split()
            blank = Image.new("L", pixels.size)
            Image.merge("RGBA", (red, blank, blank, alpha)).save(path)
        done.touch()
    pack_split(list_split(spec, root, "train"), packed_folder(root, spec) / "train", 64)


def measure(root: Path, size: int, cores: int, samples: int, rounds: int) -> list[Result]:
    """Time all providers in turn, on ``cores`` cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    providers: list[Provider] = []
    try:
        for provider in open_providers(root, size, cores):
            providers.append(provider)
            # starts workers; reads every packed frame once, which compares its checksum
            provider.run(0, FRAMES // BATCH if provider.source == "packed" else 2)
        times: list[list[tuple[float, float]]] = [[] for _ in providers]
        steps = max(1, samples // BATCH)
        for start in range(steps, (rounds + 1) * steps, steps):
            for provider, found in zip(providers, times, strict=True):
                wall, work = time.perf_counter(), cpu_seconds()
                provider.run(start, start + steps)
                wall, work = time.perf_counter() - wall, cpu_seconds() - work
                found.append((wall / (steps * BATCH), work / (steps * BATCH)))
    finally:
        for provider in providers:
            provider.close()
        os.sched_setaffinity(0, allowed)
    return [
        result(provider, size, cores, found, times[0])
        for provider, found in zip(providers, times, strict=True)
    ]


def cpu_seconds() -> float:
    """CPU time of this process and of its worker processes up to now."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        fields_after_name = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = fields_after_name[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def result(
    provider: Provider,
    size: int,
    cores: int,
    times: list[tuple[float, float]],
    published: list[tuple[float, float]],
) -> Result:
    """Medians over the rounds; ratios are taken round by round."""
    walls, works = zip(*times, strict=True)
    clock_ratios, cpu_ratios = (
        [theirs[kind] / ours[kind] for theirs, ours in zip(published, times, strict=True)]
        for kind in (0, 1)
    )
    rates = sorted(1 / wall for wall in walls)
    cpu = statistics.median(works)
    return Result(
        *(provider.name, provider.source, provider.reading, provider.output, size, cores),
        samples_per_s=1 / statistics.median(walls),
        p20=rates[int(0.2 * (len(rates) - 1))],
        p80=rates[-1 - int(0.2 * (len(rates) - 1))],
        cpu_ms=1000 * cpu,
        per_core=1 / cpu,
        clock_ratio=statistics.median(clock_ratios),
        cpu_ratio=statistics.median(cpu_ratios),
    )


if __name__ == "__main__":
    main()
