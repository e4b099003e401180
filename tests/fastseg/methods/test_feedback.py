"""The terms of feedback against loops in float64, and who learns through what."""

from dataclasses import replace

import pytest
import torch

from fastseg.errors import ConfigError
from fastseg.kernels import reference
from fastseg.methods.base import StepInputs, StepPlan, Surroundings
from fastseg.methods.dominance import agreement_with_fusion, ranked
from fastseg.methods.draws import pack
from fastseg.methods.feedback import Feedback, FeedbackOptions, FeedbackWeights
from fastseg.methods.pairing import draw_pairing
from fastseg.methods.seeds import Share, derive_seed
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer, SegmenterOutput
from fastseg.pipelines import DataConfig
from tests.support.toy_backbone import ToySegmenter

NAMES = ("img", "depth", "event", "lidar")
CLASSES, BATCH, SIDE = 5, 2, 64
ALL = FeedbackWeights(ohem=1, logit=50, hpdm=100, ifv=12, feedback_ohem=1, feedback_ifv=1)
TOGETHER = Stage(
    trains="student+feedback_teacher", start="teacher", modalities="drop", losses=ALL, steps=2
)
HPD = replace(
    TOGETHER, trains="student", learns_from="teacher",
    losses=FeedbackWeights(ohem=1, logit=50, hpdm=100, ifv=12),
)  # fmt: skip
IFV = replace(HPD, losses=FeedbackWeights(ohem=0, ifv=1))


