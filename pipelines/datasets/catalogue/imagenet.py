"""Statistics of ImageNet on the 0..1 scale, by which every published loader here whitens RGB."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
