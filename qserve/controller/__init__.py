"""Who decides: `qserve autoscaler`. Any number run, one leads: reads all state, plans, writes under its term."""
