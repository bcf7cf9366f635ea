"""The learners, the one loop, and what it saves and logs."""
