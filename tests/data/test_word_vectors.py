import gzip

import numpy as np
import pytest
import torch

from pipeline.data.word_vectors import load_embeddings, read_vectors, read_words
from pipeline.errors import ConfigError
from tokenizer.training import train

VECTORS = {"cat": [1.0, 0.0, 2.0, 0.5], "dog": [0.9, 0.1, 1.8, 0.4], ". .": [0.0, 1.0, 0.0, -1.0]}


@pytest.fixture
def tokenizer():
    return train(["Cat dog bird fish"] * 2, "word", 20)


@pytest.fixture
def write(tmp_path):
    def write(text, name="vectors.txt"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def as_text(vectors, header=""):
    return header + "".join(f"{word} {' '.join(map(str, values))}\n" for word, values in vectors.items())


@pytest.mark.parametrize("header", ["", "3 4\n"], ids=["glove", "word2vec"])
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_formats(write, header, name):
    path = write(as_text(VECTORS, header), name)
    vectors = read_vectors(path, {"cat", ". .", "mouse"})
    assert {word: vector.tolist() for word, vector in vectors.items()} == {
        word: pytest.approx(VECTORS[word]) for word in ("cat", ". .")
    }
    assert list(read_words(path))[:2] == ["cat", "dog"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("cat 1 2 3\ndog 1 2\n", r"vectors.txt:2: 2 numbers, where the lines before have 3"),
        ("3 4\ncat 1 2 3 4\ndog 1 2 3 x\n", r"vectors.txt:3: a word and 4 numbers are needed"),
        ("cat 1 2 3\ndog 1 nan 3\n", r"vectors.txt:2: the vector of 'dog' holds a number that is not finite"),
        ("", "there are no vectors in it"),
        ("just some text\nnot vectors at all\n", "vectors.txt:1: a word and 2 numbers are needed"),
    ],
)
def test_a_broken_file_is_named_with_its_line(write, text, problem):
    with pytest.raises(ConfigError, match=problem):
        read_vectors(write(text), {"cat", "dog", "that"})


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no vectors could be read"):
        read_vectors(tmp_path / "none.txt", set())


@pytest.mark.parametrize("width", [4, 2, 16])
def test_vectors_reach_the_embedding(make_model, tokenizer, write, width):
    """Words of the file get their vectors, in the geometry that they had; others stay as they were."""
    generator = np.random.default_rng(0)
    words = {"cat": generator.normal(size=width).tolist(), "dog": generator.normal(size=width).tolist()}
    words["bird"] = (np.array(words["cat"]) * 0.5).tolist()
    model = make_model(vocab_size=len(tokenizer), d_model=16)
    before = model.get_input_embeddings().weight.detach().clone()
    rows = load_embeddings(model.get_input_embeddings(), tokenizer, write(as_text(words)))
    assert sorted(rows.tolist()) == sorted(tokenizer.convert_tokens_to_ids(["Cat", "dog", "bird"]))
    after = model.get_input_embeddings().weight.detach()
    cat, dog, bird, fish = (tokenizer.convert_tokens_to_ids(word) for word in ("Cat", "dog", "bird", "fish"))
    same = [number for number in range(len(tokenizer)) if number not in (cat, dog, bird)]
    assert torch.equal(after[same], before[same]) and fish in same
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(after[cat], after[bird], dim=0), torch.tensor(1.0))
    cosine = np.dot(words["cat"], words["dog"]) / np.linalg.norm(words["cat"]) / np.linalg.norm(words["dog"])
    cosine_after = torch.nn.functional.cosine_similarity(after[cat], after[dog], dim=0)
    torch.testing.assert_close(cosine_after, torch.tensor(cosine, dtype=torch.float32))
    assert after[[cat, dog, bird]].std().item() == pytest.approx(before.std().item(), rel=0.3)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_wider_vectors_are_reduced_to_their_principal_axes(make_model, tokenizer, write):
    """Vectors that vary along few axes only keep their distances."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(32, 3))).Q
    words = {word: (axes @ generator.normal(size=3)).tolist() for word in ("cat", "dog", "bird", "fish")}
    model = make_model(vocab_size=len(tokenizer), d_model=16)
    load_embeddings(model.get_input_embeddings(), tokenizer, write(as_text(words)))
    after = model.get_input_embeddings().weight.detach()
    ids = tokenizer.convert_tokens_to_ids(["Cat", "dog", "bird", "fish"])
    distances = torch.pdist(after[ids]) / torch.pdist(torch.tensor(list(words.values())).float())
    torch.testing.assert_close(distances, distances[:1].expand(6), rtol=1e-4, atol=0)


def test_vectors_of_another_language(make_model, tokenizer, write):
    with pytest.raises(ConfigError, match="has no word of the vocabulary"):
        load_embeddings(make_model().get_input_embeddings(), tokenizer, write("katze 1 2 3\nhund 1 2 3\n"))
