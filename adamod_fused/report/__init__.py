"""``python -m adamod_fused report``: what the bound did in a run, as one page of HTML."""
