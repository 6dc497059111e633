"""Where tasks are scored: on this machine, on Ray, on Spark (see interfaces.Executor)."""
