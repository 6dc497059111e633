"""The answer log: what the online API answered, kept. Workers write segments; the compactor makes a Delta table of them."""
