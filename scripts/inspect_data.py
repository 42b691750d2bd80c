"""Look at the data of a config: `teacher-forcing inspect`, from a clone.

Not inspect.py, which would stand in the place of Python's own module `inspect` for all scripts here.
"""

from clone import run

if __name__ == "__main__":
    run("inspect")
