"""What this run made, and who does the making: descriptors, the spawner thread, the keeper, the run's cgroup and ledger."""
