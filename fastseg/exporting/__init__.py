"""A network to files that other programs run: the graph, its check, its description."""
