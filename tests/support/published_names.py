"""Names and shapes of the tensors in published files, written from tables of their projects.

Nothing here comes from the code that is tested: `fastseg.models.weight_files`.
"""

WIDTHS, DEPTHS, REDUCTIONS = (64, 128, 320, 512), (3, 4, 6, 3), (8, 4, 2, 1)


def norm(name, c):
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def batch_norm(name, c):
    counts = {f"{name}.running_mean": (c,), f"{name}.running_var": (c,)}
    return norm(name, c) | counts | {f"{name}.num_batches_tracked": ()}


def layer(name, *shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def mit_block(name, c, reduction):
    found = norm(f"{name}.norm1", c) | norm(f"{name}.norm2", c)
    found |= layer(f"{name}.attn.q", c, c) | layer(f"{name}.attn.kv", 2 * c, c)
    found |= layer(f"{name}.attn.proj", c, c)
    if reduction > 1:
        found |= layer(f"{name}.attn.sr", c, c, reduction, reduction)
        found |= norm(f"{name}.attn.norm", c)
    found |= layer(f"{name}.mlp.fc1", 4 * c, c) | layer(f"{name}.mlp.fc2", c, 4 * c)
    return found | layer(f"{name}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)


def pooling_block(name, c, ratio):
    found = batch_norm(f"{name}.norm1", c) | batch_norm(f"{name}.norm2", c)
    found |= layer(f"{name}.attn.conv0", c, 1, 7, 7) | layer(f"{name}.attn.conv4", c, c, 1, 1)
    found |= layer(f"{name}.mlp.fc1", ratio * c, c, 1, 1)
    found |= layer(f"{name}.mlp.fc2", c, ratio * c, 1, 1)
    found |= layer(f"{name}.mlp.dwconv.dwconv", ratio * c, 1, 3, 3)
    found |= layer(f"{name}.c_nets.0", 1, 1, 3, bias=False)
    return found | {f"{name}.layer_scale_1": (c,), f"{name}.layer_scale_2": (c,)}


def fusion(level, c):
    frm, ffm = f"backbone.FRMs.{level}", f"backbone.FFMs.{level}"
    found = layer(f"{frm}.channel_weights.mlp.0", 4 * c, 4 * c)
    found |= layer(f"{frm}.channel_weights.mlp.2", 2 * c, 4 * c)
    found |= layer(f"{frm}.spatial_weights.mlp.0", c, 2 * c, 1, 1)
    found |= layer(f"{frm}.spatial_weights.mlp.2", 2, c, 1, 1)
    for i in (1, 2):
        found |= layer(f"{ffm}.cross.channel_proj{i}", 2 * c, c)
        found |= layer(f"{ffm}.cross.cross_attn.kv{i}", 2 * c, c, bias=False)
        found |= layer(f"{ffm}.cross.end_proj{i}", c, 2 * c) | norm(f"{ffm}.cross.norm{i}", c)
    embed = f"{ffm}.channel_emb"
    found |= layer(f"{embed}.residual", c, 2 * c, 1, 1, bias=False)
    found |= layer(f"{embed}.channel_embed.0", c, 2 * c, 1, 1)
    found |= layer(f"{embed}.channel_embed.1", c, 1, 3, 3)
    found |= layer(f"{embed}.channel_embed.3", c, c, 1, 1)
    return found | batch_norm(f"{embed}.channel_embed.4", c) | batch_norm(f"{embed}.norm", c)


def head(embed, classes):
    found = layer("decode_head.linear_fuse.conv", embed, 4 * embed, 1, 1, bias=False)
    found |= batch_norm("decode_head.linear_fuse.bn", embed)
    for i, c in enumerate(WIDTHS, start=1):
        found |= layer(f"decode_head.linear_c{i}.proj", embed, c)
    return found | layer("decode_head.linear_pred", classes, embed, 1, 1)


def released(kind, others):
    """Names and shapes of a B2 model with 25 classes."""
    found = head(512, 25)
    for level, (c, depth, reduction) in enumerate(zip(WIDTHS, DEPTHS, REDUCTIONS, strict=True)):
        inside, k = ((3, *WIDTHS)[level], 7 if level == 0 else 3)
        prefixes = ("", "extra_") if kind == "cmx" else ("",)
        for extra in prefixes:
            embed = f"backbone.{extra}patch_embed{level + 1}"
            found |= layer(f"{embed}.proj", c, inside, k, k) | norm(f"{embed}.norm", c)
            found |= norm(f"backbone.{extra}norm{level + 1}", c)
            for i in range(depth):
                found |= mit_block(f"backbone.{extra}block{level + 1}.{i}", c, reduction)
        found |= fusion(level, c)
        if kind == "cmx":
            continue
        embed = f"backbone.extra_downsample_layers.{level}"
        found |= layer(f"{embed}.proj.module", c, inside, k, k)
        for a in range(others):
            found |= norm(f"{embed}.norm.ln_{a}", c)
            score = f"backbone.extra_score_predictor.{level}.score_nets.{a}"
            found |= layer(f"{score}.0", c, 1, 3, 3) | layer(f"{score}.1", 1, c, 1, 1)
        for i in range(depth):
            block = f"backbone.extra_block{level + 1}.{i}"
            found |= pooling_block(block, c, (8, 8, 4, 4)[level])
        found |= norm(f"backbone.extra_norm{level + 1}", c)
    return found


B0_WIDTHS, B0_DEPTHS = (32, 64, 160, 256), (2, 2, 2, 2)


def original(prefix=""):
    """``mit_b0.pth`` without its classifier; with a prefix, encoders of several projects."""
    found = {}
    for level, (c, depth, reduction) in enumerate(
        zip(B0_WIDTHS, B0_DEPTHS, REDUCTIONS, strict=True)
    ):
        inside, k = ((3, *B0_WIDTHS)[level], 7 if level == 0 else 3)
        embed = f"{prefix}patch_embed{level + 1}"
        found |= layer(f"{embed}.proj", c, inside, k, k) | norm(f"{embed}.norm", c)
        for i in range(depth):
            found |= mit_block(f"{prefix}block{level + 1}.{i}", c, reduction)
        found |= norm(f"{prefix}norm{level + 1}", c)
    return found


def transformers_4(prefix="segformer."):
    """Files of SegFormer-B0 on the hub."""
    found = {}
    for level, (c, depth, reduction) in enumerate(
        zip(B0_WIDTHS, B0_DEPTHS, REDUCTIONS, strict=True)
    ):
        inside, k = ((3, *B0_WIDTHS)[level], 7 if level == 0 else 3)
        embed = f"{prefix}encoder.patch_embeddings.{level}"
        found |= layer(f"{embed}.proj", c, inside, k, k) | norm(f"{embed}.layer_norm", c)
        for i in range(depth):
            block = f"{prefix}encoder.block.{level}.{i}"
            found |= norm(f"{block}.layer_norm_1", c) | norm(f"{block}.layer_norm_2", c)
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                found |= layer(f"{block}.attention.{part}", c, c)
            if reduction > 1:
                found |= layer(f"{block}.attention.self.sr", c, c, reduction, reduction)
                found |= norm(f"{block}.attention.self.layer_norm", c)
            found |= layer(f"{block}.mlp.dense1", 4 * c, c) | layer(f"{block}.mlp.dense2", c, 4 * c)
            found |= layer(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        found |= norm(f"{prefix}encoder.layer_norm.{level}", c)
    return found


def transformers_5(prefix="segformer."):
    """The same in memory, from version 5 of the library on."""
    found = {}
    for level, (c, depth, reduction) in enumerate(
        zip(B0_WIDTHS, B0_DEPTHS, REDUCTIONS, strict=True)
    ):
        inside, k = ((3, *B0_WIDTHS)[level], 7 if level == 0 else 3)
        stage = f"{prefix}stages.{level}"
        found |= layer(f"{stage}.patch_embeddings.proj", c, inside, k, k)
        found |= norm(f"{stage}.patch_embeddings.layer_norm", c)
        for i in range(depth):
            block = f"{stage}.blocks.{i}"
            found |= norm(f"{block}.layernorm_before", c) | norm(f"{block}.layernorm_after", c)
            for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                found |= layer(f"{block}.attention.{part}", c, c)
            if reduction > 1:
                name = f"{block}.attention.sequence_reduction"
                found |= layer(f"{name}.sequence_reduction", c, c, reduction, reduction)
                found |= norm(f"{name}.layer_norm", c)
            found |= layer(f"{block}.mlp.fc1", 4 * c, c) | layer(f"{block}.mlp.fc2", c, 4 * c)
            found |= layer(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        found |= norm(f"{stage}.layer_norm", c)
    return found


def mmseg_1(prefix="backbone."):
    """MixVisionTransformer of mmsegmentation, as mit2mmseg names it."""
    found = {}
    for level, (c, depth, reduction) in enumerate(
        zip(B0_WIDTHS, B0_DEPTHS, REDUCTIONS, strict=True)
    ):
        inside, k = ((3, *B0_WIDTHS)[level], 7 if level == 0 else 3)
        found |= layer(f"{prefix}layers.{level}.0.projection", c, inside, k, k)
        found |= norm(f"{prefix}layers.{level}.0.norm", c)
        for i in range(depth):
            block = f"{prefix}layers.{level}.1.{i}"
            found |= norm(f"{block}.norm1", c) | norm(f"{block}.norm2", c)
            found |= {f"{block}.attn.attn.in_proj_weight": (3 * c, c)}
            found |= {f"{block}.attn.attn.in_proj_bias": (3 * c,)}
            found |= layer(f"{block}.attn.attn.out_proj", c, c)
            if reduction > 1:
                found |= layer(f"{block}.attn.sr", c, c, reduction, reduction)
                found |= norm(f"{block}.attn.norm", c)
            found |= layer(f"{block}.ffn.layers.0", 4 * c, c, 1, 1)
            found |= layer(f"{block}.ffn.layers.1", 4 * c, 1, 3, 3)
            found |= layer(f"{block}.ffn.layers.4", c, 4 * c, 1, 1)
        found |= norm(f"{prefix}layers.{level}.2", c)
    return found


def mlp_head(levels, fuse, fuse_norm, last, embed=256, classes=19):
    """SegFormer's head under any names."""
    found = layer(fuse, embed, 4 * embed, 1, 1, bias=False) | batch_norm(fuse_norm, embed)
    for name, c in zip(levels, B0_WIDTHS, strict=True):
        found |= layer(name, embed, c)
    return found | layer(last, classes, embed, 1, 1)


def _nvlabs_head(prefix):
    levels = [f"{prefix}linear_c{i}.proj" for i in (1, 2, 3, 4)]
    fuse = f"{prefix}linear_fuse"
    return mlp_head(levels, f"{fuse}.conv", f"{fuse}.bn", f"{prefix}linear_pred")


def _transformers_head(levels):
    names = [f"decode_head.{levels}.{i}.proj" for i in range(4)]
    head = [f"decode_head.{name}" for name in ("linear_fuse", "batch_norm", "classifier")]
    return mlp_head(names, *head)


PUBLISHED = {
    "robustseg": original("encoder.")
    | _nvlabs_head("decoder.")
    | {"classifier.weight": (19, 256, 1, 1)},
    "mmseg": original("backbone.") | _nvlabs_head("decode_head."),
    "smp": original("encoder.")
    | mlp_head(
        [f"decoder.mlp_stage.{3 - i}.linear" for i in range(4)],
        "decoder.fuse_stage.0", "decoder.fuse_stage.1", "segmentation_head.0",
    ),
    "transformers4": transformers_4() | _transformers_head("linear_c"),
    "transformers5": transformers_5() | _transformers_head("linear_projections"),
}  # fmt: skip
"""SegFormer-B0 with a head of 256 channels and 19 classes, by layout."""
ENCODERS = {
    "mit": original(),
    "mmseg1": mmseg_1(""),
    "transformers4": transformers_4(""),
    "transformers5": transformers_5(""),
}
"""Encoders alone."""
