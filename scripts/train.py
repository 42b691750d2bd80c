"""Train the model that a config describes: `teacher-forcing train`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("train")
