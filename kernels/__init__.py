"""Performance-critical operators, one op a folder, whose own `__init__` has its public functions.

Nothing is exported here, and no folder exports a function that is named as one of its modules, so
that a dotted name always means what lies there.
"""
