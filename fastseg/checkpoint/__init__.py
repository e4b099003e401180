"""Files of a run's weights and training states, whole and checked or not there."""
