"""Run of a stage: the loop, the step, and what makes them fast."""
