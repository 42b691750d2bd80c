"""The shapes in which data can lie, one reader each. `READERS` is the table; the first that accepts a split reads it.

To add a shape, write a module with two functions and put one line into the table, above `hf_datasets`, which accepts
every folder. Pairs in the two columns of a table that ends in .pairs, for instance:

    def accepts(request):
        return (Path(request.path) / f"{request.split.name}.pairs").is_file()

    def read(request):
        lines = (Path(request.path) / f"{request.split.name}.pairs").read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\\t") for line in lines]
        rows = Dataset.from_dict({"en": [pair[0] for pair in pairs], "fr": [pair[1] for pair in pairs]})
        return rows.to_iterable_dataset() if request.streaming else rows

    READERS = [..., Reader(pairs.accepts, pairs.read), ...]

A reader gives rows with the names that the data have; `open_split` checks and picks the columns of the config, under
their agreed names. A reader that knows file and line of each row gives the agreed columns itself (`names_places`). One
whose files do not begin with the name of their split says which they are (`files`), so that a change is noticed.
"""

from pipeline.data.readers import (
    delimited_text,
    generated,
    hf_datasets,
    json_lines,
    label_first,
    parallel_text,
    plain_text,
    saved_datasets,
    translation_memory,
)
from pipeline.data.readers.base import Reader
from pipeline.data.readers.text_lines import find_files

READERS = [
    Reader(generated.accepts, generated.read, files=lambda request: []),
    Reader(saved_datasets.accepts, saved_datasets.read, files=saved_datasets.files),
    # Before the others, as it is the only one that is asked for by name.
    Reader(label_first.accepts, label_first.read, names_places=True, files=find_files),
    Reader(parallel_text.accepts, parallel_text.read, names_places=True, files=parallel_text.files),
    Reader(translation_memory.accepts, translation_memory.read, names_places=True, files=translation_memory.files),
    Reader(json_lines.accepts, json_lines.read, names_places=True, files=lambda request: request.files),
    Reader(delimited_text.accepts, delimited_text.read, names_places=True, files=lambda request: request.files),
    Reader(plain_text.accepts, plain_text.read, names_places=True, files=lambda request: request.files),
    # Last, as it accepts every folder and every data set of the Hub.
    Reader(hf_datasets.accepts, hf_datasets.read, files=lambda request: request.files),
]
