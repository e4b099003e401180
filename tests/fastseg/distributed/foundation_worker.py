"""Runs on every rank of one launch: trains a foundation encoder in several modes.

    foundation_worker.py OUT BACKBONE

Rank 0 writes what every mode has seen and learnt, and what one process with the global batch has.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from worker import make_config, open_session, state, train

from fastseg.distributed.launch import join
from fastseg.distributed.ranks import Ranks
from fastseg.models.parameter_groups import fixed_buffers

MODES = ("replicate", "fsdp_root", "fsdp_blocks")


def main():
    out, folder = Path(sys.argv[1]), Path(sys.argv[2])
    config = make_config()
    model = replace(
        config.model, backbone="dinov2", foundation=folder, embed_dim=16, pyramid_width=16,
        adapter_rank=2, dropout=0.0,
    )  # fmt: skip
    stages = config.stages | {"student": replace(config.stages["student"], modalities_per="sample")}
    config = replace(config, model=model, stages=stages, ema=0.9)
    with join("cpu", 5) as ranks:
        found = {}
        for mode in ("alone", *MODES):
            alone = mode == "alone"
            own = Ranks(torch.device("cpu")) if alone else ranks
            if alone and not ranks.is_first:
                continue
            session = open_session(config, own, "student", "single" if alone else mode)
            before = [x.clone() for x in fixed_buffers(session.networks.main)]
            rows = train(session, own, steps=range(2))
            tensors = state(session)
            after = fixed_buffers(session.networks.main)
            fixed = all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
            found[mode] = {"losses": [row["loss"] for row in rows], "fixed": fixed}
            if ranks.is_first:
                save_file(tensors, out / f"{mode}.safetensors")
        if ranks.is_first:
            (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
