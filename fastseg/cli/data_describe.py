"""``python -m fastseg.data describe``: a first description of a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastseg.errors import ConfigError
from fastseg.pipelines import get_dataset
from fastseg.pipelines.inspection.describe.guessing import guess
from fastseg.pipelines.inspection.describe.writing import toml_text
from fastseg.pipelines.tools.settings import Range, check_fields
from fastseg.pipelines.tools.whole_files import write_whole


@dataclass(frozen=True)
class Describe:
    """Look at a folder and write a first description of the data set in it, a TOML file.

    Finds files that pair, the label, depths, values, colours, statistics and splits, and says what
    was guessed and what to look at.
    """

    root: Annotated[Path, tyro.conf.arg(aliases=["--data.root"])]
    """Folder of the data set."""
    out: Path = Path("dataset.toml")
    """File to write, whose name is that of the data set; it ends with .toml."""
    samples: Annotated[int, Range(1, 10**5)] = 24
    """Files of each sensor whose pixels are measured."""
    overwrite: bool = False
    """Replace the file if it is there."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> int:
        """Guess, write the file, and say what was guessed."""
        if self.out.suffix != ".toml":
            raise ConfigError(f"--out {self.out}: expected a name that ends with .toml; add it")
        if self.out.exists() and not self.overwrite:
            raise ConfigError(
                f"--out {self.out} is there and may have been edited: name another file, or "
                "replace it with --overwrite"
            )
        if not self.root.is_dir():
            raise ConfigError(f"--root {self.root}: there is no such folder; name that of the data")
        found = guess(self.root, self.samples)
        replaced = " (what was there is replaced)" if self.out.exists() else ""
        write_whole(self.out, toml_text(found, str(self.root)))
        get_dataset(str(self.out))
        for line in found.said:
            print(line)
        print(f"written: {self.out}{replaced}. Look at:")
        for line in found.edit:
            print(f"  {line}")
        print(
            f"then: python -m fastseg.data check --data.dataset {self.out} --data.root {self.root}"
        )
        return 0
