"""Everything a run can be told: checked dataclasses, their JSON form, what a change means."""
