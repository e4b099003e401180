"""Ways of running a step faster with the same numbers, and when each is taken."""
