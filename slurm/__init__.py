"""Where jobs run: cluster profiles, requests, tasks, submission and state."""
