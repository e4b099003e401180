"""Where the C loops come from: the package, the cache of the user, a compiler, or nowhere."""

from __future__ import annotations

import ctypes
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastseg.pipelines.native import build as native
from fastseg.pipelines.native import recipe
from fastseg.pipelines.transform import photometric, resample

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
USABLE = recipe.fitting(recipe.machine(), recipe.features())
needs_sets = pytest.mark.skipif(not USABLE, reason="no wheel has libraries for this machine")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, an empty package, and nothing compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTSEG_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native, "_PACKAGED", tmp_path / "package")
    (tmp_path / "package").mkdir()
    native.library.cache_clear()
    yield tmp_path / "fastseg"
    native.library.cache_clear()


@needs_compiler
def test_the_library_is_compiled_once(fresh: Path) -> None:
    _, first, origin = native.library()
    assert (Path(first).parent, origin) == (fresh, "compiled")
    written = Path(first).stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library()[1:] == (first, "cached")
    assert Path(first).stat().st_mtime_ns == written
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


@needs_compiler
def test_a_cache_that_others_can_write_is_not_used(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    place = native.library().where
    assert Path(place).parent != fresh
    assert not stat.S_IMODE(Path(place).parent.stat().st_mode) & 0o077


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("FASTSEG_NATIVE", "0", "FASTSEG_NATIVE=0"),
        ("CC", "no-such-compiler", "no-such-compiler failed"),
        ("CC", "false", "false failed"),
    ],
)
def test_numpy_serves_without_a_compiler(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    loaded, why, origin = native.library()
    assert (loaded, origin) == (None, "")
    assert reason in why
    assert list(fresh.glob("*")) == []


def test_no_compiler_at_all(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(fresh))
    assert native.library() == (None, "no C compiler", "")


@pytest.fixture(scope="module")
def for_any(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for any processor of this machine."""
    path = tmp_path_factory.mktemp("library") / "pixels.so"
    recipe.compile_library([str(COMPILER)], USABLE[-1], path)
    return path


@needs_compiler
@needs_sets
def test_the_package_comes_first_then_the_cache_then_the_compiler(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, for_any: Path
) -> None:
    def origin() -> str:
        native.library.cache_clear()
        return native.library().origin

    assert [origin(), origin()] == ["compiled", "cached"]
    path = fresh.parent / "package" / recipe.packaged_name(USABLE[0])
    shutil.copy(for_any, path)
    assert origin() == "packaged"
    assert native.library().where == str(path)
    # what was packaged of another source is not used
    path.rename(path.with_name(f"pixels-0123456789abcdef-{USABLE[0]}.so"))
    assert origin() == "cached"
    shutil.copy(for_any, path.with_name(recipe.packaged_name(USABLE[-1])))
    monkeypatch.setenv("PATH", "")
    assert origin() == "packaged"
    monkeypatch.setenv("FASTSEG_NATIVE", "0")
    assert origin() == ""


@needs_sets
def test_a_library_that_does_not_load_is_passed_over(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh.parent / "package" / recipe.packaged_name(USABLE[0])).write_bytes(b"of another libc")
    monkeypatch.setenv("PATH", "")
    assert native.library().where == "no C compiler"


def test_a_changed_source_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe.packaged_name("x86-64")
    changed = tmp_path / "pixels.c"
    changed.write_bytes(recipe.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(recipe, "SOURCE", changed)
    assert recipe.packaged_name("x86-64") != before


def test_a_processor_gets_no_instruction_that_it_lacks() -> None:
    new = set(recipe.INSTRUCTION_SETS["x86_64"]["x86-64-v4"])
    assert recipe.fitting("x86_64", new) == ["x86-64-v4", "x86-64-v3", "x86-64"]
    assert recipe.fitting("x86_64", new - {"avx512vl"}) == ["x86-64-v3", "x86-64"]
    assert recipe.fitting("x86_64", new - {"fma"}) == ["x86-64"]
    assert recipe.fitting("x86_64", []) == ["x86-64"]
    assert recipe.fitting("aarch64", ["asimd"]) == ["armv8-a"]
    assert recipe.fitting("riscv64", []) == []


@needs_compiler
@pytest.mark.parametrize("march", USABLE)
def test_every_instruction_set_has_the_bits_of_numpy(march: str, tmp_path: Path) -> None:
    recipe.compile_library([str(COMPILER)], march, tmp_path / "pixels.so")
    loaded = ctypes.CDLL(str(tmp_path / "pixels.so"))
    assert resample._agrees(resample._bound(loaded))
    assert photometric._agrees(photometric._bound(loaded))
