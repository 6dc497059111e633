"""What people are told of runs, and how it reaches them."""
