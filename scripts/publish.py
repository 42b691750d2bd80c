"""Publish a trained model on the Hub: `teacher-forcing publish`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("publish")