def labels_of(batch=BATCH, side=SIDE):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES - 1, (batch, 8, 8), generator=generator)
    labels = labels.repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2)
    labels[:, : side // 4, side // 2 :] = 255
    return labels


def map_of(x, labels, ignored):
    """The cosine of every pixel of ``x [C, h, w]`` with its class's mean."""
    values = torch.full(x.shape[1:], ignored, dtype=torch.float64)
    rows = []
    for k in range(CLASSES):
        mask = labels == k
        if mask.any():
            mean = x[:, mask].mean(1)
            cosine = (mean @ x[:, mask]) / mean.norm() / x[:, mask].norm(dim=0)
            values = values.masked_scatter(mask, cosine)
            rows.append(mask)
    return values


def ifv_by_loops(student, teacher, labels, pairs, *, axis="row", ignored="mask", t=2.0):
    """The sum over ``(sample, student row, teacher row)``, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        h, w = own.shape[-2:]
        for b, s, m in pairs:
            small = labels[b, :: labels.shape[1] // h, :: labels.shape[2] // w]
            maps = [map_of(x.double(), small, 1.0) for x in (own[s, b], other[m, b].detach())]
            seen = (small < CLASSES) | (ignored == "one")
            groups = list(zip(*maps, seen, strict=True))
            if axis == "map":
                groups = [[x.flatten() for x in (*maps, seen)]]
            for mine, wanted, there in groups:
                if there.any():
                    p = (wanted[there] / t).log_softmax(0)
                    q = (mine[there] / t).log_softmax(0)
                    total = total + t**2 * (p.exp() * (p - q)).sum()
    return total / labels.shape[0]


def features_of(modalities, seed):
    torch.manual_seed(seed)
    shape = (modalities, BATCH)
    return [torch.randn(*shape, 3 + i, 16 >> i, 16 >> i, dtype=torch.float64) for i in range(2)]


def ifv_step(stage, present, kept=None, modalities=4):
    """A step of networks that give fixed features; returns them, too."""
    student = [x.requires_grad_() for x in features_of(len(present), 1)]
    teacher = features_of(modalities, 2)
    logits = torch.zeros(BATCH, CLASSES, 16, 16, dtype=torch.float64)
    pairing = draw_pairing(BATCH, modalities, present, torch.Generator().manual_seed(0))
    draws = pack(
        torch.device("cpu"), {"pairing": pairing}, modalities=modalities, present=present, kept=kept
    )
    step = StepInputs(
        stage, torch.zeros(modalities, BATCH, 3, SIDE, SIDE), labels_of(), draws,
        networks={
            "student": lambda images, present, **keywords: SegmenterOutput(logits, student),
            "teacher": lambda images: SegmenterOutput(logits, teacher),
        },
    )  # fmt: skip
    return step, student, teacher, ranked(agreement_with_fusion(teacher))[0]


def compare_ifv(step, student, expected, **options):
    terms = Feedback(FeedbackOptions(**options)).terms(step)
    assert list(terms) == ["ifv"]
    torch.testing.assert_close(terms["ifv"], expected)
    for got, wanted in zip(
        torch.autograd.grad(terms["ifv"], student),
        torch.autograd.grad(expected, student),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (1, 2), (0, 1, 3), (3,)], ids=str)
def test_ifv_compares_what_is_dominant_and_there(present):
    step, student, teacher, dominant = ifv_step(IFV, present)
    pairs = [(b, s, m) for b in range(BATCH) for s, m in enumerate(present) if dominant[m, b]]
    expected = ifv_by_loops(student, teacher, step.labels, pairs)
    compare_ifv(step, student, expected + 0 * sum(x.sum() for x in student))


@pytest.mark.parametrize("modalities", [1, 3])
def test_ifv_with_another_number_of_modalities(modalities):
    step, student, teacher, dominant = ifv_step(IFV, range(modalities), modalities=modalities)
    assert dominant.sum(0).tolist() == [(modalities + 1) // 2] * BATCH
    pairs = [(b, m, m) for b in range(BATCH) for m in range(modalities) if dominant[m, b]]
    compare_ifv(step, student, ifv_by_loops(student, teacher, step.labels, pairs))


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("policy", ["zero", "zero per sample", "drop per sample"])
def test_ifv_leaves_out_modalities_that_are_encoded_though_dropped(policy, include):
    per = "sample" if "sample" in policy else "batch"
    stage = replace(IFV, modalities=policy.split()[0], modalities_per=per)
    marks = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    marks = marks if per == "sample" else marks[:, :1].expand(-1, 2)
    kept = marks if per == "sample" else [0, 1]
    step, student, teacher, dominant = ifv_step(stage, range(4), kept)
    taken = dominant & (marks.bool() | include)
    assert taken.sum() > 0
    pairs = [(b, m, m) for b in range(BATCH) for m in range(4) if taken[m, b]]
    expected = ifv_by_loops(student, teacher, step.labels, pairs)
    compare_ifv(step, student, expected, ifv_include_dropped=include)


@pytest.mark.parametrize("axis", ["row", "map"])
def test_ifv_of_the_released_code(axis):
    """All modalities, zeroed ones too, and ignored pixels with a similarity of one."""
    stage = replace(IFV, modalities="zero")
    step, student, teacher, _ = ifv_step(stage, range(4), [2])
    pairs = [(b, m, m) for b in range(BATCH) for m in range(4)]
    expected = ifv_by_loops(student, teacher, step.labels, pairs, axis=axis, ignored="one")
    compare_ifv(
        step, student, expected, ifv_axis=axis, ifv_ignored="one", ifv_modalities="all",
        ifv_include_dropped=True,
    )  # fmt: skip


class Networks:
    """Teacher and student of a stage in which both learn, in float64 and without dropout."""

    def __init__(self, modalities=4, *, own=False, options=None):
        torch.manual_seed(3)
        names = NAMES[:modalities]
        self.student, self.teacher = (
            SegFormer(
                "mit_nano", CLASSES, 16, dropout=0, drop_path=0, own_encoders=names if own else ()
            ).double()
            for _ in range(2)
        )
        self.method = Feedback(options or FeedbackOptions(ohem_threshold=1 - 1e-9))
        learning = {"student": self.student, "feedback_teacher": self.teacher}
        self.method.hold(TOGETHER, learning)
        self.method.prepare(TOGETHER, learning, Surroundings(DataConfig(), names, None, None))
        self.images = torch.randn(modalities, BATCH, 3, SIDE, SIDE, dtype=torch.float64)
        self.labels, self.calls = labels_of(), []
        self.still = {}

    def settled(self, images, present=None, **keywords):
        self.calls.append((images, keywords))
        self.student.eval()
        with torch.no_grad():
            output = self.student(images, present, **keywords)
        self.student.train()
        return output

    def settled_teacher(self, images):
        with torch.no_grad():
            return self.teacher(images)

    def terms(self, present=(0, 2), labels=None, **weights):
        generator = torch.Generator().manual_seed(0)
        pairing = draw_pairing(BATCH, len(self.images), present, generator)
        draws = pack(
            torch.device("cpu"), {"pairing": pairing}, modalities=len(self.images), present=present
        )
        stage = replace(TOGETHER, losses=replace(ALL, **weights))
        modules = {"student": self.student, "feedback_teacher": self.teacher}
        step = StepInputs(
            stage, self.images, self.labels if labels is None else labels, draws, modules,
            {"student": self.settled, "feedback_teacher": self.settled_teacher}, modules,
            still=self.still,
        )  # fmt: skip
        return self.method.terms(step)

    def gradients(self, loss):
        """Those of the student and of the teacher, by name."""
        found = []
        for network in (self.student, self.teacher):
            named = {n: p for n, p in network.named_parameters() if p.requires_grad}
            grads = torch.autograd.grad(
                loss, list(named.values()), retain_graph=True, allow_unused=True
            )
            found.append(dict(zip(named, grads, strict=True)))
        return found


def test_terms_come_in_a_fixed_order_and_only_if_active():
    networks = Networks()
    assert list(networks.terms()) == [
        "ohem", "logit", "hpdm", "ifv", "feedback_ohem", "feedback_ifv"
    ]  # fmt: skip
    assert list(networks.terms(logit=0, ifv=0, feedback_ohem=0)) == ["ohem", "hpdm", "feedback_ifv"]


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per_modality"])
def test_each_network_is_a_constant_to_the_other(own):
    networks = Networks(own=own)
    terms = networks.terms(present=range(4))
    for name, value in terms.items():
        student, teacher = networks.gradients(value)
        mine, other = (teacher, student) if name.startswith("feedback") else (student, teacher)
        assert any(g is not None and g.any() for g in mine.values()), name
        assert all(g is None for g in other.values()), name
    # what lies behind the teacher's encoders cannot learn at all
    assert not any(p.requires_grad for p in networks.teacher.decoder.parameters())
    assert not any(m.training for m in networks.teacher.children() for m in m.modules())


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per_modality"])
@pytest.mark.parametrize("modalities", [3, 4])
def test_feedback_reaches_the_encoder_through_weak_modalities_alone(own, modalities):
    networks = Networks(modalities, own=own)
    teacher, images, labels = networks.teacher, networks.images, networks.labels
    terms = networks.terms()
    # by hand: rank, detach the dominant features, fuse, and compare the others in loops
    features = teacher.encode(images)
    scores = agreement_with_fusion(features)
    dominant, weak = ranked(scores.mean(1, keepdim=True).expand_as(scores) if own else scores)
    mask = dominant.view(modalities, BATCH, 1, 1, 1)
    features = [torch.where(mask, x.detach(), x) for x in features]
    logits = teacher.decode(teacher.fuse(features))
    full = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")
    pairs = [(b, m, m) for b in range(BATCH) for m in weak[:, b].tolist()]
    with torch.no_grad():
        wanted = networks.student.eval()(images).features
    expected = {
        "feedback_ohem": reference.ohem_cross_entropy(full, labels),
        "feedback_ifv": ifv_by_loops(features, wanted, labels, pairs),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].double(), value, rtol=1e-5, atol=1e-9)
        _, found = networks.gradients(terms[name])
        _, by_hand = networks.gradients(value)
        assert any(g.any() for g in by_hand.values())
        for key, grad in by_hand.items():
            torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-8)
    # the student encoded what was needed, without its head
    ((seen, keywords),) = networks.calls
    assert keywords == {"head": False}
    assert seen.shape[0] == (modalities if own else modalities // 2)
    if own:
        marks = {f"feedback_teacher.encoders.{n}.": x for n, x in zip(NAMES, dominant[:, 0])}  # noqa: B905
        assert networks.still == marks
        for name in [n for n, x in marks.items() if x]:
            grads = [g for n, g in found.items() if f"feedback_teacher.{n}".startswith(name)]
            assert grads
            assert not any(g.any() for g in grads)
    else:
        assert networks.still == {}


def test_a_single_modality_is_dominant_and_brings_no_feedback():
    networks = Networks(1)
    terms = networks.terms(present=(0,))
    assert terms["feedback_ohem"] == terms["feedback_ifv"] == 0
    assert terms["ifv"] > 0
    assert not any(g is not None for g in networks.gradients(sum(terms.values()))[1].values())
    assert networks.calls == []


def test_without_any_label_nothing_is_taught_but_logits():
    networks = Networks()
    terms = networks.terms(labels=torch.full((BATCH, SIDE, SIDE), 255))
    assert all(value.isfinite() for value in terms.values())
    rest = sum(value for name, value in terms.items() if name != "logit")
    assert rest == 0
    for grads in networks.gradients(rest):
        assert not any(g is not None and g.any() for g in grads.values())


def test_equal_networks_have_nothing_to_compare():
    networks = Networks()
    networks.student.load_state_dict(networks.teacher.state_dict())
    terms = networks.terms(present=range(4))
    assert terms["ifv"].abs() < 1e-10
    assert terms["feedback_ifv"].abs() < 1e-10


def test_two_processes_draw_what_one_draws():
    def seeds(purpose):
        return derive_seed(0, 1, 0, purpose)

    method = Feedback(FeedbackOptions())
    plans = [StepPlan(TOGETHER, 4, [0, 3], 3, Share(rank, 2), seeds) for rank in (0, 1)]
    whole = method.draw(StepPlan(TOGETHER, 4, [0, 3], 6, Share(), seeds))["pairing"]
    parts = [method.draw(plan)["pairing"] for plan in plans]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_the_feedback_teacher_learns_slower():
    method = Feedback(FeedbackOptions(feedback_rate=0.25))
    assert method.rate_factor(TOGETHER, "feedback_teacher") == 0.25
    assert method.rate_factor(TOGETHER, "student") == 1
    assert Feedback(FeedbackOptions()).rate_factor(TOGETHER, "feedback_teacher") == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trains": "feedback_teacher+student"}, r"set trains to student\+feedback_teacher"),
        ({"learns_from": "teacher"}, "learns_from to nobody"),
        ({"start": "teacher+encoder"}, "set start to teacher"),
        ({"losses": replace(ALL, feedback_ohem=0, feedback_ifv=0)}, "for the feedback_teacher"),
        ({"losses": FeedbackWeights(ohem=0, feedback_ohem=1)}, "for the student"),
        ({"trains": "student+teacher"}, "one network that learns from one at most"),
        ({"trains": "student", "learns_from": "teacher+other"}, "from one at most"),
        ({"trains": "student", "learns_from": "teacher"}, r"feedback_ifv and feedback_ohem need"),
    ],
)
def test_stages_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=r"stage 'joint'.*" + message):
        Feedback(FeedbackOptions()).check("joint", replace(TOGETHER, **changes))


def test_the_released_form_of_hpdm_needs_one_subset_for_all_samples():
    stage = replace(TOGETHER, modalities_per="sample")
    with pytest.raises(ValueError, match=r"stage 'joint'.*--losses.hpdm paper"):
        Feedback(FeedbackOptions(hpdm="code")).check("joint", stage)
    Feedback(FeedbackOptions()).check("joint", stage)


@pytest.mark.parametrize("stage", [TOGETHER, HPD, IFV, Stage(losses=FeedbackWeights())])
def test_stages_of_the_recipe_are_taken(stage):
    Feedback(FeedbackOptions()).check("joint", stage)


def test_models_without_the_parts_are_refused():
    method = Feedback(FeedbackOptions())
    nano, toy = SegFormer("mit_nano", CLASSES, 16), ToySegmenter(NAMES, CLASSES, 0.1)
    b0 = SegFormer("mit_b0", CLASSES, 16)
    method.check_models(TOGETHER, {"student": nano, "feedback_teacher": nano})
    stage = replace(TOGETHER, losses=replace(ALL, hpdm=0))
    with pytest.raises(ConfigError, match=r"feedback needs a model with 'learning'.*ToySegmenter"):
        method.check_models(stage, {"student": toy, "feedback_teacher": toy})
    with pytest.raises(ConfigError, match="channels"):
        method.check_models(replace(HPD, start="random"), {"student": nano, "teacher": b0})

    class NoHead(SegFormer):
        def fusion_and_head(self):
            return []

    bare = NoHead("mit_nano", CLASSES, 16)
    with pytest.raises(ConfigError, match=r"NoHead does not say what lies behind"):
        method.check_models(TOGETHER, {"student": nano, "feedback_teacher": bare})
