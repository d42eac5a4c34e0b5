"""The subcommands of ``kvorum``: composition roots, which build the parts of a node and hand them to each other."""
