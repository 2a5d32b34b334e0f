"""The scheduler: jobs, queues, worker slots, dispatch, retries. It alone commands workers and ends admitted jobs."""
