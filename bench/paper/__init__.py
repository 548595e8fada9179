"""The AdaMod paper's claims on real data: ``python -m bench.paper`` trains, judges and writes."""
