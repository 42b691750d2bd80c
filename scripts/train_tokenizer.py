"""Train a tokenizer, or import a SentencePiece model: `teacher-forcing tokenizer`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("tokenizer")
