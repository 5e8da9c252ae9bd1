"""What users and strangers may hand over, row by row: tried for real by `test_bad_input.py`, and
written as a table by `python -m tests.bench.bad_input`.
"""
