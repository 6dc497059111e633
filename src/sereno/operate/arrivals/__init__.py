"""Whether the data has come that runs wait for."""
