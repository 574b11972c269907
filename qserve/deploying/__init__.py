"""How applications are put up, changed and taken down: what a deploy would do, doing it, and waiting for it."""
