"""Score a checkpoint on a split: `teacher-forcing score`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("score")
