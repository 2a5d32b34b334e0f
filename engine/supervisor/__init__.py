"""The supervisor: makes the memory, starts the processes, watches them, restarts them with a budget, stops them."""
