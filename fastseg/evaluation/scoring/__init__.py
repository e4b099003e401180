"""How protocols score: cases, passes over the split, counts per image, scores and intervals."""
