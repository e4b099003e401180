"""Samples per second from files to batches, beside the published loader.

    python bench/bench_input_pipeline.py                    into bench/results/<device>/
    python bench/bench_input_pipeline.py --quick            one size, to see that it runs

DELIVER's four modalities at 1042 x 1042 with the published augmentation, cut to crops of 256, 512
and 1024. Providers: the published loader (``published_loader.py``), fastseg's torch loader and DALI
loader, each from PNG files and from the packed cache; on a GPU, DALI with everything behind the
decoder there. Every provider makes the same samples with the same draws, and is timed only after
its first batch was compared with the published loader's.

``codes`` are what fastseg's loaders hand out, stored integers, which are normalised on the device;
``floats`` includes normalising on the host, as the published loader does. CPU time per sample is
that of the whole process with one worker in line, and its inverse the rate per core; it does not
depend on what else the machine does as much as the clock does. Rates for several cores are by the
clock. Rounds take turns between providers, and a ratio is the median over rounds. The reading
``deliver-cmnext`` is the published one; ``deliver``, fastseg's default, resizes events and LiDAR by
nearest.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402

TESTS = ()  # not one of the operators of gpu_record.py
BATCH = 2
AS_PUBLISHED = "deliver-cmnext"
"""The reading of the published loader, which resizes events and LiDAR bilinearly, too."""


@dataclass
class Result:
    """One provider at one size on so many cores; times are medians over the rounds."""

    provider: str
    source: str
    reading: str
    output: str
    size: int
    cores: int
    samples_per_s: float
    p20: float
    p80: float
    cpu_ms: float | None = None
    per_core: float | None = None
    over_published: float | None = None
    cpu_over_published: float | None = None


@dataclass(frozen=True)
class Provider:
    """Something that makes the samples of some steps when it is called."""

    name: str
    source: str
    reading: str
    output: str
    run: Callable[[int, int], None]
    close: Callable[[], None]


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT / "data" / "bench-1042")
    parser.add_argument("--samples", type=int, default=16, help="per provider and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--cores", type=int, nargs="+", help="default: 1, 2, 4, ... and all")
    parser.add_argument("--quick", action="store_true", help="one size, two rounds, no table")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.rounds, options.sizes = 4, 2, options.sizes[:1]
    from bench import report
    from fastseg.host import keep_freed_memory
    from fastseg.pipelines.pool import usable_cpus

    keep_freed_memory()
    torch.set_num_threads(1)
    make_data(options.root)
    most = usable_cpus()
    cores = options.cores or sorted(
        {*(2**i for i in range(most.bit_length()) if 2**i < most), most}
    )
    results: list[Result] = []
    for size in options.sizes:
        for count in cores:
            results += measure(options.root, size, count, options.samples, options.rounds)
            print(f"{size} on {count} cores: done", flush=True)
    if options.quick:
        print("\n".join(table(results)))
        return
    about = {**report.machine(), "processor": processor(), "cores": str(most), **versions()}
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    out = ROOT / "bench" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "input_pipeline.csv", results, about)
    write_markdown(out / "input_pipeline.md", results, about)
    print("\n".join(table(results)))


def make_data(root: Path) -> None:
    """Sixteen synthetic frames of DELIVER's size and formats, as files and packed."""
    from PIL import Image

    from fastseg.pipelines import get_dataset
    from fastseg.pipelines.files import list_split
    from fastseg.pipelines.pack import pack_split
    from fastseg.pipelines.packed import packed_folder
    from fastseg.pipelines.synthetic import SyntheticConfig, generate

    spec, done = get_dataset("deliver"), root / "labels-rewritten"
    if not done.exists():
        generate(SyntheticConfig(out=root, size=1042, train=16, val=1, lidar="grey", workers=0))
        # the synthetic set fills the unused channels with noise, which no real label file has
        for path in root.glob("semantic/*/train/*/*.png"):
            pixels = Image.open(path).convert("RGBA")
            red, _, _, alpha = pixels.split()
            blank = Image.new("L", pixels.size)
            Image.merge("RGBA", (red, blank, blank, alpha)).save(path)
        done.touch()
    pack_split(list_split(spec, root, "train"), packed_folder(root, spec) / "train", 64)


def measure(root: Path, size: int, cores: int, samples: int, rounds: int) -> list[Result]:
    """Time all providers in turn."""
    providers = list(open_providers(root, size, cores))
    steps = samples // BATCH
    walls: dict[int, list[float]] = {i: [] for i in range(len(providers))}
    works: dict[int, list[float]] = {i: [] for i in range(len(providers))}
    try:
        for provider in providers:
            provider.run(0, 2)  # start workers, compile, fault in, compare checksums
        for round_ in range(rounds):
            for i, provider in enumerate(providers):
                first = (1 + round_) * steps
                wall, work = time.perf_counter(), time.process_time()
                provider.run(first, first + steps)
                works[i].append((time.process_time() - work) / (steps * BATCH))
                walls[i].append((time.perf_counter() - wall) / (steps * BATCH))
    finally:
        for provider in providers:
            provider.close()
    return [
        result(provider, size, cores, walls[i], works[i], walls[0], works[0])
        for i, provider in enumerate(providers)
    ]


