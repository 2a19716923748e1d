"""One module per command, with its flags and its `run`; slow imports happen when it runs."""
