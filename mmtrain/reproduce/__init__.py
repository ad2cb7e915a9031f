"""Run it again, and say what is equal. The floor below the command line: it calls training and reads what runs leave.

`reference.py` is what is repeated (a run, or what an export carries of one), `replay.py` the doing, `compare.py` the
verdict on two records, `circumstances.py` what differs between then and now, `expected.py` the numbers beside a recipe.
"""
