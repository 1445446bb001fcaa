"""What this run made, and who makes it: descriptors, the spawner thread, the keeper, the run's cgroup and ledger."""
