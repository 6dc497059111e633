"""What runs a bank's night: schedules, the data that they wait for, the runs, and what is told of them."""
