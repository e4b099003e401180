"""How a stage is run: the loop, the step, and what makes them fast."""
