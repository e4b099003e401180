"""Results of the input benchmark as CSV and Markdown, and whether they are what they should be."""

from __future__ import annotations

import csv
import importlib.metadata as metadata
from dataclasses import asdict, dataclass, fields
from pathlib import Path

AS_PUBLISHED = "deliver-cmnext"
"""The reading of the published loader, which resizes events and LiDAR bilinearly, too."""
TARGET_SIZE, TARGETS = 1024, {"packed": 20.0, "png": 2.5}
"""Times the rate per core of the published loader that each source is to reach."""


@dataclass(frozen=True)
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
    cpu_ms: float
    """Per sample, in all processes."""
    per_core: float
    """Samples per second of CPU time."""
    clock_ratio: float
    """To the published loader, by the clock."""
    cpu_ratio: float
    """The same by CPU time."""


def table(results: list[Result]) -> list[str]:
    """The results in Markdown."""
    head = ("size", "cores", "provider", "source", "reading", "output", "samples/s", "p20-p80")
    head += ("CPU ms/sample", "samples/s/core", "x published (clock)", "x published (CPU)")

    def text(value: float) -> str:
        return f"{value:.3g}"

    rows = [
        [
            *(str(r.size), str(r.cores), r.provider, r.source, r.reading, r.output),
            *(text(r.samples_per_s), f"{text(r.p20)}-{text(r.p80)}", text(r.cpu_ms)),
            *(text(r.per_core), text(r.clock_ratio), text(r.cpu_ratio)),
        ]
        for r in results
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def targets(results: list[Result]) -> list[str]:
    """Speed of the torch loader at the published size, by CPU time, beside its target.

    The targets are for what it hands out; with normalising on the host it is shown beside.
    """
    found = [
        r
        for r in results
        if (r.provider, r.size, r.reading) == ("torch", TARGET_SIZE, AS_PUBLISHED)
        and r.cores == min(other.cores for other in results)
    ]
    return [
        f"- {r.source}, {r.output}: {r.cpu_ratio:.3g} x the published loader per core" + verdict(r)
        for r in found
    ]


def verdict(result: Result) -> str:
    """A sentence that says if codes come as fast as they are to."""
    bound = TARGETS[result.source]
    if result.output != "codes":
        return ""
    reached = "reached" if result.cpu_ratio >= bound else "**missed**"
    return f"; target at least {bound:g} x: {reached}"


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
            writer.writerow([*rounded, *about.values()])


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else "unknown"


def versions() -> dict[str, str]:
    """Libraries that decide the numbers."""
    import PIL

    from fastseg.pipelines.native import build as native

    found = {"Pillow": PIL.__version__, "DALI": "none"}
    for package in metadata.distributions():
        if (package.metadata["Name"] or "").startswith("nvidia-dali"):
            found["DALI"] = package.version
    loops = native.library()
    return found | {"resampling": f"{loops.origin} C" if loops.loaded else f"NumPy ({loops.where})"}
