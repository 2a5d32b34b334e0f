"""The arbiter: the one process that says who may use how much memory of which device."""
