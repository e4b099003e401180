from fastseg.evaluation.subsets import all_subsets


def test_papers_order():
    names = [subset.name for subset in all_subsets("RDEL")]
    assert " ".join(names) == "R D E L RD RE RL DE DL EL RDE RDL REL DEL RDEL"
    assert [s.name for s in all_subsets("FEL")] == ["F", "E", "L", "FE", "FL", "EL", "FEL"]


def test_positions_belong_to_the_names():
    letters = "RDEL"
    assert all("".join(letters[i] for i in s.positions) == s.name for s in all_subsets(letters))
    assert [s.name for s in all_subsets("R")] == ["R"]
