"""Pytest's side: settings, requirements, what a test started, failure sections."""
