"""What all sections of a config have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    # Strict, as YAML has types: neither true nor "3" is a number of rows.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_min_length=1)
