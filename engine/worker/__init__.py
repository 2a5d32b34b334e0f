"""A worker: one stage's runtime on one device, in a process of its own."""
