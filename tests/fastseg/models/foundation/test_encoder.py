"""The network against the model of transformers, image by image, and its gradients."""

import pytest
import torch
import torch.nn.functional as F

KINDS = ["dinov2", "dinov2_with_registers", "dinov3_vit"]


@pytest.fixture
def images():
    return torch.randn((3, 2, 3, 64, 96), generator=torch.Generator().manual_seed(1))


def by_hand(model, images, patch, read):
    """Normalised tokens of blocks of the library's model, one image at a time."""
    out = []
    norm = getattr(model, "layernorm", None) or model.norm
    for image in images.flatten(0, 1):
        rows, columns = (side // 16 for side in image.shape[1:])
        size = (rows * patch, columns * patch)
        x = F.interpolate(image[None], size, mode="bilinear") if patch != 16 else image[None]
        states = model(x, output_hidden_states=True).hidden_states
        tokens = [norm(states[i + 1])[:, -rows * columns :] for i in read]
        out.append([t.unflatten(1, (rows, columns)).permute(0, 3, 1, 2) for t in tokens])
    return [torch.cat(level) for level in zip(*out, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_library_while_the_adapters_are_zero(make, backbones, images, kind):
    network = make(kind).eval()
    encoder, owner = network.encoder, torch.tensor([0, 0, 1, 1, 2, 2])
    assert encoder.read == [0, 1, 2, 3]
    found = encoder.tokens(images.flatten(0, 1), owner)
    wanted = by_hand(backbones[kind][0], images, encoder.patch, encoder.read)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_strides_are_exact_and_channels_the_fastest_axis(make, images):
    output = make().eval()(images)
    assert output.logits.shape == (2, 5, 16, 24)
    assert [tuple(x.shape) for x in output.features] == [
        (3, 2, 16, 16, 24), (3, 2, 16, 8, 12), (3, 2, 16, 4, 6), (3, 2, 16, 2, 3)
    ]  # fmt: skip
    assert all(x.movedim(2, -1).is_contiguous() for x in output.features)


@torch.no_grad()
def test_each_modality_has_the_adapter_of_its_name(make, backbones, images):
    """As if the products of its adapter were part of the weights of the library's model."""
    import copy

    network = make(moved=True).eval()
    found = network.encode(images)
    parts = dict(network.encoder.named_modules())
    for m, name in enumerate(network.modalities):
        model = copy.deepcopy(backbones["dinov2"][0])
        for i, layer in enumerate(model.encoder.layer):
            for target in ("q_proj", "v_proj"):
                adapted = parts[f"blocks.{i}.block.attention.{target}"]
                change = adapted.lora_B[name] @ adapted.lora_A[name]
                getattr(layer.attention, target).weight += 2 * change
        tokens = by_hand(model, images[m : m + 1], 14, network.encoder.read)
        for one, other in zip(found, network.encoder.pyramid(tokens), strict=True):
            torch.testing.assert_close(one[m], other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0][0], make().eval().encode(images)[0][0], atol=1e-2)


@torch.no_grad()
def test_masks_of_each_sample_equal_a_batch_of_its_own(make, images):
    network = make(moved=True).eval()
    marks = torch.tensor([[1, 0], [0, 1], [1, 1]])
    found = network.logits_of_marks(images, marks)
    for b, present in enumerate([(0, 2), (1, 2)]):
        alone = network(images[list(present), b : b + 1], present).logits
        torch.testing.assert_close(found[b : b + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_one_encoding_serves_every_subset(make, images, missing):
    network, subsets = make(moved=True).eval(), [(0,), (1, 2), (0, 1, 2)]
    for present, logits in zip(
        subsets, network.logits_of_subsets(images, subsets, missing), strict=True
    ):
        rows = list(present)
        if missing == "zero":
            seen = torch.zeros_like(images)
            seen[rows] = images[rows]
            alone = network(seen).logits
        else:
            alone = network(images[rows], present).logits
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_what_learns_and_nothing_else(make, images):
    network = make(moved=True)
    output = network(images)
    (output.logits.square().mean() + sum(x.mean() for x in output.features)).backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert lacking == []
    assert all("lora_" in n for n, _ in network.named_parameters() if n.startswith("encoder.bl"))
    # the backbone is no parameter, and no part of a file
    assert not any("norm1" in name for name in network.state_dict())
    assert not any(buffer.requires_grad for buffer in network.buffers())


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_come_from_a_modality_s_own_images(make, images, packed):
    network = make(moved=True)
    if packed:
        from fastseg.models.packing import Packing, PackingRule

        marks = torch.tensor([[1, 1], [0, 0], [0, 1]])
        packing = Packing(*PackingRule(apart=True).pack(marks))
        network(images, fused=marks[None], packing=packing).logits.square().mean().backward()
    else:
        network(images[[0, 2]], (0, 2)).logits.square().mean().backward()
    for name, learns in (("img", True), ("depth", False), ("event", True)):
        grads = [p.grad for p in network.modality_parameters(name)]
        assert len(grads) == 16
        assert all(bool(grad.any()) == learns for grad in grads)


def test_a_modality_s_gradients_are_those_of_its_images_alone(make, images):
    network = make(moved=True).eval()
    together = network.encode(images)
    sum(x[0].square().mean() for x in together).backward()
    found = [p.grad.clone() for p in network.modality_parameters("img")]
    network.zero_grad()
    sum(x[0].square().mean() for x in network.encode(images[:1], (0,))).backward()
    for one, p in zip(found, network.modality_parameters("img"), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-3, atol=1e-6)


def test_images_that_do_not_learn_leave_no_gradient(make, images):
    network = make(moved=True)
    rows = torch.tensor([[0, 0], [1, 1]])
    features = network(images, learning=rows, head=False).features
    sum(x.square().mean() for x in features).backward()
    assert all(p.grad.any() for p in network.modality_parameters("img"))
    assert not any(p.grad.any() for p in network.modality_parameters("event"))


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
def test_a_backbone_may_learn(make, images, kind):
    network = make(kind, train_foundation=True, adapter_rank=0)
    assert not network.reads_present
    network(images).logits.square().mean().backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias of all keys changes no attention
    assert [name for name in lacking if "k_proj.bias" not in name] == []
    assert "encoder.blocks.0.block.norm1.weight" in network.state_dict()
    # its weights are in the file; the folder has to be of the same shape
    assert network.constants_of_files() != make(kind).constants_of_files()


def test_recomputation_gives_the_same_gradients(make, images):
    grads = []
    for on in (False, True):
        network = make(moved=True)
        network.recompute(on)
        network(images).logits.square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_compile_as_one_graph_each(make, images):
    network = make("dinov3_vit", moved=True)
    plain = network.encode(images)
    for region in network.encoder.blocks[:2]:
        region.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    for one, other in zip(network.encode(images), plain, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_a_frozen_network_gives_the_same(make, images):
    network = make(moved=True).eval()
    before = network(images).logits
    torch.testing.assert_close(network.freeze()(images).logits, before, rtol=1e-4, atol=1e-4)
    short = make(moved=True).eval().freeze(torch.bfloat16)(images.bfloat16())
    assert short.logits.dtype == torch.bfloat16
    torch.testing.assert_close(short.logits.float(), before, rtol=0.1, atol=0.1)


def test_short_images_are_encoded_in_their_dtype(make, images):
    network = make(moved=True)
    exact = network.encode(images)
    levels = network.encode(images.bfloat16())
    assert {x.dtype for x in levels} == {torch.bfloat16}
    for one, other in zip(levels, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.15)


def test_blank_images_have_finite_gradients(make):
    network = make(moved=True, dropout=0.1)
    blank = torch.zeros(3, 2, 3, 64, 64)
    network(blank).logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_layers_for_layer_decay_hold_every_parameter_once(make):
    network = make(train_foundation=True)
    parts = [part for layer in network.layers() for part in layer]
    found = [id(p) for part in parts for p in part.parameters()]
    assert sorted(found) == sorted(id(p) for p in network.parameters())


def test_wrong_positions_are_refused(make, images):
    with pytest.raises(ValueError, match="modalities at"):
        make()(images, (0, 1))
    with pytest.raises(ValueError, match="multiples of 32"):
        make()(images[..., :50])
