"""Generate one line for each text: `teacher-forcing generate`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("generate")
