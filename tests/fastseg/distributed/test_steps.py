"""Two processes train as one with the global batch: one launch of `worker.py`, many comparisons."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastseg.checkpoint.contents import KINDS
from fastseg.checkpoint.state_files import StateFiles

HERE = Path(__file__).parent
FAKE_APEX = HERE.parents[1] / "support" / "fake_apex"
MODES = ("replicate", "fsdp_root", "fsdp_blocks", "hsdp")
STAGES = ("teacher", "student")


class Seen:
    """What the ranks wrote."""

    def __init__(self, folder, said):
        self.folder, self.said = folder, said
        self.facts = [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in (0, 1)]

    def __getitem__(self, name):
        return self.facts[0][name]

    def tensors(self, name, rank=0):
        return load_file(self.folder / f"{name}-{rank}.safetensors")


@pytest.fixture(scope="module")
def seen(tmp_path_factory, launch, scenes):
    folder = tmp_path_factory.mktemp("steps")
    codes, _, said = launch([HERE / "worker.py", folder, FAKE_APEX, scenes]).finish(timeout=300)
    assert codes == [0, 0], said
    return Seen(folder, said)


def largest_difference(left, right):
    """Between all tensors of two states, NaN if any is NaN."""
    assert left.keys() == right.keys()
    return max(float((left[k].double() - right[k].double()).abs().max()) for k in left)


def same_bits(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_process(seen, stage, mode):
    """Losses, gradient norm, weights, BatchNorm statistics, moments and average, clipping on."""
    many, one = seen[f"{stage}-{mode}"], seen[f"{stage}-single"]
    terms = {"teacher": {"ohem"}, "student": {"ohem", "logit", "hpdm"}}[stage]
    for row, expected in zip(many, one, strict=True):
        assert row.keys() == expected.keys() == {*terms, "loss", "grad_norm", "skipped"}
        assert row == pytest.approx(expected, rel=1e-12)
        assert row["grad_norm"] > 0.2  # so clipping did something
    left, right = seen.tensors(f"{stage}-{mode}"), seen.tensors(f"{stage}-single")
    assert {k.split(".")[0] for k in left} == {"encoder", "decoder", "optimizer", "average"}
    assert largest_difference(left, right) < 1e-10


@pytest.mark.parametrize("mode", ["replicate", "fsdp_root", "fsdp_blocks"])
@pytest.mark.parametrize("encoders", ["shared", "per_modality"])
def test_ranks_that_encode_other_numbers_of_images_train_as_one(seen, encoders, mode):
    """Where an encoder has no image on a process it takes part nevertheless."""
    groups = [facts[f"packed-{encoders}"] for facts in seen.facts]
    assert all(map(all, groups[0]))
    assert any(sum(one) != sum(two) for one, two in zip(*groups, strict=True))
    rows = zip(seen[f"packed-{encoders}-{mode}"], seen[f"packed-{encoders}-single"], strict=True)
    for row, expected in rows:
        assert row == pytest.approx(expected, rel=1e-12)
    left, right = (seen.tensors(f"packed-{encoders}-{name}") for name in (mode, "single"))
    assert largest_difference(left, right) < 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_ranks_hold_the_same_state_to_the_last_bit(seen, mode):
    for stage in STAGES:
        assert same_bits(seen.tensors(f"{stage}-{mode}"), seen.tensors(f"{stage}-{mode}", rank=1))


def test_statistics_really_are_those_of_the_global_batch(seen):
    """A control: training moves the statistics by far more than the tolerance above."""
    name = "decoder.linear_fuse.bn.running_var"
    assert (seen.tensors("teacher-single")[name] - 1).abs().min() > 1e-4


# one collective each way belongs to BatchNorm: all_gather of statistics, all_reduce of their
# gradients; with shards one more all_reduce is the gradient norm
NORM_AND_STATISTICS = {"allgather": 1, "allreduce": 2}


def test_budget_of_collectives(seen):
    replicate = seen["collectives-replicate"]
    assert set(replicate) == {"allgather", "allreduce"}
    assert replicate["allgather"] == 1
    assert 1 <= replicate["allreduce"] - 1 <= 3
    shards = {"allgather_base": 1, "reduce_scatter_base": 1}
    assert seen["collectives-fsdp_root"] == shards | NORM_AND_STATISTICS
    # the gradient's all_reduce across copies comes on top
    assert seen["collectives-hsdp"] == shards | NORM_AND_STATISTICS | {"allreduce": 3}
    # four blocks, the head and the root; gathered again for the backward pass, but for the root
    blocks = {"allgather_base": 11, "reduce_scatter_base": 6}
    assert seen["collectives-fsdp_blocks"] == blocks | NORM_AND_STATISTICS


@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
def test_micro_batches_make_the_whole_batch(seen, mode):
    """With frozen BatchNorm; else each micro-batch has statistics of its own."""
    for one in ("accumulate-single", "whole-single"):
        for row, expected in zip(seen[f"accumulate-{mode}"], seen[one], strict=True):
            assert row == pytest.approx(expected, rel=1e-12)
        left, right = seen.tensors(f"accumulate-{mode}"), seen.tensors(one)
        assert largest_difference(left, right) < 1e-10


def test_gradients_travel_once_per_step_not_per_micro_batch(seen):
    assert set(seen["accumulate-collectives-replicate"]) == {"allreduce"}
    assert 1 <= seen["accumulate-collectives-replicate"]["allreduce"] <= 3
    shards = {"allgather_base": 1, "reduce_scatter_base": 1, "allreduce": 1}
    assert seen["accumulate-collectives-fsdp_root"] == shards


@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
@pytest.mark.fault("F13")
def test_a_nan_on_one_rank_is_skipped_by_all(seen, mode):
    assert [facts[f"nan-{mode}"] for facts in seen.facts] == [1.0, 1.0]
    for rank in (0, 1):
        before, after = (seen.tensors(f"{when}-nan-{mode}", rank) for when in ("before", "after"))
        assert same_bits(before, after)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
def test_one_rank_without_a_label_learns_with_the_other(seen, mode):
    """Of the student, with every term: nothing is skipped, and both hold the same weights."""
    for facts in seen.facts:
        values = facts[f"ignored-{mode}"]
        assert all(map(math.isfinite, values.values())), values
        assert values["skipped"] == 0
    assert seen.facts[1][f"ignored-{mode}"]["ohem"] == 0
    assert seen.facts[0][f"ignored-{mode}"]["ohem"] > 0
    assert same_bits(*(seen.tensors(f"ignored-{mode}", rank) for rank in (0, 1)))


@pytest.mark.parametrize("mode", MODES)
def test_fp16_halves_its_scale_on_all_ranks_and_recovers(seen, mode):
    for facts in seen.facts:
        assert facts[f"scale-{mode}"] == [65536.0, 1.0, 32768.0, 65536.0]
        scales = [row["loss_scale"] for row in facts[f"fp16-{mode}"]]
        assert scales == [65536.0, 65536.0, 32768.0, 32768.0]
        assert all(math.isfinite(row["loss"]) for row in facts[f"fp16-{mode}"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_short_dtypes_train_close_to_fp32(seen, mode, precision):
    rows, exact = seen[f"{precision}-{mode}"][:2], seen["fp32"]
    for row, expected in zip(rows, exact, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-2)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1)
    assert rows[1]["loss"] != exact[1]["loss"]


@pytest.mark.fault("F25")
@pytest.mark.parametrize("target", ["wide", "single"])
@pytest.mark.parametrize("source", ["wide", "narrow"])
def test_a_state_continues_on_any_number_of_ranks(seen, source, target):
    continued = seen.tensors(f"{source}-to-{target}")
    assert largest_difference(continued, seen.tensors("teacher-single")) < 1e-10


def test_on_the_same_ranks_it_continues_to_the_last_bit(seen):
    assert same_bits(seen.tensors("wide-to-wide"), seen.tensors("teacher-fsdp_root"))
    assert same_bits(seen.tensors("narrow-to-single"), seen.tensors("teacher-single"))


def test_both_write_the_same_tensors(seen):
    wide, narrow = (StateFiles(seen.folder / n / "step-00000001") for n in ("wide", "narrow"))
    for kind in KINDS:
        left, right = wide.kinds(kind), narrow.kinds(kind)
        assert {k: (v.shape, v.dtype) for k, v in left.items()} == {
            k: (v.shape, v.dtype) for k, v in right.items()
        }


def test_auto_measures_and_leaves_no_trace(seen):
    mine, other = (facts["auto"] for facts in seen.facts)
    assert mine == other
    assert mine["weights"]
    assert mine["random"]
    assert mine["classes"] == ["BatchNorm2d"]  # the network itself was not converted
    times = dict(part.rsplit(" ", 2)[:2] for part in mine["why"].partition(": ")[2].split(", "))
    assert set(times) == {"replicate", "fsdp_root", "fsdp_blocks"}
    assert float(times[mine["mode"]]) == min(map(float, times.values()))


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_the_session = {"images_per_s", "data_wait", "peak_mib"}
    return [{k: v for k, v in row.items() if k not in of_the_session} for row in rows]


def test_a_run_in_pieces_is_the_run_in_one_go_to_the_last_bit(seen):
    """Two stages on two ranks, micro-batches and average on, stopped after every third step."""
    whole, parts = (seen.folder / "runs" / name for name in ("whole", "parts"))
    assert losses(parts) == losses(whole)
    assert [row["step"] for row in losses(whole) if row["kind"] == "train"] == [1, 2, 3, 4] * 2
    for name in STAGES:
        left, right = (load_file(run / f"{name}.safetensors") for run in (parts, whole))
        assert same_bits(left, right)
    assert "4 steps of 1 samples x 2 processes x 2 micro-batches, 3 per epoch" in seen.said
    assert "weights averaged with decay 0.9" in seen.said


def test_auto_says_what_it_measured_and_stays_with_it(seen):
    told = [line for line in seen.said.splitlines() if "median of 5 steps" in line]
    assert len(told) == 1
    chosen = told[0].removeprefix("teacher: ").split()[0]
    again = [line for line in seen.said.splitlines() if "as before the interruption" in line]
    assert any(f"teacher: {chosen} (" in line for line in again)


@pytest.mark.parametrize("mode", ["fsdp_root", "fsdp_blocks", "hsdp"])
def test_apex_adam_and_norm_under_fsdp2(seen, mode):
    for row, expected in zip(seen[f"apex-{mode}"], seen["teacher-single"], strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    assert seen["apex-norm-calls"] > 0


def test_apex_lamb_needs_whole_tensors(seen):
    for row, expected in zip(seen["lamb-replicate"], seen["lamb-single"], strict=True):
        assert row == pytest.approx(expected, rel=1e-9)
    assert "--parallel.mode replicate" in seen["lamb-sharded"]


def test_every_rank_knows_what_any_of_them_has_met(seen):
    for facts in seen.facts:
        assert facts["unions"] == [[0, 2, 5, 7], [0, 7], []]


def test_the_guard_names_what_differs_and_where(seen):
    for facts in seen.facts:
        assert "at step 4 of teacher" in facts["guard"]
        assert "modalities of the step: rank 1 against rank 0" in facts["guard"]
        assert "\n  step:" not in facts["guard"]


@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
@pytest.mark.parametrize("way", ["compiled", "recomputed"])
def test_scheduled_steps_are_the_usual_ones(seen, mode, way):
    """Compiled, or with blocks computed again; dropout and stochastic depth are on."""
    assert seen["compiled graphs"] > 0
    for row, expected in zip(seen[f"{way}-{mode}"], seen[f"usual-{mode}"], strict=True):
        assert row == pytest.approx(expected, rel=1e-12)
    left, right = seen.tensors(f"{way}-{mode}"), seen.tensors(f"usual-{mode}")
    assert largest_difference(left, right) < 1e-10
    assert same_bits(seen.tensors(f"{way}-{mode}"), seen.tensors(f"{way}-{mode}", rank=1))


@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
def test_a_rehearsal_of_all_ranks_teaches_nothing(seen, mode):
    assert [facts[f"rehearsed-{mode}"] for facts in seen.facts] == [True, True]
    rows = seen[f"after-rehearsal-{mode}"]
    for row, expected in zip(rows, seen[f"student-{mode}"], strict=True):
        assert row == pytest.approx(expected, rel=1e-12)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("mode", ["replicate", "fsdp_root"])
def test_a_step_without_a_label_on_any_rank_is_not_skipped(seen, mode):
    for facts in seen.facts:
        values = facts[f"unlabelled-{mode}"]
        assert values["loss"] == values["grad_norm"] == values["skipped"] == 0
