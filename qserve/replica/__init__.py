"""Who answers: one process, one instance of the user's class. `python -m qserve.replica` is its door."""
