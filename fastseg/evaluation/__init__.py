"""From networks to scores: metrics, validation, the report of a run."""
