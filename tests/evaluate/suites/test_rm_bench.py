"""RM-Bench: a matrix of styles, its triangles and its diagonal."""

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result


def row(name, domain, right, wrong):
    texts = [[answer(x, f"{side}{i}") for i, x in enumerate(found)] for side, found in (("r", right), ("w", wrong))]
    return {"id": name, "prompt": f"{domain} {name}", "chosen": texts[0], "rejected": texts[1], "domain": domain}


RIGHT, WRONG = ([4, 5, 6], [1, 2, 3]), ([1, 2, 3], [4, 5, 6])


def test_levels_domains_and_matrix(tmp_path):
    rows = [row(1, "chat", [1, 2, 3], [0, 2, 4]), row(2, "code", *RIGHT), row(3, "math", *WRONG)]
    rows += [row(4, "safety-refuse", *RIGHT), row(5, "safety-response", *WRONG)]
    put(tmp_path / "total_dataset.json", rows)
    put(tmp_path / "chat_filtered.json", rows[:1])  # the same rows again, which count once
    loaded, found = result("rm_bench", tmp_path)
    assert len(loaded.records) == 5 and found["overall"]["ties"] == 1
    got = numbers(found)
    chat = (1 + 1 / 3 + 0) / 3
    assert got["overall"] == pytest.approx((chat + 1 + 0 + 0.5) / 4)
    assert [got[name] for name in ("chat", "code", "math", "safety")] == pytest.approx([chat, 1, 0, 0.5])
    assert got["easy"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert got["normal"] == pytest.approx((1 / 3 + 1 + 0 + 0.5) / 4)
    assert got["hard"] == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    assert got["concise>concise"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)  # the right answer's style first
    assert got["concise>Markdown"] == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    assert got["Markdown>detailed"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_a_file_of_one_domain_says_it_by_its_name(tmp_path):
    rows = [{k: v for k, v in row(1, "", *RIGHT).items() if k != "domain"}]
    _, found = result("rm_bench", put(tmp_path / "code_filtered.json", rows))
    assert found["score"] == "code" and found["overall"]["accuracy"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="unknown domain"):
        result("rm_bench", put(tmp_path / "other.json", rows))
