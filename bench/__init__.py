"""The benchmark: ours beside every peer, gated, timed, recorded and drawn; `python -m bench`."""
