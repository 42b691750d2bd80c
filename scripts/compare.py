"""Put systems side by side: `teacher-forcing compare`, from a clone."""

from clone import run

if __name__ == "__main__":
    run("compare")
