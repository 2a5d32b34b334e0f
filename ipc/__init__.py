"""Bytes between processes: messages, shared memory, sockets. Knows nothing of jobs, GPUs or models."""
