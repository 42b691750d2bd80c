"""The wire formats: a file each, with its routes, how it states an error, and where it carries the token.

A format reads a request and writes a response; what lies between is the same for all, in `asking.py`.
"""
