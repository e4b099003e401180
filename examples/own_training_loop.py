"""Use the losses in a training loop of your own: ``python examples/own_training_loop.py``."""

import torch

from fastseg import kernels
from fastseg.models import SegFormer

CLASSES = 5


def main() -> None:
    """A student on two of three modalities learns from a frozen teacher on all of them."""
    torch.manual_seed(0)
    teacher = SegFormer("mit_nano", CLASSES, embed_dim=32).freeze()
    student = SegFormer("mit_nano", CLASSES, embed_dim=32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    images = torch.randn(3, 2, 3, 64, 64)
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    present = [0, 2]
    # which row of the student each modality of the teacher teaches, for each sample
    pairing = torch.tensor([[0, 1, 1], [1, 0, 0]])
    target = teacher(images)  # frozen: records no gradients
    for step in range(4):
        output = student(images[present], present)
        ohem, logit = kernels.segmentation_loss(output.logits, labels, target.logits)
        prototypes = kernels.hybrid_prototype_distillation(
            output.features, target.features, labels, CLASSES, pairing, present=present
        )
        matched = [level[present] for level in target.features]
        entropy = kernels.representation_regularisation(output.features, matched, seed=step)
        loss = ohem + logit + prototypes + 0.01 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: ohem {ohem:.3f} logit {logit:.4f} prototypes {prototypes:.4f}")


if __name__ == "__main__":
    main()
