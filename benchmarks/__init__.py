"""What a batch run costs: Sereno, the same work done by other means, and the limit of the machine, in one run."""
