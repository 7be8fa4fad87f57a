"""Made-up inputs for every reader and front door, and what must hold for each; `table.py` lists the kinds."""
