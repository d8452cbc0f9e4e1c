"""The language model's side of a run: clients, providers, prices, and the handler that answers a run's calls in-process."""
