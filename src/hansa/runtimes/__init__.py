"""Where a job runs: each runtime carries the same tasks and interprets none."""
