"""Processes that work for another one: what they are forked from, and how they end with it.

Nothing here waits for torch: these modules are the first that such a process imports.
"""
