"""The subcommands of teacher-forcing, one module each: `add_arguments` describes its command line, `run` does the work.

Modules that take seconds to import are imported in `run`.
"""
