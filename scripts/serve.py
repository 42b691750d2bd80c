"""Answer requests over HTTP by a trained model: `teacher-forcing serve`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("serve")
