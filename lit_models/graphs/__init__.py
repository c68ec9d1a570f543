"""Graphs: Chimera, its message-passing rivals, and the tasks of graph learning."""
