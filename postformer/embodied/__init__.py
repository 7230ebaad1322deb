"""See and do: what to do next, searched for in what a model of the world imagines."""
