"""Show a pair on its way through a model: `teacher-forcing trace`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("trace")
