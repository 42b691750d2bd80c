"""Convert a trained model for another runtime: `teacher-forcing export`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("export")
