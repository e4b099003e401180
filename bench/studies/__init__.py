"""Questions about the recipe and the synthetic scenes, answered by runs of the demo."""
