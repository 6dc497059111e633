"""When runs are due, and what becomes of them: the scheduler."""
