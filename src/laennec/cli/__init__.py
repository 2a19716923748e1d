"""A module a command, with its flags and what it runs; what is heavy is imported when it runs."""
