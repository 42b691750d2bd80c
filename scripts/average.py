"""Average the weights of trained models: `teacher-forcing average`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("average")
