"""Options under the name that they have elsewhere, or had before: taken, or refused with theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastseg.errors import ConfigError

OF_TRAINING = {
    "--tensorboard": "its name is --trackers tensorboard now",
    "--no-tensorboard": "its name is --trackers now, which takes the trackers that are wanted",
    "--checkpoint": "the command that began a run continues it; --config takes the config.json of "
    "a run, for another one of the same settings",
    "--corruption": "faults in training are --data.corruption.*, those in scores "
    "--data.eval-corruption.*",
}
"""What `fastseg.train` does not take, and what to give instead."""

OF_RUNS = {
    "--config": "--checkpoint names the folder of a run, whose config.json is read",
    "--preset": "--checkpoint names the folder of a run, whose config.json is read",
}
"""The same of the commands that read a run."""


def refuse_others(words: Sequence[str], others: Mapping[str, str]) -> None:
    """Refuse the first option that has another name.

    Args:
        words: of a command line.
        others: names, and what to say of each; a name is that of options below it, too.

    Raises:
        ConfigError: there is one.
    """
    for word in words:
        option = word.split("=")[0]
        for name, remedy in others.items():
            if option == name or option.startswith(f"{name}."):
                raise ConfigError(f"{option} is no option here: {remedy}")


def renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The words with options, and those below them, under the names of this command."""
    found = []
    for word in words:
        for name, own in names.items():
            if word == name or word.startswith((f"{name}.", f"{name}=")):
                word = own + word[len(name) :]
                break
        found.append(word)
    return found
