"""What a run costs in the process that drives it, by the number of its tasks."""