def result(
    provider: Provider,
    size: int,
    cores: int,
    walls: list[float],
    works: list[float],
    published_walls: list[float],
    published_works: list[float],
) -> Result:
    """Medians over the rounds; ratios are taken round by round."""

    def ratio(published: list[float], own: list[float]) -> float:
        return statistics.median(p / o for p, o in zip(published, own, strict=True))

    spread = sorted(1 / wall for wall in walls)
    # worker processes have clocks of their own
    one = cores == 1
    cpu = statistics.median(works) if one else None
    return Result(
        *(provider.name, provider.source, provider.reading, provider.output, size, cores),
        samples_per_s=1 / statistics.median(walls),
        p20=spread[int(0.2 * (len(spread) - 1))],
        p80=spread[-1 - int(0.2 * (len(spread) - 1))],
        cpu_ms=1000 * cpu if cpu else None,
        per_core=1 / cpu if cpu else None,
        over_published=ratio(published_walls, walls),
        cpu_over_published=ratio(published_works, works) if one else None,
    )


def open_providers(root: Path, size: int, cores: int) -> Iterator[Provider]:
    """The published loader first, then each of ours after a comparison with it."""
    from bench.published_loader import PublishedLoader
    from fastseg.pipelines import DataConfig, Loader, build_loader
    from fastseg.pipelines.dali_loader import dali_import_error
    from fastseg.pipelines.device import on_device

    workers = 0 if cores == 1 else cores
    config = DataConfig(
        dataset=AS_PUBLISHED,
        root=root,
        size=size,
        batch_size=BATCH,
        jitter=0.2,
        blur=0.2,
        workers=workers,
        loader="torch",
        packed_auto=False,
    )
    published = PublishedLoader(plan_of(config), workers)

    def run_published(start: int, stop: int) -> None:
        for _ in published.batches(start, stop):
            pass

    yield Provider("published", "png", AS_PUBLISHED, "floats", run_published, published.close)
    truth = next(iter(PublishedLoader(plan_of(config), 0).batches(0, 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def opened(loader: Loader, source: str, reading: str, output: str) -> Provider:
        def run(start: int, stop: int) -> None:
            stream = loader.batches(start, stop)
            if output == "device":
                for _ in on_device(stream, device):
                    pass
                torch.cuda.synchronize()
                return
            for batch in stream:
                if output == "floats":
                    assert batch.images.shape[1] == batch.labels.shape[0]

        if reading == AS_PUBLISHED:
            check(next(loader.batches(0, 1)), truth)
        return Provider(loader.name, source, reading, output, run, loader.close)

    kinds = ["torch"] if dali_import_error() else ["torch", "dali"]
    for kind in kinds:
        for source in ("png", "packed"):
            for reading in (AS_PUBLISHED, "deliver"):
                on_gpu = kind == "dali" and device.type == "cuda"
                outputs = (
                    ["device"] if on_gpu else ["codes", "floats"][: 2 if kind == "torch" else 1]
                )
                for output in outputs:
                    packed = root / "packed" / "deliver" if source == "packed" else None
                    own = replace(config, dataset=reading, loader=kind, packed=packed)
                    yield opened(build_loader(own, train=True), source, reading, output)


def plan_of(config: Any) -> Any:
    """The plan that fastseg's loaders follow."""
    from fastseg.pipelines import get_dataset
    from fastseg.pipelines.files import list_split
    from fastseg.pipelines.order import TrainOrder
    from fastseg.pipelines.plan import Plan

    files = list_split(get_dataset(config.dataset), config.root, "train")
    return Plan(files, config, TrainOrder(len(files), config.batch_size, 0), 0, True)


def check(batch: Any, truth: tuple[list[torch.Tensor], torch.Tensor]) -> None:
    """Stop if a batch is not the published one, up to a level of rounding.

    The published code blurs before it flips, jitters and rounds in another order of float32
    operations; DALI's nearest may take neighbouring rows.
    """
    images, labels = truth
    for ours, theirs in zip(batch.images.cpu(), images, strict=True):
        levels = (ours - theirs).abs() * 255 * 0.23
        assert levels.max() < 2.5, f"a pixel differs by {levels.max():.1f} levels"
        assert (levels > 1.1).float().mean() < 1e-3
    differing = (batch.labels.cpu() != labels).float().mean()
    assert differing < 0.01, f"{differing:.1%} of the labels differ"


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else "unknown"


def versions() -> dict[str, str]:
    """Libraries that decide the numbers."""
    import importlib.metadata as metadata

    from fastseg.pipelines import native

    found = {}
    for label, package in (("Pillow", "pillow"), ("DALI", "nvidia-dali-cuda130")):
        try:
            found[label] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[label] = "none"
    loaded, note = native.library()
    return {**found, "resampling": "compiled C" if loaded else f"NumPy ({note})"}


def write_csv(path: Path, results: list[Result], about: dict[str, str]) -> None:
    """A line per result, the machine's columns last."""
    names = [field.name for field in fields(Result)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *about])
        for entry in results:
            values = asdict(entry)
            cells = [values[name] for name in names]
            rounded = [float(f"{c:.4g}") if isinstance(c, float) else c for c in cells]
            writer.writerow(["" if c is None else c for c in rounded] + [*about.values()])


def write_markdown(path: Path, results: list[Result], about: dict[str, str]) -> None:
    """What was measured, on what, and the table."""
    lines = ["# Input pipeline", "", *(__doc__ or "").replace("``", "`").splitlines()[2:], ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    path.write_text("\n".join([*lines, "", *table(results)]) + "\n")


def table(results: list[Result]) -> list[str]:
    """The results in Markdown."""
    head = ("size", "cores", "provider", "source", "reading", "output", "samples/s", "p20-p80")
    head += ("CPU ms/sample", "samples/s/core", "x published (clock)", "x published (CPU)")

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    rows = [
        [
            *(str(r.size), str(r.cores), r.provider, r.source, r.reading, r.output),
            *(text(r.samples_per_s), f"{text(r.p20)}-{text(r.p80)}", text(r.cpu_ms)),
            *(text(r.per_core), text(r.over_published), text(r.cpu_over_published)),
        ]
        for r in results
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
