"""A run that is interrupted again and again equals one that is not."""

from dataclasses import replace

import torch
from safetensors.torch import load_file


def assert_resumes(config, fit, losses, stop_after):
    """Every logged value and every weight is the same to the last bit.

    ``fit`` and ``losses`` are fixtures; a session ends after ``stop_after`` steps.
    """
    path, finished = fit(replace(config, name="whole"))
    assert finished
    other = replace(config, name="broken", stop_after=stop_after, save_every=100)
    for _ in range(5 + 2 * len(config.stages)):
        broken, finished = fit(other)
        if finished:
            break
    assert finished
    assert losses(broken) == losses(path)
    trained = {name for stage in config.stages.values() for name in stage.learners}
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files == sorted(f"{name}.safetensors" for name in trained)
    for file in files:
        one, two = load_file(path / file), load_file(broken / file)
        assert all(torch.equal(one[name], two[name]) for name in one)
