"""Draw the curves of runs in one picture: `teacher-forcing plot`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("plot")
