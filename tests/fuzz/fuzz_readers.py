"""Feed mutated files to every reader for as long as wanted, guided by coverage where atheris is.

    pip install atheris          # beside what the tests need; without it: plain mutations
    python tests/fuzz/fuzz_readers.py --seconds 1800 --out FOLDER

An input is a byte that chooses the target (`tests.support.hostile`) and the content of a file. What
a reader must not do (another exception than fastseg's, a wrong result) is a finding: the smallest
input of each place is written to FOLDER/findings, and the run goes on. FOLDER/corpus holds inputs
that reached something new; ``--keep`` packs the smallest ones of them into ``corpus.zip`` beside
this file, which `test_corpus.py` replays with the findings of before in ``found``.

Three runs, an hour in all (Python 3.11, atheris 3.0.0, a shared core), executed 280,213 inputs, of
which 12,472 were accepted; the four findings are mended, and in ``found``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

try:
    import atheris
except ImportError:
    atheris = None

_INSTRUMENTED = ("fastseg", "zipfile", "tarfile", "pickletools", "tomllib", "yaml", "csv", "PIL")
with atheris.instrument_imports(include=list(_INSTRUMENTED)) if atheris else nullcontext():
    from tests.support.hostile import reading, stored
    from tests.support.hostile.mutations import mutate

CORPUS = HERE / "corpus.zip"
FOUND = HERE / "found"
_MOST_BYTES = 190_000


class Fuzzer:
    """Targets in a fixed order, and what was found."""

    def __init__(self, out: Path, scratch: Path) -> None:
        self.targets = reading.targets() | stored.targets(scratch / "originals")
        self.names = list(self.targets)
        self.findings, self.scratch = out / "findings", scratch / "scratch"
        self.findings.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir()
        self.runs, self.accepted, self.found = 0, 0, dict[tuple[str, ...], int]()

    def seeds(self) -> list[bytes]:
        """Sound inputs of all targets."""
        return [
            bytes([number]) + seed
            for number, name in enumerate(self.names)
            for seed in self.targets[name].seeds
        ]

    def run(self, data: bytes) -> None:
        """Feed one input to its target."""
        if not data:
            return
        name = self.names[data[0] % len(self.names)]
        self.runs += 1
        quiet = io.StringIO()
        try:
            with redirect_stdout(quiet), redirect_stderr(quiet):
                self.accepted += self.targets[name].read(data[1:], self.scratch)
        except Exception as error:
            self._note(name, data, error)

    def _note(self, name: str, data: bytes, error: Exception) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        key = name, type(error).__name__, place.filename, str(place.lineno)
        if len(data) < self.found.get(key, sys.maxsize):
            self.found[key] = len(data)
            file = self.findings / hashlib.sha256("".join(key).encode()).hexdigest()[:12]
            file.write_bytes(data)
            text = "".join(traceback.format_exception(error))
            file.with_suffix(".txt").write_text(f"{name}, {len(data)} bytes\n{text}")

    def mutated(self, data: bytes, most: int, seed: int) -> bytes:
        """The custom mutator: ours and that of libFuzzer take turns."""
        draws = random.Random(seed)
        if draws.random() < 0.5 and data:
            own = self.targets[self.names[data[0] % len(self.names)]].seeds
            return (data[:1] + mutate([data[1:], *own], draws))[:most]
        found: bytes = atheris.Mutate(data, most)
        return found


def keep_corpus(folder: Path) -> None:
    """Pack the smallest inputs of a corpus into one file."""
    files = sorted(folder.iterdir(), key=lambda file: (file.stat().st_size, file.name))
    with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_LZMA) as archive:
        for file in files:
            # of the size that has been written so far; the directory comes on top
            if archive.fp is None or archive.fp.tell() > _MOST_BYTES - 120 * len(archive.filelist):
                break
            archive.writestr(zipfile.ZipInfo(file.name[:12]), file.read_bytes())


def kept_corpus() -> list[bytes]:
    """The inputs that are kept beside this file, and those that were findings once."""
    found = [file.read_bytes() for file in sorted(FOUND.iterdir())]
    with zipfile.ZipFile(CORPUS) as archive:
        return [*found, *(archive.read(name) for name in archive.namelist())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run for the time that is asked for; the exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args(arguments)
    if options.keep:
        keep_corpus(options.out / "corpus")
        return 0
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    fuzzer = Fuzzer(options.out, scratch)
    end, said = time.monotonic() + options.seconds, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal said
        fuzzer.run(data)
        if time.monotonic() - said > 30:
            said = time.monotonic()
            _say(fuzzer)

    if atheris is None:
        draws, seeds = random.Random(0), fuzzer.seeds()
        while time.monotonic() < end:
            seed = draws.choice(seeds)
            own = fuzzer.targets[fuzzer.names[seed[0]]].seeds
            one(seed[:1] + mutate(own, draws))
    else:
        corpus = options.out / "corpus"
        corpus.mkdir(exist_ok=True)
        for seed in fuzzer.seeds():
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        words = [f"-max_total_time={int(options.seconds)}", "-max_len=8192", "-timeout=60"]
        words += ["-rss_limit_mb=6000", "-detect_leaks=0", "-print_final_stats=1", "-verbosity=1"]
        atheris.Setup([sys.argv[0], *words, str(corpus)], one, custom_mutator=fuzzer.mutated)
        atheris.Fuzz()
    _say(fuzzer)
    return 1 if fuzzer.found else 0


def _say(fuzzer: Any) -> None:
    found = ", ".join(" ".join(key[:2]) for key in fuzzer.found) or "nothing"
    print(f"{fuzzer.runs} inputs, {fuzzer.accepted} accepted, found: {found}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
