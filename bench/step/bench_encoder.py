"""The encoder beside those that people use today: the transformers library and a loop over samples.

    python bench/step/bench_encoder.py                       MiT-B0, 256 and 512 px, two samples
    python bench/step/bench_encoder.py --backbone mit_b2 --sides 256

All encode the images of M sensors with the same weights, and their features agree before anything
is timed. ``transformers`` is `SegformerModel` with scaled_dot_product_attention, all images in one
batch; ``loop`` the published way, one call per sample with its sensors as the batch and explicit
attention matrices (:func:`bench.rivals.published_step.encode`). The first two also compiled. Calls
are taken in turn on one thread, of a CPU it is the processor's time that counts; a row is the
median. The table goes to ``bench/results/<device>/encoder_<backbone>.md``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.harness import shapes  # noqa: E402
from bench.rivals import published_step  # noqa: E402
from bench.step.packing_costs import cost_ms  # noqa: E402
from fastseg.engine.speed.compile import compile_regions  # noqa: E402
from fastseg.models import BACKBONES, build_segmenter, load_weights  # noqa: E402

Encode = Callable[[Tensor], list[Tensor]]
"""Features ``[M B, C, h, w]`` of images ``[M, B, 3, H, W]``."""

SENSORS = 4
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of features, in the largest of them."""


def main() -> None:
    """Time all encoders and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_b0", choices=[x for x in BACKBONES if "b" in x])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="timed calls of each encoder")
    parser.add_argument("--eager", action="store_true", help="leave the compiled ones out")
    parser.add_argument("--out", type=Path, help="instead of bench/results/<device>")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.out or ROOT / "bench" / "results" / ("gpu" if shapes.ON_GPU else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"encoder_{options.backbone}.md"
    ways = encoders(options.backbone, compiled=not options.eager)
    lines = [
        f"### {options.backbone}, {SENSORS} sensors, {options.batch} samples, "
        f"{shapes.DEVICE.type}, one thread, torch {torch.__version__}\n",
        f"| side, dtype, passes | {' | '.join(ways)} | transformers / fastseg | loop / fastseg |",
        "|---|" + "--:|" * (len(ways) + 2),
    ]
    for side in options.sides:
        for dtype in TOLERANCE:
            for backward in (False, True):
                times = timed(ways, side, options.batch, dtype, backward, options.rounds)
                lines.append(row(side, dtype, backward, times))
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
                print(lines[-1], flush=True)


def encoders(backbone: str, compiled: bool) -> dict[str, Encode]:
    """All ways by name, with the weights of one random network."""
    torch.manual_seed(0)
    theirs = hub_encoder(backbone)
    networks = [
        build_segmenter(
            backbone, 25, [f"sensor{m}" for m in range(SENSORS)], embed_dim=64, drop_path=0.0
        )
        for _ in "ab"
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), file)
        for network in networks:
            load_weights(network, file, encoder_only=True)
            network.to(shapes.DEVICE)
    theirs.to(shapes.DEVICE)
    plain, in_regions = networks

    def loop(images: Tensor) -> list[Tensor]:
        samples = [published_step.encode(plain.encoder, x) for x in images.unbind(1)]
        return [torch.stack(level, 1).flatten(0, 1) for level in zip(*samples, strict=True)]

    ways: dict[str, Encode] = {
        "fastseg": lambda x: list(plain.encoder(x.flatten(0, 1))),
        "transformers": lambda x: hub_features(theirs, x),
        "loop": loop,
    }
    if compiled:
        compile_regions(in_regions)
        compiled_theirs: Any = torch.compile(theirs)
        ways["fastseg compiled"] = lambda x: list(in_regions.encoder(x.flatten(0, 1)))
        ways["transformers compiled"] = lambda x: hub_features(compiled_theirs, x)
    return ways


def hub_encoder(backbone: str) -> nn.Module:
    """The same network of the transformers library, with random weights."""
    from transformers import SegformerConfig, SegformerModel

    known = BACKBONES[backbone]
    model: nn.Module = SegformerModel(
        SegformerConfig(
            hidden_sizes=list(known.widths),
            depths=list(known.depths),
            num_attention_heads=list(known.heads),
            sr_ratios=list(known.reductions),
            mlp_ratios=[known.mlp_ratio] * 4,
            layer_norm_eps=1e-6,
            drop_path_rate=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    # as the released weights were trained: torch's own value here, the config's elsewhere
    for name, module in model.named_modules():
        if "patch_embeddings.layer_norm" in name or "sequence_reduction.layer_norm" in name:
            module.eps = 1e-5
    return model


def hub_features(model: Any, images: Tensor) -> list[Tensor]:
    """Features of all levels."""
    return list(model(images.flatten(0, 1), output_hidden_states=True).hidden_states)


def timed(
    ways: dict[str, Encode],
    side: int,
    batch: int,
    dtype: torch.dtype,
    backward: bool,
    rounds: int,
) -> dict[str, float]:
    """Median milliseconds of each encoder."""
    images = torch.randn(SENSORS, batch, 3, side, side, device=shapes.DEVICE)
    times: dict[str, list[float]] = defaultdict(list)
    first: list[Tensor] = []
    for turn in range(rounds + 1):
        for name, encode in ways.items():
            found: list[Tensor] = []

            def call(encode: Encode = encode, found: list[Tensor] = found) -> None:
                with nullcontext() if backward else torch.no_grad(), autocast(dtype):
                    found += encode(images)
                if backward:
                    sum(x.float().square().mean() for x in found).backward()

            ms = cost_ms(call)
            if turn:
                times[name].append(ms)
                continue
            # the first turn warms up and compares
            first = first or found
            for ours, x in zip(first, found, strict=True):
                far = float((ours - x).detach().abs().max() / ours.detach().abs().max())
                assert far < TOLERANCE[dtype], f"{name} is another network: {far}"
    return {name: statistics.median(values) for name, values in times.items()}


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Mixed precision; off for fp32."""
    return torch.autocast(shapes.DEVICE.type, dtype, enabled=dtype != torch.float32)


def row(side: int, dtype: torch.dtype, backward: bool, times: dict[str, float]) -> str:
    """One line of the table: milliseconds, and how often ours fits into the rivals."""
    best, rivals = (
        min(ms for name, ms in times.items() if name.startswith(whose))
        for whose in ("fastseg", "transformers")
    )
    cells = [f"{ms:.4g}" for ms in times.values()]
    cells += [f"{rivals / best:.2f}", f"{times['loop'] / best:.2f}"]
    passes = "forward, backward" if backward else "forward"
    return f"| {side}, {str(dtype).removeprefix('torch.')}, {passes} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
